// The package's entry in Node: adds loading of files. Browsers never download this script.

import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

import { settings } from "./settings.js";

/** Treats an address that is not a URL as a path relative to the working directory. A drive, as in `C:`, is a path. */
settings.absolute = (address) =>
  address instanceof URL || /^[a-z][a-z0-9+.-]+:/i.test(address) ? new URL(address).href : pathToFileURL(address).href;

settings.fetch = async (url, options) => {
  if (!String(url).startsWith("file:")) return fetch(url, options);
  const bytes = await readFile(new URL(url), { signal: options?.signal });
  // WebAssembly is compiled from a response only if it has this type; for models the type is ignored.
  return new Response(bytes, { headers: { "content-type": "application/wasm", "content-length": bytes.length } });
};

export * from "./index.js";
