// Functions for the browser tests of the package.

import * as ccm from "/web/pkg/index.js";
import "/web/pkg/element.js";

/** The kind of error that a promise ends in. */
const fault = (promise) => promise.then(() => "none", (error) => `${error.name} ${error.code}`);
/** The bytes that a canvas shows. */
const pixels = (canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
};
/** An element's next event of a kind. */
const next = (element, kind) => new Promise((resolve) => element.addEventListener(kind, resolve, { once: true }));
Object.assign(window, { ccm, fault, pixels, next, ready: true });
