// `Sampler`: runs a model on the GPU or the CPU. The engine is WebAssembly; this file adds argument checks, names of
// labels, downloads, canvases, a queue of calls, and recovery of a lost GPU device.

import init, { Engine } from "../pkg/ccm_web.js";
import { download } from "./download.js";
import { CorruptModelError, DownloadError, NoWebGpuError, RequestError, check, typed } from "./errors.js";
import { configure, isAddress, resolve, settings } from "./settings.js";

const BACKENDS = ["auto", "webgpu", "webgpu-software", "cpu"];
const MOST_STEPS = 10_000;
const MOST_IMAGES = 10_000;
const LARGEST_SEED = 2n ** 64n - 1n;
/** Images that a GPU computes in one batch. The abort signal is checked between batches. */
const BATCH = 16;

let engine;
let heap;
/** Of each canvas: the device that draws to it, and its surface. A canvas has one at a time. */
const surfaces = new WeakMap();

/** Loads the WebAssembly, once. */
function start() {
  engine ??= (async () => {
    try {
      // Bundlers search for exactly this expression.
      const source = settings.wasm ?? new URL("../pkg/ccm_web_bg.wasm", import.meta.url);
      heap = (await init({ module_or_path: isAddress(source) ? settings.fetch(source) : source })).memory;
    } catch (error) {
      engine = undefined;
      throw new DownloadError(`the sampler's WebAssembly: ${error.message}`, { cause: error });
    }
  })();
  return engine;
}

/** The engine's backend. Only pages and workers search for a GPU: in Node, for example, the search stops the engine. */
function backendOf(backend) {
  if (!BACKENDS.includes(backend)) {
    throw new RequestError(`backend: expected one of ${BACKENDS.join(", ")}, found ${backend}`);
  }
  if (backend === "cpu" || (globalThis.navigator?.gpu && (globalThis.Window || globalThis.WorkerGlobalScope))) {
    return backend;
  }
  if (backend !== "auto") throw new NoWebGpuError("there is no WebGPU here");
  return "cpu";
}

/** Yields to the page, so that it can paint or abort. `scheduler.yield()` would resume before timers run. */
const pause = () =>
  new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => resolve(port1.close());
    port2.postMessage(null);
  });

/** Waits for an adapter: after a crash of its GPU process, a browser has none for a moment. */
async function waitForAdapter() {
  for (let tries = 0; tries < 20 && !(await navigator.gpu?.requestAdapter()); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}

function seedOf(value, name = "seed") {
  const whole = typeof value === "bigint" || Number.isSafeInteger(value);
  if (!whole || value < 0 || BigInt(value) > LARGEST_SEED) {
    throw new RequestError(`${name}: expected a whole number below 2^53 or a BigInt below 2^64, found ${value}`);
  }
  return BigInt(value);
}

function countOf(value, name, most) {
  if (!Number.isInteger(value) || value < 1 || value > most) {
    throw new RequestError(`${name}: expected a whole number from 1 to ${most}, found ${value}`);
  }
  return value;
}

/** The number of a class, from its number or name; 0 if no label is given. Refuses a prompt that nothing reads. */
function labelOf(value, { numClasses, classes, text }, { prompt }) {
  if (prompt != null && !text) throw new RequestError(`prompt: this model reads no text, found ${prompt}`);
  if ((value ?? "") === "") return 0;
  if (!numClasses) throw new RequestError(`label: this model has no classes, found ${value}`);
  const named = classes.indexOf(value);
  const label = named >= 0 ? named : Number(value);
  if (Number.isInteger(label) && label >= 0 && label < numClasses) return label;
  const names = classes.length ? ` or one of ${classes.slice(0, 20).join(", ")}` : "";
  throw new RequestError(`label: expected 0 to ${numClasses - 1}${names}, found ${value}`);
}

/** A function that loads the bytes of a model. */
function sourceOf(model) {
  const held = (read) => async ({ signal }) => {
    check(signal);
    return { bytes: await read() };
  };
  if (isAddress(model)) {
    const url = resolve(model);
    return (options) => download(url, options);
  }
  if (model instanceof Blob) return held(async () => new Uint8Array(await model.arrayBuffer()));
  if (model instanceof ArrayBuffer) return held(async () => new Uint8Array(model));
  if (ArrayBuffer.isView(model)) {
    return held(async () => new Uint8Array(model.buffer, model.byteOffset, model.byteLength));
  }
  throw new RequestError("model: expected a URL, an ArrayBuffer, a typed array or a Blob");
}

/** Loads a model and creates an engine for it. */
async function open(source, backend, options) {
  const [file] = await Promise.all([source(options), start()]);
  check(options.signal);
  try {
    // The description of a pipeline with text begins with this word.
    const head = new TextDecoder().decode(file.bytes.subarray(0, 64));
    const { load } = head.includes('"pipeline') ? await import("./text.js") : Engine;
    const opened = await load(file.bytes, backend);
    // Not awaited: the page does not wait for the disk.
    file.keep?.();
    return opened;
  } catch (error) {
    const known = typed(error);
    if (!(known instanceof CorruptModelError && file.cached)) throw known;
    // The cached file is damaged; download it again.
    await file.forget();
    return open(source, backend, options);
  }
}

/** A loaded model. */
export class Sampler {
  static #key = Symbol();
  #engine;
  #info;
  #device = {};
  #last = Promise.resolve();

  constructor(key, engine) {
    if (key !== Sampler.#key) throw new TypeError("use Sampler.load()");
    this.#engine = engine;
    this.#info = engine.describe();
  }

  /** Sets the addresses of the WebAssembly and of the worker's script. */
  static configure(options) {
    if (engine && options?.wasm !== undefined) {
      throw new RequestError("configure: the WebAssembly is already loading; call configure before the first load");
    }
    configure(options);
  }

  /** Loads a model from an address, bytes or a file. */
  static async load(model, { backend = "auto", onProgress, signal, cache = true } = {}) {
    const place = backendOf(backend);
    const source = sourceOf(model);
    const opened = await open(source, place, { onProgress, signal, cache });
    if (signal?.aborted) opened.free();
    check(signal);
    return new Sampler(Sampler.#key, opened);
  }

  /** Properties of the model and of its device. */
  get info() {
    this.#open();
    return { heap: heap.buffer.byteLength, ...this.#info };
  }

  /** Samples images from the seeds `seed, seed + 1, ...`. */
  async sample({ seed = 0, label, steps = this.#steps, count = 1, signal, ...text } = {}) {
    const first = seedOf(seed);
    countOf(steps, "steps", MOST_STEPS);
    countOf(count, "count", MOST_IMAGES);
    return this.#enqueue(signal, async (engine) => {
      const info = this.#info;
      const number = labelOf(label, info, text);
      // The noise of all steps is drawn before.
      const batch = info.backend === "cpu" || steps > 99 ? 1 : BATCH;
      const images = [];
      while (images.length < count) {
        if (images.length) await pause();
        check(signal);
        const from = BigInt.asUintN(64, first + BigInt(images.length));
        const bytes = await engine.sample(from, from, 0, number, steps, Math.min(batch, count - images.length), text);
        images.push(...toImages(bytes, info));
      }
      return images;
    });
  }

  /** Draws one image to a canvas, whose size becomes that of the image. */
  async draw(canvas, { seed = 0, ...options } = {}) {
    const from = seedOf(seed);
    return this.#paint(canvas, from, from, 0, options);
  }

  /** Draws an image interpolated from one seed (`weight` 0) to another (1). */
  async interpolate(canvas, seedA, seedB, weight, options = {}) {
    const [from, to] = [seedOf(seedA, "seedA"), seedOf(seedB, "seedB")];
    if (!(weight >= 0 && weight <= 1)) {
      throw new RequestError(`weight: expected a number from 0 to 1, found ${weight}`);
    }
    // Between a seed and itself, the noise would not be normal.
    return this.#paint(canvas, from, to, from === to ? 0 : weight, options);
  }

  /** Destroys the GPU device, as the browser may at any time. For tests. */
  loseDevice() {
    this.#open().loseDevice();
  }

  /** Frees the memory once the calls made before are finished. Later calls fail. */
  free() {
    const engine = this.#engine;
    this.#engine = null;
    this.#last = this.#last.then(() => engine?.free());
  }

  #open() {
    if (!this.#engine) throw new RequestError("this sampler has been freed");
    return this.#engine;
  }

  /** Runs `task` after all earlier calls, and reopens a lost GPU device before. */
  #enqueue(signal, task) {
    // Now, not in the task's turn: `free` may be called before.
    const engine = this.#open();
    const result = this.#last.then(async () => {
      check(signal);
      try {
        if (engine.isLost()) {
          await waitForAdapter();
          await engine.recover();
          this.#info = engine.describe();
          // Surfaces of canvases belong to the old device.
          this.#device = {};
        }
        const made = await task(engine);
        // The engine cannot be queried during a call, so `info` is updated after each one.
        this.#info = engine.describe();
        return made;
      } catch (error) {
        throw typed(error);
      }
    });
    this.#last = result.catch(() => {});
    return result;
  }

  /** Default number of evaluations. */
  get #steps() {
    return this.#info.steps ?? 1;
  }

  async #paint(canvas, from, to, weight, { label, steps = this.#steps, signal, ...text }) {
    countOf(steps, "steps", MOST_STEPS);
    if (typeof canvas?.getContext !== "function") {
      throw new RequestError("canvas: expected a canvas element or an OffscreenCanvas");
    }
    return this.#enqueue(signal, async (engine) => {
      const info = this.#info;
      const number = labelOf(label, info, text);
      // Setting the size clears a canvas, so only a different size is set.
      if (canvas.width !== info.width) canvas.width = info.width;
      if (canvas.height !== info.height) canvas.height = info.height;
      // A canvas keeps the type of its first context.
      if (engine.surface && info.backend !== "cpu" && canvas.getContext("webgpu")) {
        let [device, surface] = surfaces.get(canvas) ?? [];
        if (device !== this.#device) surfaces.set(canvas, [this.#device, (surface = engine.surface(canvas))]);
        return engine.draw(surface, from, to, weight, number, steps);
      }
      const context = canvas.getContext("2d");
      if (!context) throw new RequestError("canvas: it has a WebGPU context; a sampler on the CPU needs another canvas");
      const [image] = toImages(await engine.sample(from, to, weight, number, steps, 1, text), info);
      context.putImageData(image, 0, 0);
    });
  }
}

/** Splits bytes of pixels into images: `ImageData`, or in Node plain objects with the same properties. */
function toImages(bytes, { width, height }) {
  const pixels = new Uint8ClampedArray(bytes.buffer, bytes.byteOffset, bytes.length);
  const length = 4 * width * height;
  const images = [];
  for (let at = 0; at < pixels.length; at += length) {
    const data = pixels.slice(at, at + length);
    const plain = { data, width, height, colorSpace: "srgb" };
    images.push(globalThis.ImageData ? new ImageData(data, width, height) : plain);
  }
  return images;
}
