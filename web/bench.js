// Measures the time per image of each model on each backend.
import { Sampler } from "./pkg/index.js";

const query = new URLSearchParams(location.search);
const models = (query.get("models") ?? "models/shapes/student.safetensors").split(",");
const backends = (query.get("backends") ?? "cpu,webgpu").split(",");
const rounds = Number(query.get("rounds") ?? 20);
/** For scripts that open this page. */
window.results = [];

async function timed(task) {
  const start = performance.now();
  const value = await task();
  return [performance.now() - start, value];
}

function row(cells) {
  const line = document.querySelector("tbody").insertRow();
  for (const cell of cells) line.insertCell().textContent = typeof cell === "number" ? cell.toFixed(1) : cell;
}

for (const model of models) {
  for (const backend of backends) {
    try {
      const [load, sampler] = await timed(() => Sampler.load(model, { backend, cache: false }));
      const [first] = await timed(() => sampler.sample({ seed: 0 }));
      const later = [];
      for (let seed = 1; seed <= rounds; seed++) later.push((await timed(() => sampler.sample({ seed })))[0]);
      later.sort((a, b) => a - b);
      const result = { model, backend, load, first, best: later[0], median: later[later.length >> 1] };
      window.results.push(result);
      row([model, sampler.info.backend, load, first, result.best, result.median]);
      sampler.free();
    } catch (error) {
      row([model, backend, error.message]);
    }
  }
}
document.getElementById("state").textContent = "Done";
