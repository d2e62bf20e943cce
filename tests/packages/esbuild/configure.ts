// The configuration for esbuild from the README. The tests also check its types.

import { Sampler } from "ccm-web";
import wasm from "ccm-web/wasm";

Sampler.configure({ wasm, worker: "/worker.js" });
