// The element in a strict Preact project.

import "ccm-web/element";
import type { CcmImage } from "ccm-web/element";
import { useRef } from "preact/hooks";

export function App() {
  const ref = useRef<CcmImage>(null);
  const draw = () => ref.current?.generate({ seed: 3 });
  return <ccm-image ref={ref} class="x" model="m" seed={7n} label="ghost" steps={1} backend="cpu" onClick={draw} />;
}
// @ts-expect-error: there is no such backend.
export const unknown = <ccm-image backend="abacus" />;
