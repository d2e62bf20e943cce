// `<ccm-image model="student.safetensors" seed="Ada" label="3" steps="1" backend="auto">`: an element that samples an
// image and shows it; with `prompt`, `negative` and `guidance` for a model with text. A seed that is not a whole number is
// hashed. Importing this file defines the element; on a server it does nothing.

import { RequestError } from "./errors.js";
import { Sampler } from "./sampler.js";
import { seedFrom } from "./seed.js";
import { resolve } from "./settings.js";

const STYLE =
  ":host{display:inline-block;inline-size:8rem;aspect-ratio:1;image-rendering:pixelated;contain:content}" +
  ":host([hidden]){display:none}" +
  "canvas{display:block;inline-size:100%;block-size:100%;object-fit:contain;image-rendering:inherit}";

/** Samplers in use. Elements with the same model and backend share one. */
const shared = new Map();

const keyOf = (model, backend) => `${backend} ${resolve(model)}`;

function take(key, model, backend) {
  let entry = shared.get(key);
  if (!entry) {
    const controller = new AbortController();
    entry = { key, users: 0, controller, sampler: Sampler.load(model, { backend, signal: controller.signal }) };
    // After a failure, the next element with this model loads it again.
    entry.sampler.catch(() => shared.get(key) === entry && shared.delete(key));
    shared.set(key, entry);
  }
  entry.users += 1;
  return entry;
}

function release(entry) {
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

/** A whole number below 2^64 is a seed itself; any other text is hashed. */
const seedOf = (text) => (/^\d+$/.test(text) && BigInt(text) < 2n ** 64n ? BigInt(text) : seedFrom(text));

/** The element `<ccm-image>`. */
export class CcmImage extends (globalThis.HTMLElement ?? Object) {
  static observedAttributes = ["model", "seed", "label", "steps", "prompt", "negative", "guidance", "backend", "alt"];
  #sheet;
  #canvas;
  #entry = null;
  #wanted = null;
  #internals = this.attachInternals();

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    this.adoptedCallback();
    this.#replaceCanvas();
    // A default: the attributes `role` and `aria-label` of the element override it.
    this.#internals.role = "img";
  }

  /** Sets the styles: a style sheet belongs to one document. A content security policy does not apply to it. */
  adoptedCallback() {
    const view = this.ownerDocument.defaultView;
    // The document of a template has no window and shows nothing.
    if (!view) return;
    this.#sheet = new view.CSSStyleSheet();
    this.#sheet.replaceSync(STYLE);
    this.shadowRoot.adoptedStyleSheets = [this.#sheet];
    this.#setShape();
  }

  /** Gives the element the aspect ratio of the model's images. */
  #setShape() {
    if (!this.info) return;
    const { width, height } = this.info;
    this.#sheet.cssRules[0].style.aspectRatio = `${width} / ${height}`;
  }

  connectedCallback() {
    this.#describe();
    this.#schedule();
  }

  disconnectedCallback() {
    // A moved element is connected again before this runs.
    queueMicrotask(() => {
      if (!this.isConnected) this.#release();
    });
  }

  attributeChangedCallback(name, before, now) {
    if (before === now || !this.isConnected) return;
    this.#describe();
    if (name !== "alt") this.#schedule();
  }

  /** The `info` of the sampler; null before the model is loaded. */
  info = null;

  /** Draws with `seed`, or with a random one. Resolves when the image is drawn or has failed. */
  async generate({ seed } = {}) {
    const fresh = crypto.getRandomValues(new Uint32Array(1))[0];
    this.setAttribute("seed", String(seed ?? fresh));
    return this.#schedule();
  }

  /** Draws once for all attributes that change in the same task. Resolves when the image is drawn. */
  #schedule() {
    this.#wanted ??= Promise.resolve().then(() => {
      this.#wanted = null;
      return this.#draw();
    });
    return this.#wanted;
  }

  #drawing = Promise.resolve();
  #turn = 0;

  /** Draws the image of the attributes after the current drawing, unless they have changed again by then. */
  #draw() {
    const turn = ++this.#turn;
    const result = this.#drawing.then(async () => {
      if (turn !== this.#turn || !this.isConnected) return;
      try {
        if (await this.#show(turn)) this.dispatchEvent(new CustomEvent("load", { detail: this.info }));
      } catch (error) {
        if (turn === this.#turn && this.isConnected) this.dispatchEvent(new ErrorEvent("error", { error, message: error.message }));
      }
    });
    this.#drawing = result;
    return result;
  }

  async #show(turn) {
    const model = this.getAttribute("model");
    if (!model) return false;
    const backend = this.getAttribute("backend") || "auto";
    const key = keyOf(model, backend);
    if (this.#entry?.key !== key || shared.get(key) !== this.#entry) {
      const used = this.#entry !== null;
      this.#release();
      // A canvas works with either the GPU or the CPU.
      if (used) this.#replaceCanvas();
      this.#entry = take(key, model, backend);
    }
    const sampler = await this.#entry.sampler;
    const seed = await seedOf(this.getAttribute("seed") ?? "0");
    if (turn !== this.#turn) return false;
    this.info = sampler.info;
    this.#setShape();
    const of = (name) => this.getAttribute(name) ?? undefined;
    await sampler.draw(this.#canvas, {
      seed,
      label: of("label"),
      steps: of("steps") && Number(whole(of("steps"), "steps")),
      prompt: of("prompt"),
      negative: of("negative"),
      guidance: of("guidance") && Number(of("guidance")),
    });
    return true;
  }

  #replaceCanvas() {
    this.#canvas?.remove();
    this.#canvas = document.createElement("canvas");
    this.#canvas.part = "canvas";
    this.shadowRoot.append(this.#canvas);
  }

  #release() {
    if (this.#entry) release(this.#entry);
    this.#entry = null;
  }

  /** Sets the default accessible name. */
  #describe() {
    const label = this.getAttribute("label") ?? this.getAttribute("prompt");
    const text = `generated image, seed ${this.getAttribute("seed") ?? 0}${label ? `, ${label}` : ""}`;
    this.#internals.ariaLabel = this.getAttribute("alt") ?? text;
  }
}

const registry = globalThis.customElements;
if (registry && !registry.get("ccm-image")) registry.define("ccm-image", CcmImage);
