// Locations of the package's files: set by `Sampler.configure`, and by `node.js` in Node.

import { RequestError } from "./errors.js";

export const settings = {
  /** The WebAssembly: a URL, bytes or a `WebAssembly.Module`; undefined for the file beside this script. */
  wasm: undefined,
  /** As `wasm`, for models with text. */
  textWasm: undefined,
  /** URL of the worker's script; undefined for the file beside this script. */
  worker: undefined,
  /** Requests a URL. `node.js` adds `file:` URLs, which Node's `fetch` does not support. */
  fetch: (url, options) => fetch(url, options),
  /** Makes an address absolute. `node.js` also takes paths. */
  absolute: (address) => new URL(address, globalThis.document?.baseURI ?? globalThis.location?.href).href,
};

/** Whether a value is an address, not bytes. */
export const isAddress = (value) => typeof value === "string" || value instanceof URL;

/** The absolute URL of an address that may be relative to the page. */
export function resolve(address) {
  try {
    return settings.absolute(address);
  } catch (cause) {
    throw new RequestError(`${address}: not a valid URL`, { cause });
  }
}

/** Checks and keeps the options of `Sampler.configure`. */
export function configure(options) {
  const expected = "configure: expected { wasm, textWasm: URL, bytes or WebAssembly.Module, worker: URL }";
  if (Object(options) !== options) throw new RequestError(`${expected}, found ${options}`);
  const found = {};
  for (const [name, value] of Object.entries(options)) {
    const binary = [ArrayBuffer, WebAssembly.Module].some((type) => value instanceof type) || ArrayBuffer.isView(value);
    const place = ["wasm", "textWasm", "worker"].indexOf(name);
    if (binary && place >= 0 && place < 2) found[name] = value;
    else if (isAddress(value) && place >= 0) found[name] = resolve(value);
    else if (value !== undefined) throw new RequestError(`${expected}, found ${name}: ${value}`);
  }
  Object.assign(settings, found);
}
