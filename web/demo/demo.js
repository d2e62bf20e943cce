// The demo page: a stage, a gallery, a race between student and teacher, and the visitor's own model.

import { AbortedError, NoWebGpuError } from "../pkg/errors.js";
import { WorkerSampler } from "../pkg/remote.js";
import { MODELS } from "./models.js";

const TILES = 24;
/** How long the walk takes from one picture to the next, in ms. */
const STRIDE = 1600;
/** A picture that takes longer than this, in ms, is not walked through unasked. */
const QUICK = 40;

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** What is shown: the models in use, and what is asked of them. */
const state = {
  models: MODELS[0],
  backend: query.get("backend") ?? "auto",
  student: null,
  teacher: null,
  stage: null,
  label: undefined,
  seed: 7,
  first: 7,
  walking: false,
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

function complain(error) {
  if (error instanceof AbortedError || error.code === "aborted") return;
  $("problem").textContent = error.message;
  $("problem").hidden = false;
}

// loading

async function load(models) {
  state.loading.abort();
  state.gallery.abort();
  stopWalk();
  const loading = (state.loading = new AbortController());
  const { signal } = loading;
  $("problem").hidden = true;
  $("note").textContent = models.note;
  $("note").hidden = !models.note;
  document.documentElement.dataset.state = "loading";
  setReady(false);
  say("Loading the model", "");
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
    // The first picture also warms the engine up; the second is what a picture costs.
    await paint();
    performance.mark("first-picture");
    const time = await paint();
    describe(student.info);
    setReady(true);
    document.documentElement.dataset.state = "ready";
    await fillGallery();
    if (!calm.matches && time < QUICK && !query.has("still") && !signal.aborted) startWalk();
  } catch (error) {
    if (signal.aborted) return;
    document.documentElement.dataset.state = "failed";
    say(state.student ? "The model could not be loaded; the one before is still here" : "No model", "off");
    if (state.student) setReady(true);
    complain(error);
  } finally {
    $("progress").hidden = true;
  }
}

/** A sampler on the chosen backend; where that is not to be had, on whatever is. */
async function open(model, signal, onProgress) {
  try {
    return await WorkerSampler.load(model, { backend: state.backend, signal, onProgress });
  } catch (error) {
    if (!(error instanceof NoWebGpuError) || state.backend === "auto") throw error;
    state.backend = $("backend").value = "auto";
    complain(new Error(`${error.message}; the CPU takes over.`));
    return WorkerSampler.load(model, { backend: "auto", signal, onProgress });
  }
}

function setReady(ready) {
  for (const id of ["play", "again", "more", "start"]) $(id).disabled = !ready;
}

function say(text, dot) {
  $("status-text").textContent = text;
  document.querySelector(".dot").className = `dot ${dot}`;
}

function describe(info) {
  const place = info.backend === "cpu" ? "CPU" : `GPU (${info.backend === "webgpu" ? "WebGPU" : info.backend})`;
  const adapter = info.backend === "cpu" ? "one thread" : info.adapter;
  const size = `${(info.parameters / 1e6).toFixed(1)} M parameters, ${info.precision}`;
  say(`${place}, ${adapter}. ${size}, ${info.width} x ${info.height} pixels`, info.software ? "slow" : "on");
  let hint = "";
  if (info.software) hint = "This GPU is one in name only: the browser computes it on the CPU, slowly. “CPU” is faster.";
  else if (info.backend === "cpu" && !navigator.gpu) hint = "This browser has no WebGPU, so the pictures are made on the CPU.";
  else if (info.backend === "cpu" && state.backend === "auto") hint = "No GPU was found, so the pictures are made on the CPU.";
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
  if (!state.walking) paint().catch(complain);
  fillGallery();
}

// the stage

/** Draws the chosen seed; answers with the time it took, in ms. */
async function paint() {
  const start = performance.now();
  await state.student.draw(state.stage, { seed: state.seed, label: state.label });
  const time = performance.now() - start;
  $("stage").setAttribute("aria-label", `generated image, seed ${state.seed}`);
  $("stage-clock").textContent = `seed ${state.seed} · ${milliseconds(time)}`;
  return time;
}

function stopWalk() {
  state.walking = false;
  $("play").textContent = "Walk";
  $("play").setAttribute("aria-pressed", "false");
}

async function startWalk() {
  if (state.walking) return;
  state.walking = true;
  $("play").textContent = "Stop";
  $("play").setAttribute("aria-pressed", "true");
  const { student } = state;
  let [from, to] = [state.seed, state.seed + 1];
  let [at, shown, since, spent] = [0, 0, performance.now(), 0];
  let last = since;
  try {
    while (state.walking && state.student === student) {
      const start = performance.now();
      // After a pause (the tab was hidden) the walk goes on from where it was.
      at += Math.min(start - last, 100) / STRIDE;
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
      stopWalk();
      complain(error);
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
    if (!signal.aborted) complain(error);
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
  stopWalk();
  mark();
  paint().catch(complain);
}

// the race

function nameLanes() {
  const steps = Number($("steps").value);
  const [left, right] = document.querySelectorAll(".lanes b");
  left.textContent = state.models.teacher ? "Student" : "This model";
  right.textContent = state.models.teacher ? "Teacher" : "The same";
  $("steps-said").textContent = steps;
  $("teacher-steps").textContent = steps === 1 ? "1 step" : `${steps} steps`;
}

async function race() {
  const walked = state.walking;
  stopWalk();
  setReady(false);
  const steps = Number($("steps").value);
  $("verdict").textContent = "\u00a0";
  const { student, models } = state;
  try {
    state.teacher ??= models.teacher ? open(models.teacher, state.loading.signal) : Promise.resolve(student);
    const teacher = await state.teacher;
    const request = { seed: state.seed, label: state.label };
    // Once unwatched, so that neither clock counts the engine's first breath.
    await teacher.sample(request);
    const quick = await lane(student, $("student"), $("student-clock"), { ...request, steps: 1 });
    const slow = await lane(teacher, $("teacher"), $("teacher-clock"), { ...request, steps });
    const times = (slow / quick).toFixed(slow / quick < 10 ? 1 : 0);
    $("verdict").textContent = steps > 1 ? `One step is ${times} times as fast as ${steps}.` : "One step each.";
  } catch (error) {
    state.teacher?.catch(() => (state.teacher = null));
    if (state.student === student) complain(error);
  } finally {
    if (state.student === student) setReady(true);
    if (walked && state.student === student) startWalk();
  }
}

/** One picture against the clock, which runs meanwhile. */
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

// what the visitor does

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
$("play").onclick = () => (state.walking ? stopWalk() : startWalk());
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
  // So that the same file can be chosen again when it has changed.
  target.value = "";
};
// A file may be dropped anywhere.
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
