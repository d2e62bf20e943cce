// Seeds from texts.

import { RequestError } from "./errors.js";

/** The seed of a text: the first eight bytes of the SHA-256 of its UTF-8 form, as a big-endian number. */
export async function seedFrom(text) {
  const { subtle } = globalThis.crypto ?? {};
  if (!subtle) throw new RequestError("seedFrom: only pages from https or localhost can hash a text");
  const hash = await subtle.digest("SHA-256", new TextEncoder().encode(text));
  return new DataView(hash).getBigUint64(0);
}
