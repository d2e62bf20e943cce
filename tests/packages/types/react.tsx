// The types in a strict React project.

import { type Image, NoWorkerError, Sampler, WorkerSampler } from "ccm-web";
import "ccm-web/element";
import type { CcmImage } from "ccm-web/element";
import { useRef } from "react";

export function App() {
  const ref = useRef<CcmImage>(null);
  const draw = () => ref.current?.generate({ seed: 3 });
  return <ccm-image ref={ref} model="m" seed={7n} label="ghost" steps={1} backend="cpu" style={{ width: 3 }} onClick={draw} />;
}
export const text = <ccm-image model="m" prompt="a fox" negative="blurry" guidance={6} steps="25" />;
// @ts-expect-error: a prompt is a text.
export const number = <ccm-image prompt={7} />;
// @ts-expect-error: there is no such backend.
export const unknown = <ccm-image backend="abacus" />;
// @ts-expect-error: `steps` is a number or text.
export const wrong = <ccm-image steps={{}} />;

Sampler.configure({ wasm: new URL("https://example.com/x.wasm"), worker: "/worker.js" });
Sampler.configure({ wasm: new WebAssembly.Module(new Uint8Array(8)) });
Sampler.configure({ textWasm: new Uint8Array(8) });
// @ts-expect-error: neither an address nor bytes.
Sampler.configure({ wasm: 7 });
// @ts-expect-error: a worker has an address.
Sampler.configure({ worker: new Uint8Array(8) });

const { signal } = new AbortController();
export const images: Promise<ImageData[]> = Sampler.load("m", { signal }).then((sampler) => sampler.sample());
export async function inWorker(): Promise<Image[]> {
  const sampler = await WorkerSampler.load(new Blob([]));
  await sampler.draw(document.createElement("canvas"), { seed: 7 });
  await sampler.draw(new OffscreenCanvas(1, 1));
  await sampler.draw(new OffscreenCanvas(1, 1), { prompt: "a fox", negative: null, guidance: 6, steps: 25 });
  // @ts-expect-error: a guidance scale is a number.
  await sampler.sample({ prompt: "a fox", guidance: "much" });
  return sampler.sample();
}
export const code: string = new NoWorkerError("").code;
