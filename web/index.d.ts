// Types of the package's front door, `js/index.js`.

/** Where a model runs. `auto` takes a real GPU, otherwise the CPU. */
export type Backend =
  | "auto"
  /** A real GPU, or `NoWebGpuError`. */
  | "webgpu"
  /** Any GPU that the browser offers, one in name only included. */
  | "webgpu-software"
  | "cpu";

/** A model file: its address, its bytes, or a file that the visitor chose. */
export type ModelSource = string | URL | ArrayBuffer | ArrayBufferView | Blob;

export interface Progress {
  /** Bytes that have arrived. */
  loaded: number;
  /** Bytes of the file; null where the server does not say. */
  total: number | null;
  /** Whether they come from the Cache API. */
  cached: boolean;
}

export interface LoadOptions {
  /** Default `auto`. */
  backend?: Backend;
  onProgress?: (progress: Progress) => void;
  signal?: AbortSignal;
  /** Whether a model from an address is kept in, and taken from, the Cache API. Default true. */
  cache?: boolean;
}

/** The number of a class, or its name. */
export type Label = number | string;

export interface DrawOptions {
  /** Class of the image, for models that have classes; default the first. */
  label?: Label | null;
  /** Evaluations of the network, 1 to 10000; default 1. */
  steps?: number;
  signal?: AbortSignal;
}

export interface SeedOptions extends DrawOptions {
  /** A whole number from 0 to 2^53, or a BigInt below 2^64; default 0. The same seed gives the same picture. */
  seed?: number | bigint;
}

export interface SampleOptions extends SeedOptions {
  /** Number of images, from the seeds `seed`, `seed + 1`, ...; default 1. */
  count?: number;
}

export interface Info {
  /** `webgpu` or `cpu`. */
  backend: string;
  /** The processor, as far as the browser names it. */
  adapter: string;
  /** Whether a GPU is one in name only, computed on the CPU. */
  software: boolean;
  /** Kind of the numbers computed with: `f32` or `f16`. */
  precision: string;
  /** Parameters of the network. */
  parameters: number;
  /** Bytes of weights and buffers. */
  memory: number;
  /** Bytes of the WebAssembly heap, which all samplers of a page share. */
  heap: number;
  /** Size of the images in pixels. */
  width: number;
  height: number;
  /** 1 (grey) or 3 (RGB). */
  channels: number;
  /** Number of classes; null for a model without. */
  numClasses: number | null;
  /** Names of the classes, where the model has names. */
  classes: string[];
  /** `teacher`, `student` or `imported`. */
  role: string;
  /** Preset or checkpoint that the model comes from. */
  source: string;
  /** What it was trained on. */
  data: string;
}

/** A model, ready to make images. Calls are answered one after the other. */
export class Sampler {
  private constructor();
  static load(model: ModelSource, options?: LoadOptions): Promise<Sampler>;
  readonly info: Info;
  sample(options?: SampleOptions): Promise<ImageData[]>;
  /** Draws one image over the whole of a canvas, which takes its size; on a GPU nothing is read back. */
  draw(canvas: HTMLCanvasElement | OffscreenCanvas, options?: SeedOptions): Promise<void>;
  /** Draws the image at `weight`, from 0 to 1, of the way from one seed to another. */
  interpolate(
    canvas: HTMLCanvasElement | OffscreenCanvas,
    seedA: number | bigint,
    seedB: number | bigint,
    weight: number,
    options?: DrawOptions,
  ): Promise<void>;
  /** Takes the GPU away, as the browser may at any time; for tests of what a page does then. */
  loseDevice(): void;
  /** Gives the memory back. */
  free(): void;
}

/** A `Sampler` in a Web Worker of its own. Canvases that it has drawn to belong to it for good. */
export class WorkerSampler {
  private constructor();
  static load(model: ModelSource, options?: LoadOptions): Promise<WorkerSampler>;
  readonly info: Info;
  sample(options?: SampleOptions): Promise<ImageData[]>;
  draw(canvas: HTMLCanvasElement | OffscreenCanvas, options?: SeedOptions): Promise<void>;
  interpolate(
    canvas: HTMLCanvasElement | OffscreenCanvas,
    seedA: number | bigint,
    seedB: number | bigint,
    weight: number,
    options?: DrawOptions,
  ): Promise<void>;
  free(): void;
}

export type ErrorCode =
  | "no-webgpu"
  | "corrupt"
  | "too-large"
  | "device-lost"
  | "download"
  | "request"
  | "aborted"
  | "internal";

/** Any error of this package. */
export class CcmError extends Error {
  readonly code: ErrorCode;
}
/** No WebGPU, or only a software adapter that was not asked for. */
export class NoWebGpuError extends CcmError {}
/** A file that is cut short, is no model, or describes a network that cannot be. */
export class CorruptModelError extends CcmError {}
/** A model that needs larger buffers than the adapter has. */
export class ModelTooLargeError extends CcmError {}
/** The GPU went away during the call; the next call opens it again. */
export class DeviceLostError extends CcmError {}
/** A model that could not be fetched. */
export class DownloadError extends CcmError {}
/** Something was asked for that does not exist. */
export class RequestError extends CcmError {}
/** The signal was aborted; `name` is `AbortError`. */
export class AbortedError extends CcmError {}
