// The package's page, with the WebAssembly and the worker where `configure.ts` says.

import "./configure.js";
import "../bundled/main.js";
