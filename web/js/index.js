// The package's front door. `<ccm-image>` is a second one, `element.js`, because importing it defines the element.

export * from "./errors.js";
export { WorkerSampler } from "./remote.js";
export { Sampler } from "./sampler.js";
