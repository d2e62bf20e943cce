// `ccm-web/wasm` is the WebAssembly file. Depending on the bundler, importing it gives the file's URL or its bytes;
// `Sampler.configure({ wasm })` takes both.
declare const wasm: string | Uint8Array;
export default wasm;
