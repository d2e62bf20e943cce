// Types of `js/element.js`, which defines `<ccm-image>` when a browser imports it.

import type { Backend, Info } from "./index.js";

/** `<ccm-image model seed label steps prompt negative guidance backend alt>`; fires `load` (`detail` is `info`) and `error`. */
export class CcmImage extends HTMLElement {
  /** The `info` of the sampler; null before the model is loaded. */
  readonly info: Info | null;
  /** Draws with this seed, or with a random one. Resolves when the image is drawn or has failed. */
  generate(options?: { seed?: number | bigint | string }): Promise<void>;
}

/** Attributes of `<ccm-image>`, as JSX has them. */
export interface CcmImageAttributes {
  /** Address of the model. */
  model?: string | undefined;
  /** Seed of the image: a whole number below 2^64, or any text, which is hashed (`seedFrom`). Default 0. */
  seed?: number | bigint | string | undefined;
  /** Number or name of a class. */
  label?: number | string | undefined;
  /** Network evaluations; default 1, or 50 for a model with text that is not a student. */
  steps?: number | string | undefined;
  /** What the image shows, for a model with text. */
  prompt?: string | undefined;
  /** What guidance leads away from. */
  negative?: string | undefined;
  /** Guidance scale; default 5, for a student 1. */
  guidance?: number | string | undefined;
  /** Where the model runs; default `auto`. */
  backend?: Backend | undefined;
  /** Accessible name of the image. */
  alt?: string | undefined;
}

declare global {
  interface HTMLElementTagNameMap {
    "ccm-image": CcmImage;
  }
}

// JSX of React and Preact. In a project without one of them its module does not exist, which is no error here.

// @ts-ignore
declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      // @ts-ignore
      "ccm-image": DetailedHTMLProps<HTMLAttributes<CcmImage>, CcmImage> & CcmImageAttributes & { class?: string };
    }
  }
}

// @ts-ignore
declare module "preact" {
  namespace JSX {
    interface IntrinsicElements {
      // @ts-ignore
      "ccm-image": Omit<IntrinsicElements["div"], "ref"> & ClassAttributes<CcmImage> & CcmImageAttributes;
    }
  }
}
