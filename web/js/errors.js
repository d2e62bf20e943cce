// Errors of this package. Each is an `Error` with a `code`. The engine throws errors with a code; `typed` turns them
// into instances of these classes.

/** Base class of all errors of this package; its own code is `internal`. */
export class CcmError extends Error {
  constructor(message, options) {
    super(message, options);
    // Not `new.target.name`: bundlers rename classes.
    this.name = new.target.title;
    this.code = new.target.code;
  }
}
CcmError.title = "CcmError";
CcmError.code = "internal";

const classes = [];
function define(title, code, name = title) {
  const made = { [title]: class extends CcmError {} }[title];
  classes.push(Object.assign(made, { title: name, code }));
  return made;
}

/** There is no WebGPU, or only a software adapter that the caller did not ask for. */
export const NoWebGpuError = define("NoWebGpuError", "no-webgpu");
/** A Web Worker cannot start here. `Sampler` works without one. */
export const NoWorkerError = define("NoWorkerError", "no-worker");
/** The model file is truncated, is not a model, or describes an invalid network. */
export const CorruptModelError = define("CorruptModelError", "corrupt");
/** The model needs larger buffers than the adapter has. */
export const ModelTooLargeError = define("ModelTooLargeError", "too-large");
/** The GPU device was lost during the call; the next call opens it again. */
export const DeviceLostError = define("DeviceLostError", "device-lost");
/** The model or the WebAssembly could not be loaded. */
export const DownloadError = define("DownloadError", "download");
/** An argument is invalid, or the sampler has been freed. */
export const RequestError = define("RequestError", "request");
/** The signal was aborted. The error's `name` is `AbortError`, as for `fetch`. */
export const AbortedError = define("AbortedError", "aborted", "AbortError");

/** Converts an error of the engine, of a worker or of the browser into a `CcmError`. */
export function typed(error) {
  if (error instanceof CcmError) return error;
  if (error?.name === "AbortError") return new AbortedError(error.message, { cause: error });
  const found = classes.find(({ code }) => code === error?.code) ?? CcmError;
  return new found(error?.message ?? String(error), { cause: error });
}

/** Throws an `AbortedError` if the signal is aborted. */
export function check(signal) {
  if (signal?.aborted) throw new AbortedError("aborted", { cause: signal.reason });
}
