// Pipelines with text. `sampler.js` imports this file when a model file holds one; until then a page downloads neither it nor
// its WebAssembly.

import init, { TextEngine } from "../pkg/ccm_text.js";
import { DownloadError, RequestError } from "./errors.js";
import { isAddress, settings } from "./settings.js";

let engine;
let heap;

/** Loads the WebAssembly, once. */
function start() {
  engine ??= (async () => {
    try {
      // Bundlers search for exactly this expression.
      const source = settings.textWasm ?? new URL("../pkg/ccm_text_bg.wasm", import.meta.url);
      heap = (await init({ module_or_path: isAddress(source) ? settings.fetch(source) : source })).memory;
    } catch (error) {
      engine = undefined;
      throw new DownloadError(`the WebAssembly for text: ${error.message}`, { cause: error });
    }
  })();
  return engine;
}

/** Checks what a sample is about. */
function asked({ prompt, negative, guidance, noise }, count) {
  if (typeof prompt !== "string") throw new RequestError(`prompt: expected a text, found ${prompt}`);
  if (typeof (negative ?? "") !== "string") throw new RequestError(`negative: expected a text, found ${negative}`);
  if (!Number.isFinite(guidance ?? 1)) throw new RequestError(`guidance: expected a number, found ${guidance}`);
  if (noise !== undefined && !(noise instanceof Float32Array && count === 1)) {
    throw new RequestError(`noise: expected a Float32Array for one image, found ${noise} for ${count}`);
  }
  return [prompt, negative ?? undefined, guidance ?? undefined, noise];
}

/** The engine of a pipeline, with the calls of `Engine` that `Sampler` makes. Its images are drawn from bytes. */
class Text {
  #engine;

  constructor(engine) {
    this.#engine = engine;
  }

  describe() {
    return { ...this.#engine.describe(), heap: heap.buffer.byteLength };
  }

  // Every call opens the device.
  isLost() {
    return false;
  }

  loseDevice() {}

  sample(from, to, weight, label, steps, count, text) {
    return this.#engine.sample(from, to, weight, steps, count, ...asked(text, count));
  }

  free() {
    this.#engine.free();
  }
}

/** Opens a model file with a pipeline. It becomes a `Blob`, which browsers keep on disk if it is large, and is read in parts. */
export async function load(bytes, backend) {
  await start();
  return new Text(await TextEngine.load(new Blob([bytes]), backend));
}
