//! Workers that cannot start or that fail; `free`; `configure`.

use ccm_tests::browser::WebGpu;
use ccm_tests::site::{SHAPES, Site, assert_no_complaints, assert_same_picture, native, package, shapes};
use serde_json::json;

const WASM: &str = "/web/pkg/ccm_web_bg.wasm";

#[test]
fn a_worker_that_cannot_start_is_a_typed_error() {
    let site = Site::new();
    let missing = "/scratch/nowhere.js".to_owned();
    let unlinked = site.put("unlinked.js", b"import './nowhere.js';");
    let throws = site.put("throws.js", b"throw new Error('no');");
    let mut browser = site.open(WebGpu::Absent);
    for script in [missing, unlinked, throws] {
        let load = format!(
            "(ccm.Sampler.configure({{ worker: '{script}' }}), fault(ccm.WorkerSampler.load('{SHAPES}')))"
        );
        assert_eq!(browser.eval(&load), json!("NoWorkerError no-worker"), "{script}");
    }
    browser.eval("delete window.Worker; 0");
    let load = format!("fault(ccm.WorkerSampler.load('{SHAPES}'))");
    assert_eq!(browser.eval(&load), json!("NoWorkerError no-worker"), "no workers at all");
}

#[test]
fn calls_fail_when_their_worker_ends() {
    let site = Site::new();
    // This worker answers `load` and fails during `sample`.
    let fails = site.put(
        "fails.js",
        b"import '/web/pkg/worker.js';
        addEventListener('message', ({ data }) => { if (data.call === 'sample') throw new Error('out of order'); });",
    );
    let silent = site.put("silent.js", b"");
    let mut browser = site.open(WebGpu::Absent);
    let outcomes = browser.eval(&format!(
        "(async () => {{
            ccm.Sampler.configure({{ worker: '{fails}' }});
            const sampler = await ccm.WorkerSampler.load('{SHAPES}');
            const outcomes = [await sampler.sample({{ count: 5000 }}).catch((error) => error.message)];
            outcomes.push(await fault(sampler.sample()));
            ccm.Sampler.configure({{ worker: '{silent}' }});
            const late = new AbortController();
            setTimeout(() => late.abort(), 100);
            outcomes.push(await fault(ccm.WorkerSampler.load('{SHAPES}', {{ signal: late.signal }})));
            outcomes.push(await fault(ccm.WorkerSampler.load(() => 0)));
            return outcomes;
        }})()"
    ));
    let message = outcomes[0].as_str().unwrap();
    assert!(message.contains("worker has failed") && message.contains("out of order"), "{message}");
    assert_eq!(outcomes[1], json!("CcmError internal"));
    assert_eq!(outcomes[2], json!("AbortError aborted"));
    assert_eq!(outcomes[3], json!("RequestError request"));
}

#[test]
fn calls_made_before_free_finish_and_later_ones_fail() {
    let site = Site::new();
    let expected = native(&shapes(), 7, 3, 1);
    for class in ["Sampler", "WorkerSampler"] {
        let mut browser = site.open(WebGpu::Absent);
        let outcomes = browser.eval(&format!(
            "(async () => {{
                const sampler = await ccm.{class}.load('{SHAPES}');
                const canvas = document.body.appendChild(document.createElement('canvas'));
                const before = [
                    sampler.sample({{ seed: 6, label: 3, count: 2 }}),
                    sampler.draw(canvas, {{ seed: 7, label: 3 }}),
                ];
                sampler.free();
                sampler.free();
                const later = [
                    fault(sampler.sample()),
                    fault(sampler.draw(document.createElement('canvas'))),
                    fault((async () => sampler.info)()),
                ];
                const [[, image]] = await Promise.all(before);
                // Until the worker has ended; its drawings must remain.
                await new Promise((resolve) => setTimeout(resolve, 1000));
                return [[...image.data], pixels(canvas), await Promise.all(later)];
            }})()"
        ));
        assert_same_picture(&outcomes[0], &expected);
        assert_same_picture(&outcomes[1], &expected);
        assert_eq!(
            outcomes[2],
            json!(["RequestError request", "RequestError request", "RequestError request"]),
            "{class}"
        );
        assert_no_complaints(&browser);
    }
}

#[test]
fn a_configured_webassembly_reaches_samplers_workers_and_elements() {
    let site = Site::new();
    let wasm = site.put("engine.wasm", &std::fs::read(package().join("pkg/ccm_web_bg.wasm")).unwrap());
    let expected = native(&shapes(), 7, 3, 1);
    let bytes = format!("await (await fetch('{wasm}')).arrayBuffer()");
    let sources = [
        format!("'{wasm}'"),
        format!("new URL('{wasm}', location)"),
        bytes.clone(),
        format!("new Uint8Array({bytes})"),
        format!("await WebAssembly.compile({bytes})"),
    ];
    let mut browser = site.open(WebGpu::Absent);
    let beside = site.downloads(WASM);
    for source in sources {
        site.reopen(&mut browser);
        let pictures = browser.eval(&format!(
            "(async () => {{
                ccm.Sampler.configure({{ wasm: {source} }});
                const request = {{ seed: 7, label: 3 }};
                const [worker] = await (await ccm.WorkerSampler.load('{SHAPES}')).sample(request);
                const element = document.createElement('ccm-image');
                const attributes = {{ ...request, model: '{SHAPES}' }};
                for (const name of Object.keys(attributes)) element.setAttribute(name, attributes[name]);
                document.body.append(element);
                await next(element, 'load');
                const [page] = await (await ccm.Sampler.load('{SHAPES}')).sample(request);
                return [[...page.data], [...worker.data], pixels(element.shadowRoot.querySelector('canvas'))];
            }})()"
        ));
        for place in 0..3 {
            assert_same_picture(&pictures[place], &expected);
        }
        assert_eq!(site.downloads(WASM), beside, "{source}: the WebAssembly beside the script is not loaded");
        let late =
            browser.eval(&format!("fault((async () => ccm.Sampler.configure({{ wasm: '{wasm}' }}))())"));
        assert_eq!(late, json!("RequestError request"), "after the WebAssembly is loaded");
    }
    assert_no_complaints(&browser);
}

#[test]
fn an_invalid_configuration_is_a_typed_error_and_changes_nothing() {
    let site = Site::new();
    let mut browser = site.open(WebGpu::Absent);
    let options = [
        "undefined",
        "null",
        "7",
        "'x'",
        "{ wasm: 7 }",
        "{ wasm: null }",
        "{ wasm: 'http://[' }",
        "{ worker: new Uint8Array(8) }",
        "{ wsm: '/x' }",
        "{ wasm: '/x', worker: 7 }",
    ];
    for options in options {
        let error = browser.eval(&format!("fault((async () => ccm.Sampler.configure({options}))())"));
        assert_eq!(error, json!("RequestError request"), "{options}");
    }
    let picture = browser.eval(&format!(
        "ccm.Sampler.load('{SHAPES}').then((s) => s.sample({{ seed: 7, label: 3 }})).then(([image]) => [...image.data])"
    ));
    assert_same_picture(&picture, &native(&shapes(), 7, 3, 1));
    let invalid = browser.eval("fault(ccm.Sampler.load('http://['))");
    assert_eq!(invalid, json!("RequestError request"), "an address that is not a URL");
}

#[test]
fn a_webassembly_that_cannot_be_loaded_is_a_typed_error_and_can_be_configured_again() {
    let site = Site::new();
    let mut browser = site.open(WebGpu::Absent);
    let outcomes = browser.eval(&format!(
        "(async () => {{
            const outcomes = [];
            for (const wasm of ['/scratch/nowhere.wasm', new Uint8Array(9), '{WASM}']) {{
                ccm.Sampler.configure({{ wasm }});
                for (const sampler of [ccm.WorkerSampler, ccm.Sampler]) outcomes.push(await fault(sampler.load('{SHAPES}')));
            }}
            return outcomes;
        }})()"
    ));
    let download = "DownloadError download";
    assert_eq!(outcomes, json!([download, download, download, download, "none", "none"]));
}
