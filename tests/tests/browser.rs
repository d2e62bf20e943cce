//! The package and the demo page in a real browser: pictures as native ones, errors with their codes, caches, canvases,
//! lost devices. Every test has a browser of its own; the WebAssembly is built once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ccm::sampler::image::to_byte;
use ccm::sampler::schedule::Request;
use ccm::sampler::{Backend, Sampler};
use ccm::spec::UNetSpec;
use ccm_tests::browser::{Browser, WebGpu};
use ccm_tests::lively_model;
use ccm_web::build::{build, root};
use ccm_web::serve::Server;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A class-conditional model of the repository, trained on 16x16 shapes of eight classes.
const SHAPES: &str = "/web/models/shapes/student.safetensors";

/// Bytes of WebAssembly and JavaScript that a page downloads, compressed with brotli.
const LARGEST_DOWNLOAD: usize = 150_000;

/// The folder of the package, with its WebAssembly.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let web = root().join("web");
        build(&web.join("pkg")).unwrap_or_else(|error| panic!("{error}"));
        web
    })
}

/// The repository, served, and a folder of further models under `/scratch`.
struct Site {
    server: Server,
    scratch: TempDir,
}

impl Site {
    fn new() -> Self {
        package();
        let scratch = tempfile::tempdir().unwrap();
        let server = Server::start(0, &[("/", &root()), ("/scratch", scratch.path())]).unwrap();
        Self { server, scratch }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.scratch.path().join(name), bytes).unwrap();
        format!("/scratch/{name}")
    }

    /// A browser with the package loaded as `ccm`.
    fn open(&self, webgpu: WebGpu) -> Browser {
        let mut browser = Browser::start(webgpu);
        self.reopen(&mut browser);
        browser
    }

    fn reopen(&self, browser: &mut Browser) {
        browser.open(&format!("{}/tests/pages/sampler.html", self.server.url()));
        browser.wait_for("window.ready === true");
    }
}

fn shapes() -> Vec<u8> {
    fs::read(root().join(&SHAPES[1..])).unwrap()
}

/// A small grey model without classes.
fn grey() -> Vec<u8> {
    let spec = UNetSpec {
        in_channels: 1,
        height: 12,
        width: 8,
        model_channels: 32,
        num_res_blocks: 1,
        channel_mult: vec![1.0, 2.0],
        attention_resolutions: vec![4],
        num_heads: 2,
        num_head_channels: None,
        num_heads_upsample: None,
        use_scale_shift_norm: true,
        resblock_updown: false,
        use_new_attention_order: false,
        dropout: 0.0,
        num_classes: None,
    };
    lively_model(&spec).to_bytes()
}

/// The picture that the native sampler makes: RGBA.
fn native(model: &[u8], seed: u64, label: u32, steps: usize) -> Vec<u8> {
    let mut sampler = pollster::block_on(Sampler::load(model, Backend::Cpu)).unwrap();
    let request = Request::from_seeds(sampler.spec(), seed, &[label], 1);
    let planes = pollster::block_on(sampler.sample(&request, steps)).unwrap();
    let (channels, pixels) = (sampler.spec().in_channels, sampler.spec().height * sampler.spec().width);
    let value = |pixel: usize, channel: usize| planes[channel.min(channels - 1) * pixels + pixel];
    let rgba = |pixel| [0, 1, 2, 3].map(|c| if c == 3 { 255 } else { to_byte(value(pixel, c)) });
    (0..pixels).flat_map(rgba).collect()
}

#[track_caller]
fn assert_same_picture(found: &Value, expected: &[u8]) {
    let found: Vec<i64> = found.as_array().expect("pixels").iter().filter_map(Value::as_i64).collect();
    assert_eq!(found.len(), expected.len(), "bytes of the picture");
    let difference = found.iter().zip(expected).map(|(a, b)| (a - i64::from(*b)).abs()).max();
    assert!(difference <= Some(1), "the pictures differ by {difference:?} of 255");
}

#[track_caller]
fn assert_no_complaints(browser: &Browser) {
    assert!(browser.complaints.is_empty(), "the page complained: {:?}", browser.complaints);
}

fn pictures_are_the_native_ones(webgpu: WebGpu, backend: &str, runs_on: &str) {
    let site = Site::new();
    let mut browser = site.open(webgpu);
    let cases = [(SHAPES.to_owned(), shapes(), 3), (site.put("grey.safetensors", &grey()), grey(), 0)];
    for (url, model, label) in cases {
        let classes = if label > 0 { "heart" } else { "" };
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
fn pictures_are_the_native_ones_on_the_cpu() {
    pictures_are_the_native_ones(WebGpu::Absent, "cpu", "cpu");
}

#[test]
fn pictures_are_the_native_ones_on_webgpu() {
    pictures_are_the_native_ones(WebGpu::Software, "webgpu-software", "webgpu");
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
                await worker.draw(canvas, {{ seed: 7, label: 'heart' }});
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
fn without_webgpu_auto_takes_the_cpu_and_webgpu_is_a_typed_error() {
    let site = Site::new();
    for webgpu in [WebGpu::Absent, WebGpu::Software] {
        let mut browser = site.open(webgpu);
        let load = |backend| format!("ccm.Sampler.load('{SHAPES}', {{ backend: '{backend}' }})");
        assert_eq!(browser.eval(&format!("{}.then((s) => s.info.backend)", load("auto"))), json!("cpu"));
        // A software adapter is none, unless it is asked for.
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
fn corrupt_models_and_impossible_requests_are_typed_errors_and_the_page_goes_on() {
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
                // A call that meets the loss says so; the next one opens the device again.
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
    let downloads = || site.server.requests().iter().filter(|line| **line == format!("GET {url}")).count();
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
fn two_hundred_samples_leave_memory_where_it_was() {
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
fn the_element_draws_what_its_attributes_say() {
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
            element.setAttribute('seed', '8');
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
            return [sizes, first, second, drawn, fresh !== '8', code, missing, shows()];
        }})()"
    ));
    assert_eq!(shown[0], json!([128, 128]), "a size before the model has arrived");
    let expected = native(&shapes(), 7, 3, 1);
    assert_same_picture(&shown[1], &expected);
    assert_same_picture(&shown[2], &native(&shapes(), 8, 6, 1));
    assert_eq!(shown[3], json!(2), "three attributes changed at once are one drawing");
    assert_eq!([&shown[4], &shown[5], &shown[6]], [&json!(true), &json!("request"), &json!("download")]);
    assert_same_picture(&shown[7], &expected);
    browser.call("Accessibility.enable", json!({}));
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let image = tree["nodes"].as_array().unwrap().iter().find(|node| node["role"]["value"] == "image");
    assert_eq!(image.expect("an image")["name"]["value"], "generated image, seed 7, 3");
}

fn the_page_works(webgpu: WebGpu, backend: &str) {
    let site = Site::new();
    let mut browser = Browser::start(webgpu);
    browser.open(&format!("{}/?backend={backend}", site.server.url()));
    let state = |state: &str| format!("document.documentElement.dataset.state === '{state}'");
    browser.wait_for(&state("ready"));
    let first = browser.eval("performance.getEntriesByName('first-picture')[0].startTime");
    println!("{backend}: first picture {first} ms after navigation");
    browser.wait_for("[...document.querySelectorAll('.tile canvas')].at(-1)?.width === 16");
    browser.eval("document.querySelectorAll('#classes input')[6].click()");
    browser.eval("document.getElementById('steps').value = 4; document.getElementById('start').click()");
    browser.wait_for("document.getElementById('verdict').textContent.includes('times as fast')");
    browser.eval("document.querySelectorAll('.tile')[3].click()");
    browser.wait_for("document.getElementById('stage').getAttribute('aria-label').endsWith('seed 10')");
    assert_no_complaints(&browser);

    let own = site.scratch.path().join("own.safetensors");
    for (bytes, expected) in [(vec![1; 99], "failed"), (grey(), "ready")] {
        fs::write(&own, bytes).unwrap();
        let document = browser.call("DOM.getDocument", json!({}));
        let root = &document["root"]["nodeId"];
        let input = browser.call("DOM.querySelector", json!({ "nodeId": root, "selector": "#file" }));
        browser.call("DOM.setFileInputFiles", json!({ "files": [own], "nodeId": input["nodeId"] }));
        browser.wait_for(&state(expected));
    }
    browser.wait_for("document.querySelector('#stage canvas').height === 12");
    assert_eq!(browser.eval("document.getElementById('classes').hidden"), json!(true));
    assert_no_complaints(&browser);
}

#[test]
fn the_demo_page_works_without_webgpu() {
    the_page_works(WebGpu::Absent, "auto");
}

#[test]
fn the_demo_page_works_on_webgpu() {
    the_page_works(WebGpu::Software, "webgpu-software");
}

#[test]
fn the_package_is_small() {
    let web = package();
    let files = fs::read_dir(web.join("pkg")).unwrap().map(|entry| entry.unwrap().path());
    let sizes = files.map(|file| {
        let (text, mut packed) = (fs::read(&file).unwrap(), Vec::new());
        let parameters = brotli::enc::BrotliEncoderParams { quality: 11, lgwin: 24, ..Default::default() };
        brotli::BrotliCompress(&mut text.as_slice(), &mut packed, &parameters).unwrap();
        println!("{:>8} bytes, {:>7} compressed: {}", text.len(), packed.len(), file.display());
        packed.len()
    });
    let total: usize = sizes.sum();
    println!("{total} bytes compressed in all");
    assert!(
        total <= LARGEST_DOWNLOAD,
        "wasm and JavaScript are {total} bytes compressed, more than {LARGEST_DOWNLOAD}"
    );
}

#[test]
fn the_npm_package_works_in_a_vite_project() {
    package();
    let folder = tempfile::tempdir().unwrap();
    let project = folder.path();
    let npm = |arguments: &[&str], at: &Path| {
        let output = Command::new("npm").args(arguments).current_dir(at).output();
        let output = output.expect("npm is missing: install it (Debian: apt-get install nodejs npm)");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "npm {arguments:?}: {text}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let major =
        |version: &str| version.trim_start_matches('v').split('.').next().unwrap().parse::<u32>().unwrap();
    let node = Command::new("node").arg("--version").output().expect("node is missing (Debian: nodejs)");
    let vite = match (major(&String::from_utf8_lossy(&node.stdout)), major(&npm(&["--version"], project))) {
        (..20, _) => "vite@5",
        (_, ..11) => "vite@7",
        _ => "vite@8",
    };
    let destination = project.to_str().unwrap();
    let packed = npm(&["pack", "--silent", "--pack-destination", destination], &root().join("web"));
    fs::write(project.join("package.json"), r#"{ "private": true, "type": "module" }"#).unwrap();
    let quiet = ["--silent", "--no-audit", "--no-fund"];
    npm(&[&["install", &format!("./{packed}"), vite, "typescript@5"], &quiet[..]].concat(), project);
    let page = r#"<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>Vite</title>
        <body><script type="module" src="/main.ts"></script>"#;
    fs::write(project.join("index.html"), page).unwrap();
    let script = r#"
        import { Sampler, WorkerSampler, type Info } from "ccm-web";
        import "ccm-web/element";
        const url = "/models/student.safetensors";
        const sampler = await Sampler.load(url, { backend: "cpu" });
        const worker = await WorkerSampler.load(url, { backend: "cpu" });
        const info: Info = sampler.info;
        const images = await Promise.all([sampler, worker].map((s) => s.sample({ seed: 7, label: "heart" })));
        const element = document.createElement("ccm-image");
        element.setAttribute("model", url);
        element.addEventListener("load", () => Object.assign(window, { drawn: element.info?.width }));
        document.body.append(element);
        Object.assign(window, { pictures: images.map(([image]) => [...image!.data]), width: info.width });
    "#;
    fs::write(project.join("main.ts"), script).unwrap();
    let check = ["exec", "--", "tsc", "--noEmit", "--strict", "--target", "es2022", "--module", "esnext"];
    npm(
        &[&check[..], &["--moduleResolution", "bundler", "--skipLibCheck", "false", "main.ts"]].concat(),
        project,
    );
    npm(&["exec", "--", "vite", "build", "--logLevel", "error", "--target", "es2022"], project);
    let models = root().join("web/models/shapes");
    let server = Server::start(0, &[("/", &project.join("dist")), ("/models", &models)]).unwrap();
    let mut browser = Browser::start(WebGpu::Absent);
    browser.open(&server.url());
    browser.wait_for("window.drawn === 16");
    let expected = native(&shapes(), 7, 3, 1);
    for picture in [0, 1] {
        assert_same_picture(&browser.eval(&format!("pictures[{picture}]")), &expected);
    }
    assert_no_complaints(&browser);
}

/// A network that gives zero leaves the noise of its seed as the picture. The bytes are those of `references/noise.py`.
#[test]
fn a_seed_gives_the_picture_it_always_gave() {
    let mut model = ccm::weights::Model::from_bytes(&grey()).unwrap();
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
