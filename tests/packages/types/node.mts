// The types in a strict project for Node, without the library `dom`.

import { type Image, Sampler } from "ccm-web";

const { signal } = new AbortController();
const sampler = await Sampler.load(new URL("file:///model.safetensors"), { backend: "cpu", signal });
await Sampler.load(Buffer.alloc(8));
// @ts-expect-error: neither an address nor bytes.
await Sampler.load(7);
const [image] = await sampler.sample();
const typed: Image = image!;
export const sum: number = typed.data.reduce((a, b) => a + b, 0) + typed.width;
