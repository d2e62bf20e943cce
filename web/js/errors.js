// The errors that a page can react to. Each is an `Error` with a `code`; the engine sets the code, and the class
// follows from it.

/** Any error of this package: `code` tells them apart. */
export class CcmError extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = new.target.title ?? new.target.name;
    this.code = new.target.code;
  }
}
CcmError.code = "internal";

const define = (name, code) => {
  const made = { [name]: class extends CcmError {} }[name];
  made.code = code;
  return made;
};

/** The browser has no WebGPU, or only a software adapter that was not asked for. */
export const NoWebGpuError = define("NoWebGpuError", "no-webgpu");
/** The file is cut short, is no model, or describes a network that cannot be. */
export const CorruptModelError = define("CorruptModelError", "corrupt");
/** The model needs larger buffers than the adapter has. */
export const ModelTooLargeError = define("ModelTooLargeError", "too-large");
/** The GPU went away during the call; the next call starts it again. */
export const DeviceLostError = define("DeviceLostError", "device-lost");
/** The model could not be fetched. */
export const DownloadError = define("DownloadError", "download");
/** What was asked for does not exist: a class, a seed, a canvas of another kind. */
export const RequestError = define("RequestError", "request");
/** The signal was aborted. Its `name` is `AbortError`, as `fetch` has it. */
export const AbortedError = define("AbortedError", "aborted");
AbortedError.title = "AbortError";

const CLASSES = [
  NoWebGpuError,
  CorruptModelError,
  ModelTooLargeError,
  DeviceLostError,
  DownloadError,
  RequestError,
  AbortedError,
];

/** The class of an error that the engine threw, or that came from a worker. */
export function typed(error) {
  if (error instanceof CcmError) return error;
  if (error?.name === "AbortError") return new AbortedError(error.message, { cause: error });
  const found = CLASSES.find(({ code }) => code === error?.code) ?? CcmError;
  return new found(error?.message ?? String(error), { cause: error });
}

/** Throws if the signal is aborted. */
export function check(signal) {
  if (signal?.aborted) throw new AbortedError("aborted", { cause: signal.reason });
}
