// `<ccm-image model="student.safetensors" seed="7" label="3" steps="1" backend="auto">`: an image that is made where
// it stands. Importing this file defines the element.

import { RequestError } from "./errors.js";
import { Sampler } from "./sampler.js";

const STYLE = `
  :host { display: inline-block; inline-size: 8rem; aspect-ratio: 1; image-rendering: pixelated; contain: content; }
  :host([hidden]) { display: none; }
  canvas { display: block; inline-size: 100%; block-size: 100%; object-fit: contain; image-rendering: inherit; }
`;

/** Samplers in use: elements with the same model and backend share one. */
const shared = new Map();

function take(model, backend) {
  const key = `${backend} ${new URL(model, document.baseURI)}`;
  let entry = shared.get(key);
  if (!entry) {
    const controller = new AbortController();
    entry = { key, users: 0, controller, sampler: Sampler.load(model, { backend, signal: controller.signal }) };
    // A model that failed is fetched again when it is next asked for.
    entry.sampler.catch(() => shared.get(key) === entry && shared.delete(key));
    shared.set(key, entry);
  }
  entry.users += 1;
  return entry;
}

function give(entry) {
  entry.users -= 1;
  if (entry.users > 0) return;
  if (shared.get(entry.key) === entry) shared.delete(entry.key);
  entry.controller.abort();
  entry.sampler.then((sampler) => sampler.free(), () => {});
}

function whole(value, name) {
  if (!/^\d+$/.test(value.trim())) throw new RequestError(`${name}: expected a whole number, found ${value}`);
  return BigInt(value);
}

/** The element. */
export class CcmImage extends HTMLElement {
  static observedAttributes = ["model", "seed", "label", "steps", "backend", "alt"];
  #style = document.createElement("style");
  #canvas;
  #entry = null;
  #wanted = null;
  #internals = this.attachInternals();

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    this.#style.textContent = STYLE;
    root.append(this.#style);
    this.#renew();
    // Defaults: `role` and `aria-label` on the element itself go before them.
    this.#internals.role = "img";
  }

  connectedCallback() {
    this.#name();
    this.#schedule();
  }

  disconnectedCallback() {
    // An element that is only moved is connected again at once.
    queueMicrotask(() => {
      if (!this.isConnected) this.#release();
    });
  }

  attributeChangedCallback(name, before, now) {
    if (before === now || !this.isConnected) return;
    this.#name();
    if (name !== "alt") this.#schedule();
  }

  /** The sampler's `info`, or null before the model has arrived. */
  info = null;

  /** Draws now, and answers when the image is there. Without a seed of its own the element takes a new one. */
  async generate({ seed } = {}) {
    const fresh = crypto.getRandomValues(new Uint32Array(1))[0];
    this.setAttribute("seed", String(seed ?? fresh));
    return this.#schedule();
  }

  /** One drawing for all that changes at once; resolves when it is done. */
  #schedule() {
    this.#wanted ??= Promise.resolve().then(() => {
      this.#wanted = null;
      return this.#draw();
    });
    return this.#wanted;
  }

  #drawing = Promise.resolve();
  #turn = 0;

  /** Draws what the attributes say, after what is being drawn; what has been overtaken meanwhile is left out. */
  #draw() {
    const turn = ++this.#turn;
    const result = this.#drawing.then(async () => {
      if (turn !== this.#turn || !this.isConnected) return;
      try {
        if (await this.#show(turn)) this.dispatchEvent(new CustomEvent("load", { detail: this.info }));
      } catch (error) {
        if (turn === this.#turn) this.dispatchEvent(new ErrorEvent("error", { error, message: error.message }));
      }
    });
    this.#drawing = result;
    return result;
  }

  async #show(turn) {
    const model = this.getAttribute("model");
    if (!model) return false;
    const backend = this.getAttribute("backend") || "auto";
    const key = `${backend} ${new URL(model, document.baseURI)}`;
    if (this.#entry?.key !== key || shared.get(key) !== this.#entry) {
      const renew = this.#entry !== null;
      this.#release();
      // A canvas serves either a GPU or the CPU, for good.
      if (renew) this.#renew();
      this.#entry = take(model, backend);
    }
    const sampler = await this.#entry.sampler;
    if (turn !== this.#turn) return false;
    const { width, height } = (this.info = sampler.info);
    this.#style.sheet.cssRules[0].style.aspectRatio = `${width} / ${height}`;
    await sampler.draw(this.#canvas, {
      seed: whole(this.getAttribute("seed") ?? "0", "seed"),
      label: this.getAttribute("label"),
      steps: Number(whole(this.getAttribute("steps") ?? "1", "steps")),
    });
    return true;
  }

  #renew() {
    this.#canvas?.remove();
    this.#canvas = document.createElement("canvas");
    this.#canvas.part = "canvas";
    this.shadowRoot.append(this.#canvas);
  }

  #release() {
    if (this.#entry) give(this.#entry);
    this.#entry = null;
  }

  #name() {
    const label = this.getAttribute("label");
    const said = `generated image, seed ${this.getAttribute("seed") ?? 0}${label ? `, ${label}` : ""}`;
    this.#internals.ariaLabel = this.getAttribute("alt") ?? said;
  }
}

if (!customElements.get("ccm-image")) customElements.define("ccm-image", CcmImage);
