// `ccm-web/wasm` is the WebAssembly file. What importing it gives depends on the bundler: the file's URL, or its bytes.
// `Sampler.configure({ wasm })` takes both.
declare const wasm: string | Uint8Array;
export default wasm;
