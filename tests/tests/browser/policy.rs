//! The package under content security policies: the documented directives suffice, and each is needed.

use std::fs;

use ccm_tests::browser::{Browser, WebGpu};
use ccm_tests::site::{SHAPES, Site, assert_no_complaints, assert_same_picture, grey, native, shapes};
use ccm_web::build::root;
use serde_json::{Value, json};

/// The policy for the package, as in `web/README.md`.
const POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'";
/// The policy for a package on another origin, as in `web/README.md`.
const CDN_POLICY: &str = "default-src 'none'; script-src 'self' https://cdn.example 'wasm-unsafe-eval'; \
     connect-src 'self' https://cdn.example; worker-src blob: https://cdn.example";
/// Allows the icon of the test's own page.
const ICON: &str = "; img-src data:";

/// The start of a page whose icon needs no request.
const PAGE: &str = r#"<!doctype html><link rel="icon" href="data:,"><body>"#;

/// Samples with a `Sampler`, a `WorkerSampler` and an element; each gives an image or an error.
const SAMPLE: &str = "(async () => {
    const url = new URL('/web/models/shapes/student.safetensors', location).href;
    const image = async (sampler) => {
        try {
            const [image] = await (await sampler.load(url)).sample({ seed: 7, label: 'ghost' });
            return [...image.data];
        } catch (error) {
            return `${error.name} ${error.code}`;
        }
    };
    const element = document.createElement('ccm-image');
    element.setAttribute('model', url);
    element.setAttribute('seed', '7');
    element.setAttribute('label', 'ghost');
    const drawn = new Promise((resolve) => {
        element.onload = () => resolve(pixels(element.shadowRoot.querySelector('canvas')));
        element.onerror = ({ error }) => resolve(`${error.name} ${error.code}`);
    });
    document.body.append(element);
    return [await image(ccm.Sampler), await image(ccm.WorkerSampler), await drawn];
})()";

fn under(policy: &str) -> (Site, Browser) {
    let site = Site::with_headers(&[("Content-Security-Policy", policy)]);
    let browser = site.open(WebGpu::Absent);
    (site, browser)
}

fn assert_samples(outcomes: &Value, expected: [Option<&str>; 3], policy: &str) {
    let picture = native(&shapes(), 7, 3, 1);
    for (place, expected) in expected.iter().enumerate() {
        match expected {
            Some(error) => assert_eq!(outcomes[place], json!(error), "{policy}"),
            None => {
                assert!(outcomes[place].is_array(), "{policy}: {}", outcomes[place]);
                assert_same_picture(&outcomes[place], &picture);
            }
        }
    }
}

#[test]
fn the_documented_policy_is_enough() {
    let readme = fs::read_to_string(root().join("web/README.md")).unwrap();
    let lines = |policy: &str| policy.split("; ").all(|directive| readme.contains(directive));
    assert!(lines(POLICY) && lines(CDN_POLICY), "the README documents the tested policies");
    let (site, mut browser) = under(&format!("{POLICY}{ICON}"));
    assert_samples(&browser.eval(SAMPLE), [None; 3], POLICY);
    // Each element is 8rem wide and has the aspect ratio of its model.
    let grey = site.put("grey.safetensors", &grey());
    let sizes = browser.eval(&format!(
        "(async () => {{
            const other = document.createElement('ccm-image');
            other.setAttribute('model', '{grey}');
            document.body.append(other);
            await next(other, 'load');
            return [...document.querySelectorAll('ccm-image')].map((e) => [e.clientWidth, e.clientHeight]);
        }})()"
    ));
    assert_eq!(sizes, json!([[128, 128], [128, 192]]));
    assert_no_complaints(&browser);
}

#[test]
fn each_directive_of_the_policy_is_needed() {
    let download = Some("DownloadError download");
    let no_worker = [None, Some("NoWorkerError no-worker"), None];
    let cases = [
        (POLICY.replace(" 'wasm-unsafe-eval'", ""), [download; 3]),
        (POLICY.replace("; connect-src 'self'", ""), [download; 3]),
        // If a worker cannot start, the page's own samplers still work.
        (format!("{POLICY}; worker-src 'none'"), no_worker),
        (format!("{POLICY}; require-trusted-types-for 'script'"), no_worker),
    ];
    for (policy, expected) in cases {
        let (_site, mut browser) = under(&format!("{policy}{ICON}"));
        assert_samples(&browser.eval(SAMPLE), expected, &policy);
    }
}

#[test]
fn the_documented_policy_is_enough_for_a_package_on_another_origin() {
    let cdn = Site::with_headers(&[("Access-Control-Allow-Origin", "*")]);
    let cases = [
        (CDN_POLICY.to_owned(), [None; 3]),
        (CDN_POLICY.replace("blob: ", ""), [None, Some("NoWorkerError no-worker"), None]),
    ];
    for (policy, expected) in cases {
        let policy = format!("{}{ICON}", policy.replace("https://cdn.example", &cdn.server.url()));
        let site = Site::with_headers(&[("Content-Security-Policy", &policy)]);
        let page = format!(
            r#"{PAGE}<script type="module" src="{}/tests/pages/sampler.js"></script>"#,
            cdn.server.url()
        );
        let mut browser = Browser::start(WebGpu::Absent);
        browser.open(&format!("{}{}", site.server.url(), site.put("page.html", page.as_bytes())));
        browser.wait_for("window.ready === true");
        assert_samples(&browser.eval(SAMPLE), expected, &policy);
        assert_eq!(cdn.downloads(SHAPES), 0, "the model is on the page's origin");
    }
}

#[test]
fn the_benchmark_page_works_under_a_policy() {
    let policy = format!("{POLICY}; style-src 'self'; img-src 'self'");
    let site = Site::with_headers(&[("Content-Security-Policy", &policy)]);
    let mut browser = Browser::start(WebGpu::Absent);
    browser.open(&format!("{}/web/bench.html?backends=cpu&rounds=2", site.server.url()));
    browser.wait_for("document.getElementById('state').textContent === 'Done'");
    assert_eq!(
        browser.eval("results.map((result) => [result.backend, result.best > 0])"),
        json!([["cpu", true]])
    );
    assert_eq!(browser.eval("getComputedStyle(document.querySelector('th')).textAlign"), json!("left"));
    assert_no_complaints(&browser);
}

#[test]
fn a_sandboxed_frame_samples_without_a_worker() {
    let site = Site::with_headers(&[("Access-Control-Allow-Origin", "*")]);
    let script = format!("import '/tests/pages/sampler.js';\nparent.postMessage(await {SAMPLE}, '*');");
    site.put("frame.js", script.as_bytes());
    let frame = format!(r#"{PAGE}<script type="module" src="frame.js"></script>"#);
    site.put("frame.html", frame.as_bytes());
    site.put("page.js", b"addEventListener('message', ({ data }) => (window.outcomes = data));");
    let page = format!(
        r#"{PAGE}<script src="page.js"></script><iframe sandbox="allow-scripts" src="frame.html"></iframe>"#
    );
    let mut browser = Browser::start(WebGpu::Absent);
    browser.open(&format!("{}{}", site.server.url(), site.put("page.html", page.as_bytes())));
    browser.wait_for("window.outcomes !== undefined");
    assert_samples(
        &browser.eval("outcomes"),
        [None, Some("NoWorkerError no-worker"), None],
        "a sandboxed frame",
    );
}
