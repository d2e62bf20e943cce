// The package in Node: `node main.mjs MODEL URL` prints results as JSON.

import { readFile } from "node:fs/promises";
import { relative } from "node:path";
import { pathToFileURL } from "node:url";

import * as ccm from "ccm-web";
import { CcmImage } from "ccm-web/element";

const [path, url] = process.argv.slice(2);
const bytes = await readFile(path);
const fault = (task) => task().then(() => "none", (error) => `${error.name} ${error.code}`);
const sources = {
  path,
  relative: relative(".", path),
  file: pathToFileURL(path),
  "file as text": pathToFileURL(path).href,
  http: url,
  buffer: bytes,
  blob: new Blob([bytes]),
};

const pictures = {};
const progress = [];
for (const [name, source] of Object.entries(sources)) {
  const onProgress = ({ loaded, total }) => (progress[0] = [loaded, total]);
  const sampler = await ccm.Sampler.load(source, { onProgress });
  // The calls before `free` finish.
  const sampled = sampler.sample({ seed: 6, label: "ghost", count: 2 });
  sampler.free();
  const [, { data, width, height, colorSpace }] = await sampled;
  pictures[name] = [width, height, colorSpace, data.constructor.name, [...data]];
}
const load = (model, options) => () => ccm.Sampler.load(model, options);
const errors = {
  missing: await fault(load("nowhere.safetensors")),
  "no webgpu": await fault(load(path, { backend: "webgpu" })),
  "no worker": await fault(() => ccm.WorkerSampler.load(path)),
  corrupt: await fault(load(new Uint8Array(99))),
  late: await fault(async () => ccm.Sampler.configure({ wasm: "elsewhere.wasm" })),
};
const element = [typeof CcmImage, typeof globalThis.customElements];
console.log(JSON.stringify({ exports: Object.keys(ccm), pictures, progress, errors, element }));
