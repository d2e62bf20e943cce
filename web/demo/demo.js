// The demo page: the picture of a typed name, a gallery, a morph between two names, a race of student and teacher, and
// the visitor's own model.

import { AbortedError, NoWebGpuError, NoWorkerError } from "../pkg/errors.js";
import { WorkerSampler } from "../pkg/remote.js";
import { seedFrom } from "../pkg/seed.js";
import { MODELS, own, wording } from "./models.js";

const TILES = 24;
/** Duration of a morph from one name to the other, in ms. */
const PERIOD = 2400;
/** The morph starts by itself only if a picture takes at most this time, in ms. */
const FAST = 120;

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
/** Whether nothing starts by itself. */
const still = query.has("still");

/** The models in use and the current request. */
const state = {
  entry: MODELS[0],
  wording: wording(MODELS[0], false),
  backend: query.get("backend") ?? "auto",
  student: null,
  teacher: null,
  stage: null,
  blend: null,
  label: undefined,
  time: Infinity,
  /** The morph that plays; a new one for each start. */
  morph: null,
  /** The race that runs. */
  race: null,
  /** Whether the morph goes on after the race. */
  resume: false,
  raced: false,
  loading: new AbortController(),
  gallery: new AbortController(),
  /** Settled once the gallery is drawn. */
  filled: null,
};

const milliseconds = (time) => `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`;
const stepsOf = (count) => (count === 1 ? "1 step" : `${count} steps`);
const frame = () => new Promise(requestAnimationFrame);
const nameOf = (field) => $(field).value.trim() || $(field).defaultValue;

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

/** A function that runs `task` once for all calls made while it runs: the last state counts, and none is left out. */
function latest(task) {
  let [running, again] = [null, false];
  return () => {
    again = true;
    running ??= (async () => {
      try {
        while (again) {
          again = false;
          await task();
        }
      } finally {
        running = null;
      }
    })();
    return running;
  };
}

// loading

async function load(entry) {
  state.loading.abort();
  state.gallery.abort();
  state.race = null;
  stopMorph();
  const loading = (state.loading = new AbortController());
  const { signal } = loading;
  $("problem").hidden = true;
  document.documentElement.dataset.state = "loading";
  setReady(false);
  setStatus("Loading the model", "");
  try {
    const student = await open(entry.student, signal, ({ loaded, total }) => {
      $("progress").hidden = loaded === total;
      if (total) $("progress").value = loaded / total;
    });
    if (signal.aborted) return student.free();
    state.student?.free();
    state.teacher?.then((teacher) => teacher !== state.student && teacher.free(), () => {});
    Object.assign(state, { entry, student, teacher: null, stage: newCanvas(), blend: newCanvas(), label: undefined, raced: false });
    $("stage").replaceChildren(state.stage);
    $("blend").replaceChildren(state.blend);
    for (const id of ["student", "teacher"]) {
      $(id).replaceChildren();
      $(id).setAttribute("aria-label", "no picture yet");
      $(`${id}-clock`).textContent = "–";
    }
    $("verdict").textContent = "\u00a0";
    say(entry, student.info);
    document.documentElement.dataset.size = student.info.width < 48 ? "small" : "large";
    listClasses(student.info, entry);
    nameLanes();
    // The first picture includes the start of the engine; the second one is timed.
    await paint();
    performance.mark("first-picture");
    await paint();
    signal.throwIfAborted();
    describe(student.info);
    setReady(true);
    document.documentElement.dataset.state = "ready";
    await fillGallery();
    signal.throwIfAborted();
    await blend();
    signal.throwIfAborted();
    watchSections();
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

/** Writes what the page says about a model. A model with text has no pictures between two names; without a teacher there is no race. */
function say(entry, { text }) {
  const words = (state.wording = wording(entry, text));
  $("title").textContent = entry.title;
  $("credits").innerHTML = entry.credits;
  $("lede").textContent = words.lede;
  $("field").textContent = words.field;
  $("again").textContent = words.another;
  [$("gallery-title").textContent, $("gallery-lede").textContent] = words.gallery;
  if ($("name").defaultValue !== words.samples[0]) $("name").defaultValue = $("name").value = words.samples[0];
  $("grid").replaceChildren();
  for (const [id, hidden] of [["morph", text], ["race", text && !entry.teacher]]) {
    for (const element of [$(id), document.querySelector(`nav a[href="#${id}"]`)]) element.hidden = hidden;
  }
}

/** What a picture is about, for the sampler: a name's seed, or words. */
async function subject(text) {
  const { student, label } = state;
  return student.info.text ? { prompt: text, seed: 0 } : { seed: await seedFrom(text), label };
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
    return start(model, { backend: "auto", signal, onProgress });
  }
}

function setReady(ready) {
  for (const id of ["name", "again", "save", "copy", "play", "weight", "start"]) $(id).disabled = !ready;
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
  else if (info.backend === "cpu" && !navigator.gpu) hint = "This browser has no WebGPU, so pictures are computed on the CPU.";
  else if (info.backend === "cpu" && state.backend === "auto") hint = "No GPU was found, so pictures are computed on the CPU.";
  $("hint").textContent = hint;
  $("hint").hidden = !hint;
}

function listClasses({ numClasses, classes }, { legend, first }) {
  const set = $("classes");
  set.hidden = !numClasses;
  set.querySelector("legend").textContent = legend;
  set.querySelectorAll("label, select").forEach((old) => old.remove());
  if (!numClasses) return;
  const names = Array.from({ length: numClasses }, (_, i) => classes[i] ?? String(i));
  state.label = Math.max(0, classes.indexOf(first));
  if (numClasses > 30) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", legend);
    names.forEach((name, i) => select.add(new Option(name, i)));
    select.value = state.label;
    select.onchange = () => choose(Number(select.value));
    set.append(select);
    return;
  }
  names.forEach((name, i) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "class", value: i, checked: i === state.label });
    const text = document.createElement("span");
    text.textContent = name.replace(/([a-z])([A-Z])/g, "$1 $2").replaceAll("_", " ").toLowerCase();
    input.onchange = () => choose(i);
    label.append(input, text);
    set.append(label);
  });
}

function choose(label) {
  state.label = label;
  state.raced = false;
  repaint();
  if (!state.morph) reblend();
  fillGallery();
}

// the picture of a name

/** Draws the picture of the typed name. */
async function paint() {
  const { student, stage } = state;
  const name = nameOf("name");
  const request = await subject(name);
  const start = performance.now();
  await student.draw(stage, request);
  if (state.student !== student) return;
  state.time = performance.now() - start;
  $("stage").setAttribute("aria-label", `generated picture of ${name}`);
  $("stage-clock").textContent = milliseconds(state.time);
  $("html").textContent = htmlOf(name, request);
  if (document.documentElement.dataset.state !== "failed") $("problem").hidden = true;
  for (const tile of document.querySelectorAll(".tile")) tile.setAttribute("aria-pressed", tile.dataset.name === name);
}

const repaintOnce = latest(paint);
const repaint = () => state.student && repaintOnce().catch(showError);

function select(name) {
  $("name").value = name;
  state.raced = false;
  repaint();
}

/** The HTML that shows the picture of a name in any page. The element would take a name of digits for a seed. */
function htmlOf(name, { seed, label }) {
  const quoted = (text) => text.replaceAll("&", "&amp;").replaceAll('"', "&quot;").replaceAll("<", "&lt;");
  const absolute = (address) => new URL(address, document.baseURI).href;
  const model = state.entry.student instanceof Blob ? state.entry.name : absolute(state.entry.student);
  const { numClasses, classes, text } = state.student.info;
  const ofClass = numClasses ? ` label="${quoted(classes[label] ?? String(label))}"` : "";
  const script = `<script type="module" src="${absolute("web/pkg/element.js")}"></script>`;
  const about = text ? `prompt="${quoted(name)}" seed="0"` : `seed="${/^\d+$/.test(name) ? seed : quoted(name)}"${ofClass}`;
  return `${script}<ccm-image model="${quoted(model)}" ${about}></ccm-image>`;
}

async function save() {
  const name = nameOf("name");
  const [image] = await state.student.sample(await subject(name));
  const canvas = document.createElement("canvas");
  show(image, canvas);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve));
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${name}.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function copy() {
  await navigator.clipboard.writeText($("html").textContent);
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy HTML"), 1500);
}

// the gallery

function fillGallery() {
  state.gallery.abort();
  state.gallery = new AbortController();
  return (state.filled = drawTiles(state.gallery.signal));
}

async function drawTiles(signal) {
  const { student } = state;
  try {
    for (const tile of tiles()) {
      const [image] = await student.sample({ ...(await subject(tile.dataset.name)), signal });
      if (signal.aborted) return;
      show(image, tile.firstChild);
    }
  } catch (error) {
    if (!signal.aborted) showError(error);
  }
}

/** The buttons of the gallery, one for each of the first names or words. */
function tiles() {
  const grid = $("grid");
  for (const name of state.wording.samples.slice(grid.childElementCount, TILES)) {
    const tile = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
    tile.dataset.name = name;
    tile.setAttribute("aria-pressed", name === nameOf("name"));
    tile.append(newCanvas(), Object.assign(document.createElement("span"), { textContent: name }));
    tile.onclick = () => {
      select(name);
      $("stage").scrollIntoView({ block: "nearest" });
    };
    const item = document.createElement("li");
    item.append(tile);
    grid.append(item);
  }
  return [...grid.querySelectorAll(".tile")];
}

// from one name to another

/** Draws the picture between the two names. Returns the time it took, in ms. */
async function blend() {
  const { student, label, blend: canvas } = state;
  if (student.info.text) return 0;
  const [from, to] = await Promise.all([seedFrom(nameOf("from")), seedFrom(nameOf("to"))]);
  const start = performance.now();
  await student.interpolate(canvas, from, to, Number($("weight").value), { label });
  return performance.now() - start;
}

const blendOnce = latest(blend);
const reblend = () => state.student && blendOnce().catch(showError);

function stopMorph() {
  state.morph = null;
  $("play").textContent = "Play";
  $("play").setAttribute("aria-pressed", "false");
}

async function playMorph() {
  if (state.morph) return;
  const morph = (state.morph = {});
  $("play").textContent = "Stop";
  $("play").setAttribute("aria-pressed", "true");
  const { student } = state;
  let [at, shown, spent] = [Math.acos(1 - 2 * $("weight").value) / Math.PI, 0, 0];
  let last = performance.now();
  let since = last;
  try {
    while (state.morph === morph && state.student === student) {
      const now = performance.now();
      // After a pause (a hidden tab) the morph continues from its last position.
      at = (at + Math.min(now - last, 100) / PERIOD) % 2;
      last = now;
      $("weight").value = (1 - Math.cos(Math.PI * at)) / 2;
      spent += await blend();
      shown += 1;
      if (now - since > 500) {
        const rate = Math.round((1000 * shown) / (now - since));
        $("blend-clock").textContent = `${rate} frames/s · ${milliseconds(spent / shown)}`;
        [shown, since, spent] = [0, now, 0];
      }
      await frame();
    }
  } catch (error) {
    if (state.student === student) showError(error);
  } finally {
    if (state.morph === morph) stopMorph();
  }
}

// student and teacher

function nameLanes() {
  const steps = Number($("steps").value);
  const [left, right] = document.querySelectorAll(".lanes b");
  left.textContent = state.entry.teacher ? "Student" : "This model";
  right.textContent = state.entry.teacher ? "Teacher" : "The same";
  $("steps-said").textContent = steps;
  $("teacher-steps").textContent = stepsOf(steps);
}

async function race() {
  if (state.race) return;
  const race = (state.race = {});
  Object.assign(state, { raced: true, resume: state.morph !== null });
  stopMorph();
  const controls = ["play", "weight", "start"].map($);
  for (const control of controls) control.disabled = true;
  $("verdict").textContent = "\u00a0";
  const steps = Number($("steps").value);
  const { student, entry } = state;
  try {
    state.teacher ??= entry.teacher ? open(entry.teacher, state.loading.signal) : Promise.resolve(student);
    const teacher = await state.teacher;
    // Pictures of a gallery would delay those of the race.
    for (let filled; filled !== state.filled; ) await (filled = state.filled);
    const name = nameOf("name");
    const request = await subject(name);
    // One untimed call each, so that neither time includes the start of an engine.
    await Promise.all([student.sample(request), teacher.sample(request)]);
    const times = [];
    for (const [sampler, id, count] of [[student, "student", 1], [teacher, "teacher", steps]]) {
      const { image, time } = await timed(sampler, { ...request, steps: count }, (time) => {
        if (state.race === race) $(`${id}-clock`).textContent = milliseconds(time);
      });
      if (state.race !== race) return;
      const canvas = newCanvas();
      show(image, canvas);
      $(id).replaceChildren(canvas);
      $(id).setAttribute("aria-label", `picture of ${name} in ${stepsOf(count)}`);
      times.push(time);
    }
    const ratio = times[1] / times[0];
    $("verdict").textContent =
      steps > 1 ? `One step is ${ratio.toFixed(ratio < 10 ? 1 : 0)} times as fast as ${steps}.` : "One step each.";
  } catch (error) {
    state.teacher?.catch(() => (state.teacher = null));
    if (state.race === race) showError(error);
  } finally {
    if (state.race === race) {
      state.race = null;
      for (const control of controls) control.disabled = false;
      if (state.resume) playMorph();
    }
  }
}

/** Samples one picture, and calls `watch` with the time so far in every frame and with that of the picture, in ms. */
async function timed(sampler, request, watch) {
  const start = performance.now();
  const elapsed = () => performance.now() - start;
  let running = true;
  (async () => {
    while (running) {
      watch(elapsed());
      await frame();
    }
  })();
  try {
    const [image] = await sampler.sample(request);
    const time = elapsed();
    watch(time);
    return { image, time };
  } finally {
    running = false;
  }
}

// what starts by itself, once a visitor sees it

const seen = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const ready = isIntersecting && document.documentElement.dataset.state === "ready";
      if (target.id === "blend") {
        const plays = ready && !calm.matches && state.time < FAST;
        if (!isIntersecting) stopMorph();
        else if (plays && !state.race) playMorph();
        state.resume = plays;
      } else if (ready && !state.raced) race();
    }
  },
  { threshold: 0.6 },
);

function watchSections() {
  if (still) return;
  for (const target of [$("blend"), document.querySelector(".lanes")]) {
    seen.unobserve(target);
    seen.observe(target);
  }
}

// controls

function takeFile(file) {
  if (!file) return;
  const entry = own(file);
  $("model").add(new Option(file.name, MODELS.push(entry) - 1, false, true));
  document.querySelector("#drop span").textContent = file.name;
  load(entry);
  scrollTo({ top: 0 });
}

MODELS.forEach(({ name }, i) => $("model").add(new Option(name, i)));
$("backend").value = state.backend;
$("model").onchange = ({ target }) => {
  load(MODELS[target.value]);
  scrollTo({ top: 0 });
};
$("backend").onchange = ({ target }) => {
  state.backend = target.value;
  load(state.entry);
};
$("name").oninput = () => {
  state.raced = false;
  repaint();
};
$("again").onclick = () => {
  const others = state.wording.samples.filter((name) => name !== nameOf("name"));
  select(others[Math.floor(Math.random() * others.length)]);
};
$("save").onclick = () => save().catch(showError);
$("copy").onclick = () => copy().catch(showError);
for (const id of ["from", "to"]) $(id).oninput = () => state.morph || reblend();
$("weight").oninput = () => {
  stopMorph();
  reblend();
};
$("play").onclick = () => (state.morph ? stopMorph() : playMorph());
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
