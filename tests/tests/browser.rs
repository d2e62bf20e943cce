//! The package in a browser: images equal the native ones, errors have codes, models are cached,
//! canvases work, and lost devices are reopened. Every test starts its own browser; the WebAssembly is built once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

#[path = "browser/policy.rs"]
mod policy;
#[path = "browser/text.rs"]
mod text;
#[path = "browser/worker.rs"]
mod worker;

use std::fs;

use ccm::import::description::{self, Description};
use ccm::import::{Checkpoint, diffusers};
use ccm::model::{ModelCard, Role};
use ccm::weights::Model;
use ccm_tests::browser::{Browser, WebGpu};
use ccm_tests::fixtures;
use ccm_tests::site::{
    GRACE, SHAPES, Site, assert_no_complaints, assert_same_picture, grey, native, package, shapes,
};
use serde_json::json;

/// Limit for the WebAssembly and JavaScript that a page downloads, in bytes after brotli compression.
const LARGEST_DOWNLOAD: usize = 150_000;

/// Limit for the WebAssembly of models with text, in bytes after brotli compression.
const LARGEST_TEXT_DOWNLOAD: usize = 400_000;

fn assert_images_equal_native_images(webgpu: WebGpu, backend: &str, runs_on: &str) {
    let site = Site::new();
    let mut browser = site.open(webgpu);
    let cases = [(SHAPES.to_owned(), shapes(), 3), (site.put("grey.safetensors", &grey()), grey(), 0)];
    for (url, model, label) in cases {
        let classes = if label > 0 { "ghost" } else { "" };
        browser.eval(&format!(
            "(async () => window.s = await ccm.Sampler.load('{url}', {{ backend: '{backend}' }}))().then(() => 0)"
        ));
        assert_eq!(browser.eval("s.info.backend"), json!(runs_on));
        for steps in [1, 3] {
            let asked = format!("{{ seed: 7, steps: {steps}, label: '{classes}' }}");
            let expected = native(&model, 7, label, steps);
            let sampled = browser.eval(&format!("s.sample({asked}).then(([image]) => [...image.data])"));
            assert_same_picture(&sampled, &expected);
            browser.eval("window.canvas = document.body.appendChild(document.createElement('canvas')); 0");
            let drawn = browser.eval(&format!("s.draw(canvas, {asked}).then(() => pixels(canvas))"));
            assert_same_picture(&drawn, &expected);
        }
        let ends = browser.eval(
            "(async () => { const shown = []; for (const w of [0, 1]) { await s.interpolate(canvas, 6, 7, w); \
             shown.push(pixels(canvas)); } return shown; })()",
        );
        assert_same_picture(&ends[0], &native(&model, 6, 0, 1));
        assert_same_picture(&ends[1], &native(&model, 7, 0, 1));
    }
    assert_no_complaints(&browser);
}

#[test]
fn images_on_the_cpu_equal_native_images() {
    assert_images_equal_native_images(WebGpu::Absent, "cpu", "cpu");
}

#[test]
fn images_on_webgpu_equal_native_images() {
    assert_images_equal_native_images(WebGpu::Software, "webgpu-software", "webgpu");
}

#[test]
fn a_worker_samples_and_draws_as_the_page_does() {
    let site = Site::new();
    for (webgpu, backend) in [(WebGpu::Absent, "cpu"), (WebGpu::Software, "webgpu-software")] {
        let mut browser = site.open(webgpu);
        let shown = browser.eval(&format!(
            "(async () => {{
                const worker = await ccm.WorkerSampler.load('{SHAPES}', {{ backend: '{backend}' }});
                const [first, second] = await worker.sample({{ seed: 6, label: 3, count: 2 }});
                const canvas = document.body.appendChild(document.createElement('canvas'));
                await worker.draw(canvas, {{ seed: 7, label: 'ghost' }});
                await new Promise((resolve) => setTimeout(resolve, 300));
                const late = new AbortController();
                const long = fault(worker.sample({{ count: 5000, signal: late.signal }}));
                setTimeout(() => late.abort(), 50);
                const errors = [await fault(worker.sample({{ label: 8 }})), await long];
                worker.free();
                return [[...second.data], pixels(canvas), errors, await fault(worker.sample())];
            }})()"
        ));
        let expected = native(&shapes(), 7, 3, 1);
        assert_same_picture(&shown[0], &expected);
        assert_same_picture(&shown[1], &expected);
        assert_eq!(shown[2], json!(["RequestError request", "AbortError aborted"]));
        assert_eq!(shown[3], json!("RequestError request"));
        assert_no_complaints(&browser);
    }
}

#[test]
fn without_webgpu_auto_uses_the_cpu_and_webgpu_is_a_typed_error() {
    let site = Site::new();
    for webgpu in [WebGpu::Absent, WebGpu::Software] {
        let mut browser = site.open(webgpu);
        let load = |backend| format!("ccm.Sampler.load('{SHAPES}', {{ backend: '{backend}' }})");
        assert_eq!(browser.eval(&format!("{}.then((s) => s.info.backend)", load("auto"))), json!("cpu"));
        // A software adapter counts as no adapter unless it is requested.
        assert_eq!(browser.eval(&format!("fault({})", load("webgpu"))), json!("NoWebGpuError no-webgpu"));
    }
}

#[test]
fn a_model_that_is_too_large_for_the_adapter_is_a_typed_error() {
    let site = Site::new();
    let mut browser = site.open(WebGpu::Software);
    browser.eval(
        "for (const name of ['maxStorageBufferBindingSize', 'maxBufferSize'])
            Object.defineProperty(GPUSupportedLimits.prototype, name, { get: () => 4096 }); 0",
    );
    let load = format!("fault(ccm.Sampler.load('{SHAPES}', {{ backend: 'webgpu-software' }}))");
    assert_eq!(browser.eval(&load), json!("ModelTooLargeError too-large"));
}

#[test]
fn corrupt_models_and_invalid_requests_are_typed_errors_and_later_calls_work() {
    let site = Site::new();
    let mut browser = site.open(WebGpu::Absent);
    let whole = shapes();
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let bad = [
        ("empty", Vec::new()),
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("huge", huge),
        ("page", b"<html>".repeat(99)),
    ];
    for (name, bytes) in bad {
        let url = site.put(name, &bytes);
        let error = browser.eval(&format!("fault(ccm.Sampler.load('{url}'))"));
        assert_eq!(error, json!("CorruptModelError corrupt"), "{name}");
    }
    browser.eval(&format!("ccm.Sampler.load('{SHAPES}').then((s) => {{ window.s = s; return 0; }})"));
    let requests = [
        "s.sample({ label: 'elephant' })",
        "s.sample({ label: 8 })",
        "s.sample({ seed: -1 })",
        "s.sample({ seed: 0.5 })",
        "s.sample({ seed: 2n ** 64n })",
        "s.sample({ steps: 0 })",
        "s.sample({ count: 1e9 })",
        "s.draw('canvas')",
        "s.interpolate(document.createElement('canvas'), 1, 2, 1.5)",
        "ccm.Sampler.load(7)",
        "ccm.Sampler.load('x', { backend: 'abacus' })",
    ];
    for request in requests {
        assert_eq!(browser.eval(&format!("fault({request})")), json!("RequestError request"), "{request}");
    }
    assert_eq!(browser.eval("fault(ccm.Sampler.load('/nowhere'))"), json!("DownloadError download"));
    let picture = browser.eval("s.sample({ seed: 7, label: 3 }).then(([image]) => [...image.data])");
    assert_same_picture(&picture, &native(&whole, 7, 3, 1));
    assert_eq!(browser.eval("(s.free(), fault(s.sample()))"), json!("RequestError request"));
}

#[test]
fn a_destroyed_device_is_opened_again() {
    let site = Site::new();
    let mut browser = site.open(WebGpu::Software);
    browser.eval(&format!(
        "ccm.Sampler.load('{SHAPES}', {{ backend: 'webgpu-software' }}).then((s) => {{
            window.s = s;
            window.canvas = document.body.appendChild(document.createElement('canvas'));
            canvas.style.display = 'block';
            return s.draw(canvas, {{ seed: 7, label: 3 }});
        }})"
    ));
    let expected = native(&shapes(), 7, 3, 1);
    assert_same_picture(&browser.seen("canvas"), &expected);
    for _ in 0..2 {
        browser.eval(
            "(async () => {
                await s.draw(canvas, { seed: 1 });
                s.loseDevice();
                await new Promise((resolve) => setTimeout(resolve, 200));
                // A call that detects the loss reports it; the next call reopens the device.
                const again = (call) => call().catch((error) => error.code === 'device-lost' ? call() : error);
                await again(() => s.draw(canvas, { seed: 7, label: 3 }));
            })()",
        );
        assert_same_picture(&browser.seen("canvas"), &expected);
    }
    let sampled = browser.eval("s.sample({ seed: 7, label: 3 }).then(([image]) => [...image.data])");
    assert_same_picture(&sampled, &expected);
}

#[test]
fn abort_aborts_a_download_and_a_series() {
    let site = Site::new();
    let mut browser = site.open(WebGpu::Absent);
    let errors = browser.eval(&format!(
        "(async () => {{
            const aborted = AbortSignal.abort();
            const before = await fault(ccm.Sampler.load('{SHAPES}', {{ signal: aborted }}));
            const during = new AbortController();
            const onProgress = () => during.abort();
            const halfway = await fault(ccm.Sampler.load('{SHAPES}', {{ signal: during.signal, onProgress }}));
            const s = await ccm.Sampler.load('{SHAPES}');
            const late = new AbortController();
            setTimeout(() => late.abort(), 50);
            const series = await fault(s.sample({{ count: 5000, signal: late.signal }}));
            return [before, halfway, series, (await s.sample({{ count: 3 }})).length];
        }})()"
    ));
    let aborted = "AbortError aborted";
    assert_eq!(errors, json!([aborted, aborted, aborted, 3]));
}

#[test]
fn a_second_visit_takes_the_model_from_the_cache_until_it_changes() {
    let site = Site::new();
    let url = site.put("model.safetensors", &shapes());
    let mut browser = site.open(WebGpu::Absent);
    let load = format!(
        "(async () => {{ let last; const s = await ccm.Sampler.load('{url}', {{ onProgress: (p) => last = p }});
            await new Promise((resolve) => setTimeout(resolve, 300)); return [last.cached, last.loaded === last.total, s.info.channels]; }})()"
    );
    let downloads = || site.downloads(&url);
    assert_eq!(browser.eval(&load), json!([false, true, 3]));
    site.reopen(&mut browser);
    assert_eq!(browser.eval(&load), json!([true, true, 3]));
    assert_eq!(downloads(), 1);
    site.put("model.safetensors", &grey());
    site.reopen(&mut browser);
    assert_eq!(browser.eval(&load), json!([false, true, 1]));
    assert_eq!(downloads(), 2);
}

#[test]
fn two_hundred_samples_do_not_increase_memory() {
    let site = Site::new();
    for (webgpu, backend) in [(WebGpu::Absent, "cpu"), (WebGpu::Software, "webgpu-software")] {
        let mut browser = site.open(webgpu);
        browser.eval(&format!(
            "ccm.Sampler.load('{SHAPES}', {{ backend: '{backend}' }}).then((s) => {{ window.s = s; return 0; }})"
        ));
        let canvas = "window.canvas ??= document.createElement('canvas')";
        let round = format!(
            "(async () => {{ {canvas}; for (let i = 0; i < 50; i++) {{ await s.sample({{ seed: i }}); \
             await s.draw(canvas, {{ seed: i }}); }} return [s.info.heap, s.info.memory]; }})()"
        );
        let script_heap = |browser: &mut Browser| {
            browser.call("HeapProfiler.collectGarbage", json!({}));
            browser.call("Runtime.getHeapUsage", json!({}))["usedSize"].as_f64().unwrap()
        };
        let (before, heap) = (browser.eval(&round), script_heap(&mut browser));
        let (after, later) = (browser.eval(&round), script_heap(&mut browser));
        assert_eq!(before, after, "{backend}: bytes of the engine's heap and of its buffers");
        assert!(later - heap < 1e6, "{backend}: JavaScript's heap grew by {} bytes", later - heap);
    }
}

#[test]
fn the_element_draws_the_image_of_its_attributes() {
    let site = Site::new();
    let mut browser = site.open(WebGpu::Absent);
    let shown = browser.eval(&format!(
        "(async () => {{
            document.body.innerHTML = '<ccm-image seed=\"7\" label=\"3\"></ccm-image>';
            const element = document.querySelector('ccm-image');
            const shows = () => pixels(element.shadowRoot.querySelector('canvas'));
            const sizes = [element.clientWidth, element.clientHeight];
            let loads = 0;
            element.addEventListener('load', () => loads++);
            let event = next(element, 'load');
            element.setAttribute('model', '{SHAPES}');
            await event;
            const first = shows();
            event = next(element, 'load');
            element.setAttribute('seed', '1');
            element.setAttribute('label', 'star');
            element.setAttribute('seed', 'Grace');
            await event;
            const second = shows();
            const drawn = loads;
            await element.generate();
            const fresh = element.getAttribute('seed');
            event = next(element, 'error');
            element.setAttribute('label', 'elephant');
            const code = (await event).error.code;
            event = next(element, 'error');
            element.setAttribute('model', '/nowhere');
            const missing = (await event).error.code;
            event = next(element, 'load');
            element.setAttribute('label', '3');
            element.setAttribute('seed', '7');
            element.setAttribute('model', '{SHAPES}');
            await event;
            const last = shows();
            event = next(element, 'error');
            element.setAttribute('model', 'http://[');
            const invalid = (await event).error.code;
            // A style sheet belongs to one document.
            const frame = document.body.appendChild(document.createElement('iframe'));
            event = next(element, 'load');
            element.setAttribute('model', '{SHAPES}');
            frame.contentDocument.body.append(element);
            await event;
            const moved = [element.clientWidth, frame.contentWindow.getComputedStyle(element).display];
            // The document of a template has no window.
            document.body.appendChild(document.createElement('template')).content.append(element);
            document.body.append(element);
            await next(element, 'load');
            return [sizes, first, second, drawn, fresh !== 'Grace', code, missing, last, invalid, moved];
        }})()"
    ));
    assert_eq!(shown[0], json!([128, 128]), "the size before the model is loaded");
    let expected = native(&shapes(), 7, 3, 1);
    assert_same_picture(&shown[1], &expected);
    assert_same_picture(&shown[2], &native(&shapes(), GRACE, 7, 1));
    assert_eq!(shown[3], json!(2), "three attributes changed at once are one drawing");
    assert_eq!([&shown[4], &shown[5], &shown[6]], [&json!(true), &json!("request"), &json!("download")]);
    assert_same_picture(&shown[7], &expected);
    assert_eq!(shown[8], json!("request"));
    assert_eq!(shown[9], json!([128, "inline-block"]), "the styles in another document");
    browser.call("Accessibility.enable", json!({}));
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let image = tree["nodes"].as_array().unwrap().iter().find(|node| node["role"]["value"] == "image");
    assert_eq!(image.expect("an image")["name"]["value"], "generated image, seed 7, 3");
}

/// The entry for Node. It is not counted, because no other script imports it and a page does not download it.
const NODE_ENTRY: &str = "node.js";

/// What a page downloads only for models with text; a test of `text.rs` checks that.
const TEXT_FILES: [&str; 3] = ["text.js", "ccm_text.js", "ccm_text_bg.wasm"];

#[test]
fn the_package_is_small() {
    let files = fs::read_dir(package().join("pkg")).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|file| !file.ends_with(NODE_ENTRY));
    let mut of_text = Vec::new();
    let sizes = files.map(|file| {
        let (text, mut packed) = (fs::read(&file).unwrap(), Vec::new());
        if file.extension().is_some_and(|extension| extension == "js") {
            assert!(
                !String::from_utf8_lossy(&text).contains(NODE_ENTRY),
                "{}: imports {NODE_ENTRY}",
                file.display()
            );
        }
        let parameters = brotli::enc::BrotliEncoderParams { quality: 11, lgwin: 24, ..Default::default() };
        brotli::BrotliCompress(&mut text.as_slice(), &mut packed, &parameters).unwrap();
        println!("{:>8} bytes, {:>7} compressed: {}", text.len(), packed.len(), file.display());
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if TEXT_FILES.contains(&name.as_str()) {
            of_text.push((name, packed.len()));
            return 0;
        }
        packed.len()
    });
    let total: usize = sizes.sum();
    assert_eq!(of_text.len(), TEXT_FILES.len(), "{of_text:?}");
    for (name, size) in of_text {
        assert!(size <= LARGEST_TEXT_DOWNLOAD, "{name} is {size} bytes compressed");
    }
    println!("{total} bytes compressed in all");
    assert!(
        total <= LARGEST_DOWNLOAD,
        "wasm and JavaScript are {total} bytes compressed, more than {LARGEST_DOWNLOAD}"
    );
}

/// Diffusion models of other libraries: the native images agree with the library's in `pipelines.rs`.
#[test]
fn imported_diffusion_models_give_the_native_images() {
    let edm = imported("edm", Role::Student);
    let ddpm = imported("ddpm", Role::Teacher);
    let site = Site::new();
    for (name, model, classes, steps) in [("edm", edm, true, 1), ("ddpm", ddpm, false, 3)] {
        let url = site.put(&format!("{name}.safetensors"), &model);
        for (webgpu, backend) in [(WebGpu::Absent, "cpu"), (WebGpu::Software, "webgpu-software")] {
            let label = if classes { "label: 2, " } else { "" };
            let found = site.open(webgpu).eval(&format!(
                "ccm.Sampler.load('{url}', {{ backend: '{backend}' }})
                    .then((s) => s.sample({{ seed: 5, {label}steps: {steps} }})).then(([image]) => [...image.data])"
            ));
            assert_same_picture(&found, &native(&model, 5, if classes { 2 } else { 0 }, steps));
        }
    }
}

/// A pipeline of the fixtures as a model file.
fn imported(name: &str, role: Role) -> Vec<u8> {
    let folder = fixtures().join("pipelines").join(name);
    if diffusers::is_pipeline(&folder) {
        return diffusers::read(&folder, Some(role)).expect("a pipeline").model.to_bytes();
    }
    let (checkpoint, text) = description::described_folder(&folder).expect("a described checkpoint");
    let text = fs::read_to_string(text).unwrap();
    let Description { spec, prediction } = description::description_from_json(&text, role).unwrap();
    let found = Checkpoint::open(&checkpoint).unwrap().select(&spec.tensors(), None).unwrap();
    let card = ModelCard { role, ..ModelCard::default() };
    Model::new(spec, prediction, card, found.tensors).unwrap().to_bytes()
}

/// A network whose output is zero returns the noise of the seed. The bytes are from `references/noise.py`.
#[test]
fn the_image_of_a_seed_never_changes() {
    let mut model = Model::from_bytes(&grey()).unwrap();
    let names = model.spec.tensors().into_iter().map(|tensor| tensor.name);
    for (_, tensor) in names.zip(&mut model.tensors).filter(|(name, _)| name.starts_with("out.2.")) {
        tensor.values.fill(0.0);
    }
    let expected = [164, 193, 99, 0, 18, 255, 159, 84, 249, 120, 64, 184, 120, 255, 0, 105];
    let picture = native(&model.to_bytes(), 7, 0, 1);
    assert_eq!(picture.iter().step_by(4).take(16).collect::<Vec<_>>(), expected.each_ref(), "natively");
    let site = Site::new();
    let url = site.put("zero.safetensors", &model.to_bytes());
    for (webgpu, backend) in [(WebGpu::Absent, "cpu"), (WebGpu::Software, "webgpu-software")] {
        let found = site.open(webgpu).eval(&format!(
            "ccm.Sampler.load('{url}', {{ backend: '{backend}' }}).then((s) => s.sample({{ seed: 7 }}))
                .then(([image]) => [...image.data].filter((_, i) => i % 4 === 0).slice(0, 16))"
        ));
        assert_eq!(found, json!(expected), "{backend}");
    }
}
