// The worker of a `WorkerSampler` (`remote.js`): a `Sampler` that answers messages. The answer to `{ id, call, ... }`
// is `{ id, value, info }` or `{ id, error }`.

import { Sampler } from "./sampler.js";

let sampler;
const canvases = new Map();
const aborts = new Map();

function canvasOf({ key, canvas }) {
  if (canvas) canvases.set(key, canvas);
  return canvases.get(key);
}

const CALLS = {
  async load({ model, places, options, id, signal }) {
    Sampler.configure(places);
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
  else if (data.call === "close") {
    // The frame before the second callback shows what has been drawn. A hidden page has no frames.
    requestAnimationFrame(() => requestAnimationFrame(() => close()));
    setTimeout(close, 1000);
  } else answer(data);
});
