// `ccm-web/worker` is the script of a `WorkerSampler`'s worker, for bundlers that need it as an entry of their own. It
// exports nothing.
export {};
