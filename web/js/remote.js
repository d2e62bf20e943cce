// `WorkerSampler`: a `Sampler` in its own Web Worker, so that the page stays responsive while the CPU computes.
// The worker draws to canvases through `OffscreenCanvas`.

import { AbortedError, CcmError, NoWorkerError, RequestError, check, typed } from "./errors.js";
import { isAddress, resolve, settings } from "./settings.js";

const cannotStart = (why, cause) => new NoWorkerError(`a Web Worker cannot start here: ${why}`, { cause });

function startWorker() {
  try {
    try {
      if (settings.worker) return new Worker(settings.worker, { type: "module" });
      // Bundlers search for exactly this expression.
      return new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    } catch (error) {
      if (error.name !== "SecurityError") throw error;
      // A worker's script must have the page's origin, but it may import scripts of other origins.
      const line = `import ${JSON.stringify(settings.worker ?? new URL("./worker.js", import.meta.url).href)};`;
      return new Worker(URL.createObjectURL(new Blob([line], { type: "text/javascript" })), { type: "module" });
    }
  } catch (error) {
    throw cannotStart(error.message, error);
  }
}

/** Canvases of all workers: for each, the sampler that owns it and its key in the worker. */
const owners = new WeakMap();

/** A model loaded in a worker. */
export class WorkerSampler {
  #worker = startWorker();
  #calls = new Map();
  #next = 0;
  #info = null;
  /** Whether the worker has canvases. */
  #draws = false;
  /** The error of all further calls, once the sampler is freed or the worker has ended. */
  #over = null;
  #gone = new FinalizationRegistry((key) => this.#worker.postMessage({ call: "forget", key }));

  /** Loads a model from an address, bytes or a file, in a new worker. */
  static async load(model, { onProgress, signal, ...options } = {}) {
    check(signal);
    // Relative to the page, not to the worker's script.
    const source = isAddress(model) ? resolve(model) : model;
    const sampler = new WorkerSampler();
    // Also ends a worker whose script is still loading.
    const abort = () => sampler.#end(new AbortedError("aborted", { cause: signal.reason }));
    signal?.addEventListener("abort", abort);
    try {
      await sampler.#call({ call: "load", model: source, places: { wasm: settings.wasm, textWasm: settings.textWasm }, options }, undefined, [], onProgress);
      return sampler;
    } catch (error) {
      sampler.free();
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  constructor() {
    this.#worker.addEventListener("message", ({ data }) => this.#receive(data));
    // A blocked or missing script is an event, not an exception of the constructor.
    this.#worker.addEventListener("error", (event) => {
      event.preventDefault();
      const why = event.message || "its script is blocked or missing";
      this.#end(this.#info ? new CcmError(`the sampler's worker has failed: ${why}`) : cannotStart(why));
    });
  }

  /** Properties of the model and of its device. */
  get info() {
    this.#open();
    return this.#info;
  }

  /** Samples images from the seeds `seed, seed + 1, ...`. */
  async sample({ signal, ...options } = {}) {
    return this.#call({ call: "sample", options }, signal);
  }

  /** Draws one image to a canvas, whose size becomes that of the image. */
  async draw(canvas, { signal, ...options } = {}) {
    return this.#paint(canvas, { call: "draw", options }, signal);
  }

  /** Draws an image interpolated from one seed (`weight` 0) to another (1). */
  async interpolate(canvas, seedA, seedB, weight, { signal, ...options } = {}) {
    return this.#paint(canvas, { call: "interpolate", seeds: [seedA, seedB], weight, options }, signal);
  }

  /** Ends the worker once the calls made before are finished. Later calls fail. */
  free() {
    this.#over ??= new RequestError("this sampler has been freed");
    if (this.#calls.size) return;
    // The worker must not end before the next frame, which shows its drawings.
    if (this.#draws) this.#worker.postMessage({ call: "close" });
    else this.#worker.terminate();
  }

  /** Ends the worker now; unfinished and later calls fail with `error`. */
  #end(error) {
    this.#over = error;
    for (const { reject } of this.#calls.values()) reject(error);
    this.#calls.clear();
    this.#worker.terminate();
  }

  #open(signal) {
    check(signal);
    if (this.#over) throw this.#over;
  }

  #paint(canvas, message, signal) {
    this.#open(signal);
    const [place, transfer] = this.#place(canvas);
    return this.#call({ ...message, canvas: place }, signal, transfer);
  }

  /** Identifies a canvas to the worker. The first time, transfers the canvas. */
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
    this.#draws = true;
    return [{ key, canvas: moved }, [moved]];
  }

  async #call(message, signal, transfer = [], onProgress) {
    this.#open(signal);
    const id = this.#next++;
    const abort = () => this.#worker.postMessage({ call: "abort", id });
    signal?.addEventListener("abort", abort);
    try {
      return await new Promise((resolve, reject) => {
        this.#worker.postMessage({ ...message, id }, transfer);
        this.#calls.set(id, { resolve, reject, onProgress });
      });
    } catch (error) {
      throw error.name === "DataCloneError" ? new RequestError(error.message, { cause: error }) : error;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  #receive({ id, progress, value, info, error }) {
    const call = this.#calls.get(id);
    if (!call) return;
    if (progress) return call.onProgress?.(progress);
    this.#calls.delete(id);
    if (error) call.reject(typed(error));
    else {
      this.#info = info;
      call.resolve(value);
    }
    if (this.#over) this.free();
  }
}
