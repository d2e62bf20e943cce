// Downloads model files as streams, with progress, and keeps them in the Cache API. A kept file is used again unless
// the server reports that the file has changed.

import { DownloadError, check } from "./errors.js";
import { settings } from "./settings.js";

const CACHE = "ccm-models";

/** The cache, or null where there is none: without HTTPS, in sandboxed frames, in some private windows, in Node. */
async function openCache() {
  try {
    return (await globalThis.caches?.open(CACHE)) ?? null;
  } catch {
    return null;
  }
}

/** The bytes of a response. Calls `report` with the number of bytes received after each piece. */
async function collect(response, total, report, signal) {
  let bytes = new Uint8Array(total ?? 1 << 20);
  let loaded = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    check(signal);
    if (done) break;
    if (loaded + value.length > bytes.length) {
      const grown = new Uint8Array(Math.max(2 * bytes.length, loaded + value.length));
      grown.set(bytes.subarray(0, loaded));
      bytes = grown;
    }
    bytes.set(value, loaded);
    loaded += value.length;
    report(loaded);
  }
  return bytes.subarray(0, loaded);
}

/** Whether the server's file is the kept one, by its `etag` or date; true if the server does not answer. */
async function unchanged(url, kept, signal) {
  const tag = (headers) => headers.get("etag") ?? headers.get("last-modified");
  try {
    const answer = await settings.fetch(url, { method: "HEAD", cache: "no-cache", signal });
    const [now, then] = [tag(answer.headers), tag(kept.headers)];
    return !answer.ok || !now || !then || now === then;
  } catch {
    return true;
  }
}

/**
 * Downloads a model file, or takes it from the cache.
 *
 * Returns `{ bytes, cached, keep, forget }`. Call `keep()` once the bytes are known to be a valid model: it puts them
 * into the cache. `forget()` removes them from it.
 */
export async function download(url, { onProgress, signal, cache = true } = {}) {
  check(signal);
  try {
    const kept = cache ? await openCache() : null;
    const found = await kept?.match(url);
    const fresh = found && (await unchanged(url, found, signal));
    const response = fresh ? found : await settings.fetch(url, { signal });
    if (!response.ok) throw new DownloadError(`${url}: the server answers ${response.status}`);
    // The length of a compressed response is the compressed length.
    const length = response.headers.get("content-encoding") ? 0 : Number(response.headers.get("content-length"));
    const total = length > 0 ? length : null;
    const report = (loaded) => onProgress?.({ loaded, total: total && Math.max(total, loaded), cached: !!fresh });
    const bytes = await collect(response, total, report, signal);
    const headers = new Headers({ "content-type": "application/octet-stream", "content-length": bytes.length });
    for (const name of ["etag", "last-modified"]) {
      if (response.headers.has(name)) headers.set(name, response.headers.get(name));
    }
    return {
      bytes,
      cached: !!fresh,
      // A full disk is not an error: the next visit downloads the file again.
      keep: async () => !fresh && (await kept?.put(url, new Response(bytes, { headers })).catch(() => {})),
      forget: async () => kept?.delete(url),
    };
  } catch (error) {
    check(signal);
    if (error instanceof DownloadError) throw error;
    throw new DownloadError(`${url}: ${error.message}`, { cause: error });
  }
}
