// `node configure.mjs MODEL WASM`: the WebAssembly from a path, and from bytes after a path that does not exist.

import { readFile } from "node:fs/promises";

import { Sampler } from "ccm-web";

const [model, wasm] = process.argv.slice(2);
Sampler.configure({ wasm: "nowhere.wasm" });
const missing = await Sampler.load(model).then(() => "none", (error) => `${error.name} ${error.code}`);
Sampler.configure({ wasm: process.argv[4] === "bytes" ? await readFile(wasm) : wasm });
const [image] = await (await Sampler.load(model)).sample({ seed: 7, label: "ghost" });
console.log(JSON.stringify([missing, [...image.data]]));
