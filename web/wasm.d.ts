// `ccm-web/wasm` and `ccm-web/text-wasm` are the WebAssembly files. Depending on the bundler, importing it gives the file's URL or its bytes;
// `Sampler.configure({ wasm, textWasm })` takes both.
declare const wasm: string | Uint8Array;
export default wasm;
