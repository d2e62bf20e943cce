// The page of `bundled`, configured by `configure.ts`.

import "./configure.js";
import "../bundled/main.js";
