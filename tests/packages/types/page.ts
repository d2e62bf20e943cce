// The types in a strict project for a page, with types of no other package.

import { Sampler } from "ccm-web";
import "ccm-web/element";

await document.createElement("ccm-image").generate({ seed: 7 });
export const [image]: ImageData[] = await (await Sampler.load("m")).sample();
