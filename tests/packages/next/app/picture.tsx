"use client";

import { Sampler, WorkerSampler } from "ccm-web";
import "ccm-web/element";
import type { CcmImage } from "ccm-web/element";
import { useEffect, useRef } from "react";

const url = "/student.safetensors";

export default function Picture() {
  const element = useRef<CcmImage>(null);
  useEffect(() => {
    const image = element.current;
    image?.addEventListener("load", () => Object.assign(window, { drawn: image.info?.width }));
    const samplers = [Sampler.load(url), WorkerSampler.load(url)];
    const pixels = samplers.map(async (sampler) => {
      const [image] = await (await sampler).sample({ seed: 7, label: "ghost" });
      return [...image!.data];
    });
    Promise.all(pixels).then((pictures) => Object.assign(window, { pictures }));
  }, []);
  return <ccm-image ref={element} model={url} seed={7} label="ghost" />;
}
