// A sampler in a Web Worker; the page's side is `remote.js`. A message asks for one thing, `{ id, call, ... }`, and
// is answered by `{ id, value }` or `{ id, error }`.

import { RequestError } from "./errors.js";
import { Sampler } from "./sampler.js";

let sampler;
const canvases = new Map();
const aborts = new Map();

function canvasOf({ key, canvas }) {
  if (canvas) canvases.set(key, canvas);
  return canvases.get(key);
}

const CALLS = {
  async load({ model, options, id, signal }) {
    const onProgress = (progress) => postMessage({ id, progress });
    sampler = await Sampler.load(model, { ...options, signal, onProgress });
  },
  sample: ({ options, signal }) => sampler.sample({ ...options, signal }),
  draw: ({ canvas, options, signal }) => sampler.draw(canvasOf(canvas), { ...options, signal }),
  interpolate: ({ canvas, seeds, weight, options, signal }) =>
    sampler.interpolate(canvasOf(canvas), ...seeds, weight, { ...options, signal }),
};

async function answer(message) {
  const { id, call } = message;
  const controller = new AbortController();
  aborts.set(id, controller);
  try {
    if (!(call in CALLS)) throw new RequestError(`the worker knows no ${call}`);
    const value = await CALLS[call]({ ...message, signal: controller.signal });
    const images = Array.isArray(value) ? value.map((image) => image.data.buffer) : [];
    postMessage({ id, value, info: sampler.info }, images);
  } catch (error) {
    postMessage({ id, error: { message: error.message, code: error.code } });
  } finally {
    aborts.delete(id);
  }
}

addEventListener("message", ({ data }) => {
  if (data.call === "abort") aborts.get(data.id)?.abort();
  else if (data.call === "forget") canvases.delete(data.key);
  else answer(data);
});
