// Samples on the server, and renders the element of `picture.tsx`.

import { Sampler } from "ccm-web";

import Picture from "./picture";

export const dynamic = "force-dynamic";

export default async function Page() {
  const sampler = await Sampler.load("public/student.safetensors");
  const [image] = await sampler.sample({ seed: 7, label: "ghost" });
  sampler.free();
  return (
    <main data-pixels={image!.data.join()}>
      <Picture />
    </main>
  );
}
