// The types in a strict project with neither the library `dom` nor types of any other package.

import { type Image, Sampler } from "ccm-web";

const sampler = await Sampler.load("model.safetensors");
const [image] = await sampler.sample({ seed: 7n });
export const typed: Image = image!;
