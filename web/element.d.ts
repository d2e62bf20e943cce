// Types of `js/element.js`, which defines `<ccm-image>` when it is imported.

import type { Info } from "./index.js";

/** `<ccm-image model seed label steps backend alt>`; fires `load` (`detail` is `info`) and `error`. */
export class CcmImage extends HTMLElement {
  /** The sampler's `info`; null before the model has arrived. */
  readonly info: Info | null;
  /** Draws with this seed, or a new one; resolves when the image is there or has failed. */
  generate(options?: { seed?: number | bigint }): Promise<void>;
}

declare global {
  interface HTMLElementTagNameMap {
    "ccm-image": CcmImage;
  }
}
