// `Sampler`: a model that makes images, on the GPU or the CPU. The engine is WebAssembly; here is what a page wants
// around it: names for labels, downloads, canvases, one call after the other, and a device that comes back.

import init, { Engine } from "../pkg/ccm_web.js";
import { download } from "./download.js";
import { CorruptModelError, DownloadError, RequestError, check, typed } from "./errors.js";

const BACKENDS = ["auto", "webgpu", "webgpu-software", "cpu"];
const MOST_STEPS = 10_000;
const MOST_IMAGES = 10_000;
const LARGEST_SEED = 2n ** 64n - 1n;
/** Images that a GPU makes at once; a signal is heard between one lot and the next. */
const LOT = 16;

let engine;
let heap;

/** Loads the WebAssembly, once. */
function start() {
  // Bundlers look for this very expression.
  engine ??= init({ module_or_path: new URL("../pkg/ccm_web_bg.wasm", import.meta.url) }).then(
    (exports) => (heap = exports.memory),
    (error) => {
      engine = undefined;
      throw new DownloadError(`the sampler's WebAssembly: ${error.message}`, { cause: error });
    },
  );
  return engine;
}

/** Lets the page do something else: draw, or abort. `scheduler.yield()` would come back before timers do. */
const pause = () =>
  new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => resolve(port1.close());
    port2.postMessage(null);
  });

/** After a crash of its GPU process a browser has no adapter for a moment. */
async function adapterIsBack() {
  for (let tries = 0; tries < 20 && !(await navigator.gpu?.requestAdapter()); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}

function seedOf(value, name = "seed") {
  const whole = typeof value === "bigint" || Number.isSafeInteger(value);
  if (!whole || value < 0 || BigInt(value) > LARGEST_SEED) {
    throw new RequestError(`${name}: expected a whole number from 0 to 2^53 or a BigInt below 2^64, found ${value}`);
  }
  return BigInt(value);
}

function countOf(value, name, most) {
  if (!Number.isInteger(value) || value < 1 || value > most) {
    throw new RequestError(`${name}: expected a whole number from 1 to ${most}, found ${value}`);
  }
  return value;
}

/** The number of a class; the first where none is given. */
function labelOf(value, { numClasses, classes }) {
  if (value === undefined || value === null || value === "") return 0;
  if (!numClasses) throw new RequestError(`label: this model has no classes, found ${value}`);
  const named = classes.indexOf(String(value));
  const label = named >= 0 ? named : Number(value);
  if (Number.isInteger(label) && label >= 0 && label < numClasses) return label;
  const names = classes.length ? ` or one of ${classes.slice(0, 20).join(", ")}` : "";
  throw new RequestError(`label: expected 0 to ${numClasses - 1}${names}, found ${value}`);
}

/** Where a model comes from: a function that gives its bytes. */
function sourceOf(model) {
  const held = (read) => async ({ signal } = {}) => {
    check(signal);
    return { bytes: await read(), cached: false, keep: async () => {}, forget: async () => {} };
  };
  if (typeof model === "string" || model instanceof URL) {
    const url = new URL(model, globalThis.document?.baseURI ?? globalThis.location?.href).href;
    return (options) => download(url, options);
  }
  if (model instanceof Blob) return held(async () => new Uint8Array(await model.arrayBuffer()));
  if (model instanceof ArrayBuffer) return held(async () => new Uint8Array(model));
  if (ArrayBuffer.isView(model)) {
    return held(async () => new Uint8Array(model.buffer, model.byteOffset, model.byteLength));
  }
  throw new RequestError("model: expected a URL, an ArrayBuffer, a typed array or a Blob");
}

/** Reads a model and starts an engine with it. */
async function open(source, backend, options) {
  const [file] = await Promise.all([source(options), start()]);
  check(options.signal);
  try {
    const opened = await Engine.load(file.bytes, backend);
    // The page need not wait for the disk.
    file.keep();
    return opened;
  } catch (error) {
    const known = typed(error);
    if (!(known instanceof CorruptModelError && file.cached)) throw known;
    // What is damaged in the cache may be whole on the server.
    await file.forget();
    return open(source, backend, options);
  }
}

/** A model, ready to make images. */
export class Sampler {
  static #key = Symbol();
  #engine;
  #info;
  #surfaces = new WeakMap();
  #last = Promise.resolve();

  constructor(key, engine) {
    if (key !== Sampler.#key) throw new TypeError("use Sampler.load()");
    this.#engine = engine;
    this.#info = engine.describe();
  }

  /** Loads a model from a URL, bytes or a file. */
  static async load(model, { backend = "auto", onProgress, signal, cache = true } = {}) {
    if (!BACKENDS.includes(backend)) {
      throw new RequestError(`backend: expected one of ${BACKENDS.join(", ")}, found ${backend}`);
    }
    const source = sourceOf(model);
    const opened = await open(source, backend, { onProgress, signal, cache });
    if (signal?.aborted) opened.free();
    check(signal);
    return new Sampler(Sampler.#key, opened);
  }

  /** What the model is and what it runs on. */
  get info() {
    this.#open();
    return { ...this.#info, heap: heap.buffer.byteLength };
  }

  /** Images from the seeds `seed, seed + 1, ...`. */
  async sample({ seed = 0, label, steps = 1, count = 1, signal } = {}) {
    const first = seedOf(seed);
    countOf(steps, "steps", MOST_STEPS);
    countOf(count, "count", MOST_IMAGES);
    return this.#next(signal, async (engine) => {
      const info = this.#info;
      const number = labelOf(label, info);
      const lot = info.backend === "cpu" ? 1 : LOT;
      const images = [];
      while (images.length < count) {
        if (images.length) await pause();
        check(signal);
        const from = BigInt.asUintN(64, first + BigInt(images.length));
        const bytes = await engine.sample(from, from, 0, number, steps, Math.min(lot, count - images.length));
        images.push(...toImages(bytes, info));
      }
      return images;
    });
  }

  /** Draws one image over the whole of a canvas, which takes the image's size. */
  async draw(canvas, { seed = 0, label, steps = 1, signal } = {}) {
    const from = seedOf(seed);
    return this.#paint(canvas, from, from, 0, label, steps, signal);
  }

  /** Draws the image that lies at `weight`, from 0 to 1, of the way from one seed to another. */
  async interpolate(canvas, seedA, seedB, weight, { label, steps = 1, signal } = {}) {
    const [from, to] = [seedOf(seedA, "seedA"), seedOf(seedB, "seedB")];
    if (!(weight >= 0 && weight <= 1)) {
      throw new RequestError(`weight: expected a number from 0 to 1, found ${weight}`);
    }
    return this.#paint(canvas, from, to, weight, label, steps, signal);
  }

  /** Takes the GPU away, as the browser may at any time: for tests of what a page does then. */
  loseDevice() {
    this.#open().loseDevice();
  }

  /** Gives the memory back. Calls that have begun are finished, others fail. */
  free() {
    const engine = this.#engine;
    this.#engine = null;
    this.#last = this.#last.then(() => engine?.free());
  }

  #open() {
    if (!this.#engine) throw new RequestError("this sampler has been freed");
    return this.#engine;
  }

  /** Runs `task` after all that was asked for before, with a device that is there. */
  #next(signal, task) {
    const result = this.#last.then(async () => {
      check(signal);
      try {
        const engine = this.#open();
        if (engine.isLost()) {
          await adapterIsBack();
          await engine.recover();
          // Canvases are to be joined to the new device.
          this.#surfaces = new WeakMap();
        }
        const made = await task(engine);
        // The engine cannot be asked while it works, so it is asked now; its memory may have changed.
        this.#info = engine.describe();
        return made;
      } catch (error) {
        throw typed(error);
      }
    });
    this.#last = result.catch(() => {});
    return result;
  }

  async #paint(canvas, from, to, weight, label, steps, signal) {
    countOf(steps, "steps", MOST_STEPS);
    if (typeof canvas?.getContext !== "function") {
      throw new RequestError("canvas: expected a canvas element or an OffscreenCanvas");
    }
    return this.#next(signal, async (engine) => {
      const info = this.#info;
      const number = labelOf(label, info);
      // Setting the size clears a canvas, so it is set only when it differs.
      if (canvas.width !== info.width) canvas.width = info.width;
      if (canvas.height !== info.height) canvas.height = info.height;
      // A canvas keeps the kind of context that it was first given.
      if (info.backend !== "cpu" && canvas.getContext("webgpu")) {
        let surface = this.#surfaces.get(canvas);
        if (!surface) this.#surfaces.set(canvas, (surface = engine.surface(canvas)));
        return engine.draw(surface, from, to, weight, number, steps);
      }
      const context = canvas.getContext("2d");
      if (!context) throw new RequestError("canvas: it was drawn to by WebGPU, and a CPU sampler wants another");
      const [image] = toImages(await engine.sample(from, to, weight, number, steps, 1), info);
      context.putImageData(image, 0, 0);
    });
  }
}

/** Bytes of pixels, an `ImageData` an image. */
function toImages(bytes, { width, height }) {
  const pixels = new Uint8ClampedArray(bytes.buffer, bytes.byteOffset, bytes.length);
  const length = 4 * width * height;
  const images = [];
  for (let at = 0; at < pixels.length; at += length) {
    images.push(new ImageData(pixels.slice(at, at + length), width, height));
  }
  return images;
}
