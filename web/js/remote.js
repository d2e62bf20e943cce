// `WorkerSampler`: a `Sampler` in a Web Worker of its own, so that the page stays smooth while a CPU makes images.
// Canvases are drawn to from the worker (`OffscreenCanvas`).

import { RequestError, check, typed } from "./errors.js";

function startWorker() {
  try {
    // Bundlers look for this very expression.
    return new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  } catch (error) {
    if (error.name !== "SecurityError") throw error;
    // A worker must be of the page's origin; one that imports from elsewhere is.
    const line = `import ${JSON.stringify(new URL("./worker.js", import.meta.url).href)};`;
    return new Worker(URL.createObjectURL(new Blob([line], { type: "text/javascript" })), { type: "module" });
  }
}

/** Canvases of all workers: to each the worker that owns it, and its number there. */
const owners = new WeakMap();

/** A model in a worker, ready to make images. */
export class WorkerSampler {
  #worker = startWorker();
  #calls = new Map();
  #next = 0;
  #info = null;
  #gone = new FinalizationRegistry((key) => this.#worker?.postMessage({ call: "forget", key }));

  /** Loads a model from a URL, bytes or a file, in a new worker. */
  static async load(model, { onProgress, signal, ...options } = {}) {
    check(signal);
    const sampler = new WorkerSampler();
    // An address means what it means in this page, not beside the worker's script.
    const address = typeof model === "string" || model instanceof URL;
    const source = address ? new URL(model, document.baseURI).href : model;
    try {
      await sampler.#call({ call: "load", model: source, options }, signal, [], onProgress);
    } catch (error) {
      sampler.free();
      throw error;
    }
    return sampler;
  }

  constructor() {
    this.#worker.addEventListener("message", ({ data }) => this.#hear(data));
    this.#worker.addEventListener("error", (event) => {
      const error = typed(new Error(event.message || "the sampler's worker could not be started"));
      for (const { reject } of this.#calls.values()) reject(error);
      this.#calls.clear();
    });
  }

  /** What the model is and what it runs on. */
  get info() {
    return this.#info;
  }

  /** Images from the seeds `seed, seed + 1, ...`. */
  sample({ signal, ...options } = {}) {
    return this.#call({ call: "sample", options }, signal);
  }

  /** Draws one image over the whole of a canvas. */
  async draw(canvas, { signal, ...options } = {}) {
    const [place, transfer] = this.#place(canvas);
    return this.#call({ call: "draw", canvas: place, options }, signal, transfer);
  }

  /** Draws the image that lies at `weight`, from 0 to 1, of the way from one seed to another. */
  async interpolate(canvas, seedA, seedB, weight, { signal, ...options } = {}) {
    const [place, transfer] = this.#place(canvas);
    const message = { call: "interpolate", canvas: place, seeds: [seedA, seedB], weight, options };
    return this.#call(message, signal, transfer);
  }

  /** Ends the worker; what it has not answered fails. */
  free() {
    this.#worker?.terminate();
    this.#worker = null;
    const error = new RequestError("this sampler has been freed");
    for (const { reject } of this.#calls.values()) reject(error);
    this.#calls.clear();
  }

  /** A canvas goes to the worker once, and has a number from then on. */
  #place(canvas) {
    const owned = owners.get(canvas);
    if (owned?.sampler === this) return [{ key: owned.key }, []];
    if (owned) throw new RequestError("canvas: it belongs to another worker");
    let moved = canvas;
    if (typeof canvas?.transferControlToOffscreen === "function") {
      try {
        moved = canvas.transferControlToOffscreen();
      } catch (error) {
        throw new RequestError(`canvas: it cannot be drawn to from a worker (${error.message})`, { cause: error });
      }
    } else if (!(canvas instanceof OffscreenCanvas)) {
      throw new RequestError("canvas: expected a canvas element or an OffscreenCanvas");
    }
    const key = this.#next++;
    owners.set(canvas, { sampler: this, key });
    this.#gone.register(canvas, key);
    return [{ key, canvas: moved }, [moved]];
  }

  async #call(message, signal, transfer = [], onProgress) {
    check(signal);
    if (!this.#worker) throw new RequestError("this sampler has been freed");
    const id = this.#next++;
    const abort = () => this.#worker?.postMessage({ call: "abort", id });
    signal?.addEventListener("abort", abort);
    try {
      return await new Promise((resolve, reject) => {
        this.#calls.set(id, { resolve, reject, onProgress });
        this.#worker.postMessage({ ...message, id }, transfer);
      });
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  #hear({ id, progress, value, info, error }) {
    const call = this.#calls.get(id);
    if (!call) return;
    if (progress) return call.onProgress?.(progress);
    this.#calls.delete(id);
    if (error) return call.reject(typed(error));
    this.#info = info;
    call.resolve(value);
  }
}
