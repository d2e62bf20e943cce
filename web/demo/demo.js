// The demo page: a large image, a gallery, a comparison of student and teacher, and the visitor's own model.

import { AbortedError, NoWebGpuError, NoWorkerError } from "../pkg/errors.js";
import { WorkerSampler } from "../pkg/remote.js";
import { MODELS } from "./models.js";

const TILES = 24;
/** Duration of the animation from one seed to the next, in ms. */
const PERIOD = 1600;
/** The animation starts by itself only if an image takes at most this time, in ms. */
const FAST = 40;

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** The models in use and the current request. */
const state = {
  models: MODELS[0],
  backend: query.get("backend") ?? "auto",
  student: null,
  teacher: null,
  stage: null,
  label: undefined,
  seed: 7,
  first: 7,
  animating: false,
  loading: new AbortController(),
  gallery: new AbortController(),
};

const milliseconds = (time) => `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`;
const frame = () => new Promise(requestAnimationFrame);

function newCanvas() {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}

function show(image, canvas) {
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function showError(error) {
  if (error instanceof AbortedError || error.code === "aborted") return;
  $("problem").textContent = error.message;
  $("problem").hidden = false;
}

// loading

async function load(models) {
  state.loading.abort();
  state.gallery.abort();
  stopAnimation();
  const loading = (state.loading = new AbortController());
  const { signal } = loading;
  $("problem").hidden = true;
  $("note").textContent = models.note;
  $("note").hidden = !models.note;
  document.documentElement.dataset.state = "loading";
  setReady(false);
  setStatus("Loading the model", "");
  try {
    const student = await open(models.student, signal, ({ loaded, total }) => {
      $("progress").hidden = loaded === total;
      if (total) $("progress").value = loaded / total;
    });
    state.student?.free();
    state.teacher?.then((teacher) => teacher !== state.student && teacher.free(), () => {});
    Object.assign(state, { models, student, teacher: null, stage: newCanvas(), label: undefined });
    $("stage").replaceChildren(state.stage);
    $("student").replaceChildren();
    $("teacher").replaceChildren();
    $("verdict").textContent = "\u00a0";
    $("student-clock").textContent = $("teacher-clock").textContent = "–";
    listClasses(student.info);
    nameLanes();
    // The first image includes the start of the engine; the second one is timed.
    await paint();
    performance.mark("first-picture");
    const time = await paint();
    describe(student.info);
    setReady(true);
    document.documentElement.dataset.state = "ready";
    await fillGallery();
    if (!calm.matches && time < FAST && !query.has("still") && !signal.aborted) startAnimation();
  } catch (error) {
    if (signal.aborted) return;
    document.documentElement.dataset.state = "failed";
    setStatus(state.student ? "The model could not be loaded; the previous one is still in use" : "No model", "off");
    if (state.student) setReady(true);
    showError(error);
  } finally {
    $("progress").hidden = true;
  }
}

/** Loads a model in a worker, or on the page's own thread where no worker can start. */
async function start(model, options) {
  try {
    return await WorkerSampler.load(model, options);
  } catch (error) {
    if (!(error instanceof NoWorkerError)) throw error;
    const { Sampler } = await import("../pkg/sampler.js");
    return Sampler.load(model, options);
  }
}

/** Loads a model on the chosen backend, or on `auto` if that backend needs WebGPU and there is none. */
async function open(model, signal, onProgress) {
  try {
    return await start(model, { backend: state.backend, signal, onProgress });
  } catch (error) {
    if (!(error instanceof NoWebGpuError) || state.backend === "auto") throw error;
    state.backend = $("backend").value = "auto";
    showError(new Error(`${error.message}; the CPU is used instead.`));
    return start(model, { backend: "auto", signal, onProgress });
  }
}

function setReady(ready) {
  for (const id of ["play", "again", "more", "start"]) $(id).disabled = !ready;
}

function setStatus(text, dot) {
  $("status-text").textContent = text;
  document.querySelector(".dot").className = `dot ${dot}`;
}

function describe(info) {
  const place = info.backend === "cpu" ? "CPU" : `GPU (${info.backend === "webgpu" ? "WebGPU" : info.backend})`;
  const adapter = info.backend === "cpu" ? "one thread" : info.adapter;
  const size = `${(info.parameters / 1e6).toFixed(1)} M parameters, ${info.precision}`;
  setStatus(`${place}, ${adapter}. ${size}, ${info.width} x ${info.height} pixels`, info.software ? "slow" : "on");
  let hint = "";
  if (info.software) hint = "The browser emulates this GPU on the CPU, which is slow. “CPU” is faster.";
  else if (info.backend === "cpu" && !navigator.gpu) hint = "This browser has no WebGPU, so images are computed on the CPU.";
  else if (info.backend === "cpu" && state.backend === "auto") hint = "No GPU was found, so images are computed on the CPU.";
  $("hint").textContent = hint;
  $("hint").hidden = !hint;
}

function listClasses({ numClasses, classes }) {
  const set = $("classes");
  set.hidden = !numClasses;
  set.querySelectorAll("label, select").forEach((old) => old.remove());
  if (!numClasses) return;
  const names = Array.from({ length: numClasses }, (_, i) => classes[i] ?? String(i));
  state.label = 0;
  if (numClasses > 30) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", "Class");
    names.forEach((name, i) => select.add(new Option(name, i)));
    select.onchange = () => choose(Number(select.value));
    set.append(select);
    return;
  }
  names.forEach((name, i) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "class", value: i, checked: i === 0 });
    const text = document.createElement("span");
    text.textContent = name.replaceAll("_", " ");
    input.onchange = () => choose(i);
    label.append(input, text);
    set.append(label);
  });
}

function choose(label) {
  state.label = label;
  if (!state.animating) paint().catch(showError);
  fillGallery();
}

// the large image

/** Draws the chosen seed. Returns the time it took, in ms. */
async function paint() {
  const start = performance.now();
  await state.student.draw(state.stage, { seed: state.seed, label: state.label });
  const time = performance.now() - start;
  $("stage").setAttribute("aria-label", `generated image, seed ${state.seed}`);
  $("stage-clock").textContent = `seed ${state.seed} · ${milliseconds(time)}`;
  return time;
}

function stopAnimation() {
  state.animating = false;
  $("play").textContent = "Animate";
  $("play").setAttribute("aria-pressed", "false");
}

async function startAnimation() {
  if (state.animating) return;
  state.animating = true;
  $("play").textContent = "Stop";
  $("play").setAttribute("aria-pressed", "true");
  const { student } = state;
  let [from, to] = [state.seed, state.seed + 1];
  let [at, shown, since, spent] = [0, 0, performance.now(), 0];
  let last = since;
  try {
    while (state.animating && state.student === student) {
      const start = performance.now();
      // After a pause (a hidden tab) the animation continues from its last position.
      at += Math.min(start - last, 100) / PERIOD;
      last = start;
      if (at >= 1) [from, to, at] = [to, to + 1, at % 1];
      await student.interpolate(state.stage, from, to, at, { label: state.label });
      spent += performance.now() - start;
      shown += 1;
      if (start - since > 500) {
        const rate = Math.round((1000 * shown) / (start - since));
        $("stage-clock").textContent = `${rate} frames/s · ${milliseconds(spent / shown)}`;
        [shown, since, spent] = [0, start, 0];
      }
      await frame();
    }
  } catch (error) {
    if (state.student === student) {
      stopAnimation();
      showError(error);
    }
  }
}

// the gallery

async function fillGallery() {
  state.gallery.abort();
  const { signal } = (state.gallery = new AbortController());
  const { student, label, first } = state;
  const tiles = tilesFrom(first);
  try {
    for (const [i, tile] of tiles.entries()) {
      const [image] = await student.sample({ seed: first + i, label, signal });
      if (signal.aborted) return;
      show(image, tile.firstChild);
    }
  } catch (error) {
    if (!signal.aborted) showError(error);
  }
}

function tilesFrom(first) {
  const grid = $("grid");
  while (grid.childElementCount < TILES) {
    const tile = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
    tile.append(newCanvas());
    tile.onclick = () => select(Number(tile.dataset.seed));
    grid.append(tile);
  }
  [...grid.children].forEach((tile, i) => {
    tile.dataset.seed = first + i;
    tile.setAttribute("aria-label", `seed ${first + i}`);
  });
  mark();
  return [...grid.children];
}

function mark() {
  for (const tile of $("grid").children) tile.setAttribute("aria-pressed", tile.dataset.seed === String(state.seed));
}

function select(seed) {
  state.seed = seed;
  stopAnimation();
  mark();
  paint().catch(showError);
}

// student and teacher

function nameLanes() {
  const steps = Number($("steps").value);
  const [left, right] = document.querySelectorAll(".lanes b");
  left.textContent = state.models.teacher ? "Student" : "This model";
  right.textContent = state.models.teacher ? "Teacher" : "The same";
  $("steps-said").textContent = steps;
  $("teacher-steps").textContent = steps === 1 ? "1 step" : `${steps} steps`;
}

async function race() {
  const animated = state.animating;
  stopAnimation();
  setReady(false);
  const steps = Number($("steps").value);
  $("verdict").textContent = "\u00a0";
  const { student, models } = state;
  try {
    state.teacher ??= models.teacher ? open(models.teacher, state.loading.signal) : Promise.resolve(student);
    const teacher = await state.teacher;
    const request = { seed: state.seed, label: state.label };
    // One untimed call, so that neither time includes the start of an engine.
    await teacher.sample(request);
    const quick = await lane(student, $("student"), $("student-clock"), { ...request, steps: 1 });
    const slow = await lane(teacher, $("teacher"), $("teacher-clock"), { ...request, steps });
    const times = (slow / quick).toFixed(slow / quick < 10 ? 1 : 0);
    $("verdict").textContent = steps > 1 ? `One step is ${times} times as fast as ${steps}.` : "One step each.";
  } catch (error) {
    state.teacher?.catch(() => (state.teacher = null));
    if (state.student === student) showError(error);
  } finally {
    if (state.student === student) setReady(true);
    if (animated && state.student === student) startAnimation();
  }
}

/** Samples and shows one image, with a running clock. Returns the time it took, in ms. */
async function lane(sampler, place, clock, request) {
  const start = performance.now();
  let running = true;
  (async () => {
    while (running) {
      clock.textContent = milliseconds(performance.now() - start);
      await frame();
    }
  })();
  try {
    const [image] = await sampler.sample(request);
    const time = performance.now() - start;
    running = false;
    clock.textContent = milliseconds(time);
    const canvas = newCanvas();
    show(image, canvas);
    place.replaceChildren(canvas);
    return time;
  } finally {
    running = false;
  }
}

// controls

function takeFile(file) {
  if (!file) return;
  const entry = { name: file.name, note: "", student: file, teacher: null };
  $("model").add(new Option(file.name, MODELS.push(entry) - 1, false, true));
  $("model-field").hidden = false;
  document.querySelector("#drop span").textContent = file.name;
  load(entry);
  scrollTo({ top: 0 });
}

MODELS.forEach(({ name }, i) => $("model").add(new Option(name, i)));
$("model-field").hidden = MODELS.length < 2;
$("backend").value = state.backend;
$("model").onchange = ({ target }) => load(MODELS[target.value]);
$("backend").onchange = ({ target }) => {
  state.backend = target.value;
  load(state.models);
};
$("play").onclick = () => (state.animating ? stopAnimation() : startAnimation());
$("again").onclick = () => select(Math.floor(Math.random() * 1e6));
$("more").onclick = () => {
  state.first += TILES;
  $("seed").value = state.first;
  fillGallery();
};
$("seed").onchange = ({ target }) => {
  if (!target.reportValidity()) return;
  state.first = Number(target.value || 0);
  if (state.student) fillGallery();
};
$("steps").oninput = nameLanes;
$("start").onclick = race;
$("file").onchange = ({ target }) => {
  takeFile(target.files[0]);
  // Lets the visitor choose the same file again after it has changed.
  target.value = "";
};
// A file can be dropped anywhere on the page.
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  takeFile(event.dataTransfer.files[0]);
});

load(MODELS[0]);
