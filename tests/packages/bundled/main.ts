// A page that uses the whole package. The tests read its results from `window`.

import { Sampler, WorkerSampler, type Info } from "ccm-web";
import "ccm-web/element";

const url = "/models/student.safetensors";
const sampler = await Sampler.load(url, { backend: "cpu" });
const worker = await WorkerSampler.load(url, { backend: "cpu" });
const info: Info = sampler.info;
const images = await Promise.all([sampler, worker].map((s) => s.sample({ seed: 7, label: "ghost" })));
const element = document.createElement("ccm-image");
element.setAttribute("model", url);
element.addEventListener("load", () => Object.assign(window, { drawn: element.info?.width }));
document.body.append(element);
Object.assign(window, { pictures: images.map(([image]) => [...image!.data]), width: info.width });
