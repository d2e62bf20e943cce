// What the README says for esbuild. The types are checked, too.

import { Sampler } from "ccm-web";
import wasm from "ccm-web/wasm";

Sampler.configure({ wasm, worker: "/worker.js" });
