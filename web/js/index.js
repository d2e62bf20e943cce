// The package's entry. `<ccm-image>` has an entry of its own, `element.js`, because importing it defines the element.

export {
  AbortedError,
  CcmError,
  CorruptModelError,
  DeviceLostError,
  DownloadError,
  ModelTooLargeError,
  NoWebGpuError,
  NoWorkerError,
  RequestError,
} from "./errors.js";
export { WorkerSampler } from "./remote.js";
export { Sampler } from "./sampler.js";
export { seedFrom } from "./seed.js";
