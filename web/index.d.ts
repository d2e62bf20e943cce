// Types of the package's entry, `js/index.js`.

// Browser types, which are missing in projects without the library `dom`, such as those for Node.
type Instance<T, Otherwise> = T extends { prototype: infer I } ? I : Otherwise;
type Global<Name extends string, Otherwise> = typeof globalThis extends { [K in Name]: infer T }
  ? Instance<T, Otherwise>
  : Otherwise;
type Signal = Global<"AbortSignal", never>;
type Canvas = Global<"HTMLCanvasElement", never> | Global<"OffscreenCanvas", never>;
type Url = Global<"URL", never>;

/** Pixels of an image: `ImageData` in browsers, and an object with the same properties in Node. */
export type Image = Global<
  "ImageData",
  {
    /** RGBA, row by row: `[height, width, 4]`. */
    readonly data: Uint8ClampedArray;
    readonly width: number;
    readonly height: number;
    readonly colorSpace: "srgb";
  }
>;

/** Where a model runs. `auto` is a hardware GPU if there is one, otherwise the CPU. */
export type Backend =
  | "auto"
  /** A hardware GPU; without one, `load` fails with a `NoWebGpuError`. */
  | "webgpu"
  /** Any adapter of the browser, including software adapters. */
  | "webgpu-software"
  | "cpu";

/** A model file: its address, its bytes, or a `Blob` such as a file. In Node an address may be a path. */
export type ModelSource = string | Url | ArrayBuffer | ArrayBufferView | Global<"Blob", never>;

/** Options of `Sampler.configure`. Addresses are relative to the page, or in Node to the working directory. */
export interface Configuration {
  /** The WebAssembly (`ccm-web/wasm`): its address, its bytes, or a compiled `WebAssembly.Module`. */
  wasm?: string | Url | ArrayBuffer | ArrayBufferView | WebAssemblyModule | undefined;
  /** The WebAssembly for models with text (`ccm-web/text-wasm`), as `wasm`. */
  textWasm?: string | Url | ArrayBuffer | ArrayBufferView | WebAssemblyModule | undefined;
  /** Address of the script of `WorkerSampler`'s workers (`ccm-web/worker`). */
  worker?: string | Url | undefined;
}

type WebAssemblyModule = typeof globalThis extends { WebAssembly: { Module: infer T } }
  ? Instance<T, never> & object
  : never;

export interface Progress {
  /** Bytes received. */
  loaded: number;
  /** Bytes of the file; null if the server does not send its length. */
  total: number | null;
  /** Whether the file comes from the Cache API. */
  cached: boolean;
}

export interface LoadOptions {
  /** Default `auto`. */
  backend?: Backend;
  onProgress?: (progress: Progress) => void;
  signal?: Signal;
  /** Whether a model from an address is read from and written to the Cache API. Default true. */
  cache?: boolean;
}

/** Number or name of a class. */
export type Label = number | string;

export interface DrawOptions {
  /** Class of the image, for models with classes; default the first. */
  label?: Label | null;
  /** Network evaluations, 1 to 10000; default 1, or 50 for a model with text that is not a student. */
  steps?: number;
  /** What the image shows. Models with text need it, other models refuse it. */
  prompt?: string | null;
  /** What guidance leads away from; default the empty text, or zeros if the model says so. Only for models with text. */
  negative?: string | null;
  /** Guidance scale; 1 is no guidance and takes half the time. Default 5, for a student 1. Only for models with text. */
  guidance?: number | null;
  /** Initial latents of one image, `[channels, height, width]`, in place of the seed's; for comparisons. Only with text. */
  noise?: Float32Array;
  signal?: Signal;
}

export interface SeedOptions extends DrawOptions {
  /** A whole number below 2^53, or a BigInt below 2^64; default 0. The same seed gives the same image. */
  seed?: number | bigint;
}

export interface SampleOptions extends SeedOptions {
  /** Number of images, from the seeds `seed`, `seed + 1`, ...; default 1. */
  count?: number;
}

export interface Info {
  /** `webgpu` or `cpu`. */
  backend: string;
  /** Name of the device, if the browser reveals it. */
  adapter: string;
  /** Whether the adapter is a GPU emulated on the CPU. */
  software: boolean;
  /** Number format of the computation: `f32` or `f16`. */
  precision: string;
  /** Parameters of the network. */
  parameters: number;
  /** Bytes of weights and buffers. */
  memory: number;
  /** Bytes of the WebAssembly heap, which all samplers of a thread share. */
  heap: number;
  /** Size of the images in pixels. */
  width: number;
  height: number;
  /** 1 (grey) or 3 (RGB). */
  channels: number;
  /** Number of classes; null for a model without classes. */
  numClasses: number | null;
  /** Names of the classes; empty if the model has none. */
  classes: string[];
  /** `teacher` or `student`. */
  role: string;
  /** Preset or checkpoint of the model. */
  source: string;
  /** Training data. */
  data: string;
  /** Whether the model reads a prompt; absent if it does not. */
  text?: true;
  /** Default number of network evaluations of a model with text. */
  steps?: number;
}

/**
 * The seed of a text, such as a name: the first eight bytes of the SHA-256 of its UTF-8 form, as a big-endian number.
 * Fails with a `RequestError` on pages that are neither from https nor from localhost.
 */
export function seedFrom(text: string): Promise<bigint>;

/** A loaded model. Calls run one after the other. */
export class Sampler {
  private constructor();
  /**
   * Sets the addresses of the WebAssembly and of the worker's script, for bundlers that do not follow
   * `new URL(..., import.meta.url)`. Applies to `Sampler`, `WorkerSampler` and `<ccm-image>`.
   *
   * Call it before the first `load`. Throws a `RequestError` on invalid options, and if `wasm` is set after this
   * thread has begun to load the WebAssembly. Workers keep the configuration that they were started with.
   */
  static configure(options: Configuration): void;
  /** Loads a model from an address, bytes or a file. */
  static load(model: ModelSource, options?: LoadOptions): Promise<Sampler>;
  /** Properties of the model and of its device. */
  readonly info: Info;
  /** Samples images from the seeds `seed`, `seed + 1`, ... */
  sample(options?: SampleOptions): Promise<Image[]>;
  /** Draws one image to a canvas, whose size becomes that of the image. A GPU draws without copying to the CPU. */
  draw(canvas: Canvas, options?: SeedOptions): Promise<void>;
  /** Draws an image interpolated from one seed (`weight` 0) to another (1). */
  interpolate(
    canvas: Canvas,
    seedA: number | bigint,
    seedB: number | bigint,
    weight: number,
    options?: DrawOptions,
  ): Promise<void>;
  /** Destroys the GPU device, as the browser may at any time. For tests. */
  loseDevice(): void;
  /** Frees the memory once the calls made before are finished. Later calls fail with a `RequestError`. */
  free(): void;
}

/**
 * A `Sampler` in its own Web Worker. Drawing to a canvas transfers the canvas to the worker. If no worker can start,
 * `load` fails with a `NoWorkerError`; `Sampler` works without workers.
 */
export class WorkerSampler {
  private constructor();
  /** Loads a model from an address, bytes or a file, in a new worker. */
  static load(model: ModelSource, options?: LoadOptions): Promise<WorkerSampler>;
  /** Properties of the model and of its device. */
  readonly info: Info;
  /** Samples images from the seeds `seed`, `seed + 1`, ... */
  sample(options?: SampleOptions): Promise<Image[]>;
  /** Draws one image to a canvas, whose size becomes that of the image. */
  draw(canvas: Canvas, options?: SeedOptions): Promise<void>;
  /** Draws an image interpolated from one seed (`weight` 0) to another (1). */
  interpolate(
    canvas: Canvas,
    seedA: number | bigint,
    seedB: number | bigint,
    weight: number,
    options?: DrawOptions,
  ): Promise<void>;
  /** Ends the worker once the calls made before are finished. Later calls fail with a `RequestError`. */
  free(): void;
}

export type ErrorCode =
  | "no-webgpu"
  | "no-worker"
  | "corrupt"
  | "too-large"
  | "device-lost"
  | "download"
  | "request"
  | "aborted"
  | "internal";

/** Base class of all errors of this package. */
export class CcmError extends Error {
  readonly code: ErrorCode;
}
/** There is no WebGPU, or only a software adapter that the caller did not ask for. */
export class NoWebGpuError extends CcmError {}
/**
 * A Web Worker cannot start here: a content security policy or a sandboxed frame forbids it, its script is missing, or
 * there are no workers, as in Node.
 */
export class NoWorkerError extends CcmError {}
/** The model file is truncated, is not a model, or describes an invalid network. */
export class CorruptModelError extends CcmError {}
/** The model needs larger buffers than the adapter has. */
export class ModelTooLargeError extends CcmError {}
/** The GPU device was lost during the call; the next call opens it again. */
export class DeviceLostError extends CcmError {}
/** The model or the WebAssembly could not be loaded. */
export class DownloadError extends CcmError {}
/** An argument is invalid, or the sampler has been freed. */
export class RequestError extends CcmError {}
/** The signal was aborted; `name` is `AbortError`. */
export class AbortedError extends CcmError {}
