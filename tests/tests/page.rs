//! The demo page in a browser: a name's picture, the morph, the race, the visitor's own model, and one that reads words.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::Path;

use ccm::import::pack::pack;
use ccm::import::text_to_image;
use ccm::model::Role;
use ccm::weights::Precision;
use ccm_tests::browser::{Browser, WebGpu};
use ccm_tests::fixtures;
use ccm_tests::site::{GRACE, Site, assert_no_complaints, assert_same_picture, avatars, grey, native};
use serde_json::json;

/// The pixels of the page's large picture.
const PIXELS_OF_STAGE: &str = "(() => {
    const canvas = document.querySelector('#stage canvas');
    return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];
})()";

/// The policy of the page: the package's directives, a style sheet and an icon.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; \
     style-src 'self'; img-src 'self'";

/// The first eight bytes of the SHA-256 of "42".
const OF_42: u64 = 8_306_709_966_045_482_637;

/// The style that the page chooses at first.
const MICAH: u32 = 6;

fn has_state(state: &str) -> String {
    format!("document.documentElement.dataset.state === '{state}'")
}

/// Waits until the last tile of the gallery is drawn.
const GALLERY_IS_DRAWN: &str = "[...document.querySelectorAll('.tile canvas')].at(-1)?.width === 64";

/// Types a name.
fn enter(browser: &mut Browser, field: &str, name: &str) {
    browser.eval(&format!(
        "(() => {{ const field = document.getElementById('{field}'); field.value = '{name}';
            field.dispatchEvent(new Event('input')); return 0; }})()"
    ));
}

/// Chooses a file as the visitor's own model.
fn choose(browser: &mut Browser, file: &Path) {
    let document = browser.call("DOM.getDocument", json!({}));
    let root = &document["root"]["nodeId"];
    let input = browser.call("DOM.querySelector", json!({ "nodeId": root, "selector": "#file" }));
    browser.call("DOM.setFileInputFiles", json!({ "files": [file], "nodeId": input["nodeId"] }));
}

/// Checks that the page reported nothing but the policy against workers.
fn assert_only_workers_are_missing(browser: &Browser) {
    let violation = |complaint: &String| complaint.contains("worker-src");
    assert!(browser.complaints.iter().all(violation), "errors of the page: {:?}", browser.complaints);
}

fn the_page_works(webgpu: WebGpu, backend: &str) {
    let site = Site::with_headers(&[("Content-Security-Policy", PAGE_POLICY)]);
    let mut browser = Browser::start(webgpu);
    browser.open(&format!("{}/?backend={backend}", site.server.url()));
    browser.wait_for(&has_state("ready"));
    let first = browser.eval("performance.getEntriesByName('first-picture')[0].startTime");
    println!("{backend}: first picture {first} ms after navigation");
    browser.wait_for(GALLERY_IS_DRAWN);
    let pressed = "[...document.querySelectorAll('.tile')].map((tile) => tile.getAttribute('aria-pressed'))";
    assert_eq!(browser.eval(&format!("{pressed}.indexOf('true')")), json!(0));
    assert_eq!(browser.eval(&format!("{pressed}.lastIndexOf('true')")), json!(0));
    browser.eval("document.querySelectorAll('#classes input')[3].click()");
    enter(&mut browser, "name", "Grace");
    browser.wait_for("document.getElementById('stage').getAttribute('aria-label').endsWith('Grace')");
    let html = browser.eval("document.getElementById('html').textContent");
    let html = html.as_str().unwrap();
    assert!(html.ends_with("seed=\"Grace\" label=\"dylan\"></ccm-image>"), "{html}");
    browser.eval(
        "(() => {
            navigator.clipboard.writeText = async (text) => { window.copied = text; };
            HTMLAnchorElement.prototype.click = function () { window.saved = this; };
            for (const id of ['copy', 'save']) document.getElementById(id).click();
            return 0;
        })()",
    );
    browser.wait_for("window.saved?.download === 'Grace.png' && window.saved.href.startsWith('blob:')");
    assert_eq!(browser.eval("window.copied"), json!(html));
    // The element takes digits for a seed, but the page's picture is that of a name.
    enter(&mut browser, "name", "42");
    browser.wait_for("document.getElementById('stage').getAttribute('aria-label').endsWith('42')");
    let html = browser.eval("document.getElementById('html').textContent");
    assert!(html.as_str().unwrap().contains(&format!("seed=\"{OF_42}\"")), "{html}");
    browser.eval("document.querySelectorAll('.tile')[3].click()");
    browser.wait_for(
        "document.getElementById('name').value === document.querySelectorAll('.tile')[3].dataset.name",
    );

    enter(&mut browser, "to", "Grace");
    browser.eval("document.getElementById('play').click()");
    browser.wait_for("document.getElementById('blend-clock').textContent.includes('frames/s')");
    browser.eval("document.getElementById('play').click()");

    // The race starts once a visitor sees it.
    assert_eq!(browser.eval("document.getElementById('verdict').textContent.trim()"), json!(""));
    browser.eval(
        "document.getElementById('steps').value = 4; document.querySelector('.lanes').scrollIntoView()",
    );
    browser.wait_for("document.getElementById('verdict').textContent.includes('times as fast')");
    assert_no_complaints(&browser);

    let own = site.scratch.path().join("own.safetensors");
    for (bytes, expected) in [(vec![1; 99], "failed"), (grey(), "ready")] {
        fs::write(&own, bytes).unwrap();
        choose(&mut browser, &own);
        browser.wait_for(&has_state(expected));
    }
    browser.wait_for("document.querySelector('#stage canvas').height === 12");
    assert_eq!(browser.eval("document.getElementById('classes').hidden"), json!(true));
    assert_no_complaints(&browser);
}

#[test]
fn it_works_without_workers_and_shows_the_picture_of_a_name() {
    let policy = format!("{PAGE_POLICY}; worker-src 'none'");
    let site = Site::with_headers(&[("Content-Security-Policy", &policy)]);
    let mut browser = Browser::start(WebGpu::Absent);
    browser.open(&format!("{}/?still", site.server.url()));
    browser.wait_for(&has_state("ready"));
    browser.wait_for(GALLERY_IS_DRAWN);
    enter(&mut browser, "name", "Grace");
    browser.wait_for("document.getElementById('stage').getAttribute('aria-label').endsWith('Grace')");
    assert_same_picture(&browser.eval(PIXELS_OF_STAGE), &native(&avatars(), GRACE, MICAH, 1));
    browser.eval("document.getElementById('start').click()");
    browser.wait_for("document.getElementById('verdict').textContent.includes('times as fast')");
    assert_eq!(browser.eval("document.getElementById('problem').hidden"), json!(true));
    assert_only_workers_are_missing(&browser);
}

#[test]
fn it_draws_what_words_say() {
    // Without a worker, so that the test can read the canvas.
    let policy = format!("{PAGE_POLICY}; worker-src 'none'");
    let site = Site::with_headers(&[("Content-Security-Policy", &policy)]);
    let mut browser = Browser::start(WebGpu::Absent);
    browser.open(&format!("{}/?still", site.server.url()));
    browser.wait_for(&has_state("ready"));
    let own = site.scratch.path().join("words.safetensors");
    let folder = text_to_image::open(&fixtures().join("pipelines/sd1")).unwrap();
    pack(&folder, &folder.weights, Precision::Q8, Some(Role::Student), &own).unwrap();
    choose(&mut browser, &own);
    browser.wait_for("document.getElementById('field').textContent === 'Words'");
    browser.wait_for(&has_state("ready"));
    for id in ["morph", "race"] {
        assert_eq!(browser.eval(&format!("document.getElementById('{id}').hidden")), json!(true), "{id}");
    }
    let first = browser.eval(PIXELS_OF_STAGE);
    enter(&mut browser, "name", "a dog");
    browser.wait_for("document.getElementById('stage').getAttribute('aria-label').endsWith('a dog')");
    assert_ne!(browser.eval(PIXELS_OF_STAGE), first);
    let html = browser.eval("document.getElementById('html').textContent");
    let html = html.as_str().unwrap();
    assert!(html.ends_with("prompt=\"a dog\" seed=\"0\"></ccm-image>"), "{html}");
    // Back to names.
    browser.eval("(() => { const list = document.getElementById('model'); list.value = 0; list.onchange({ target: list }); })()");
    browser.wait_for("document.getElementById('field').textContent === 'Name'");
    browser.wait_for(GALLERY_IS_DRAWN);
    assert_eq!(browser.eval("document.getElementById('morph').hidden"), json!(false));
    assert_only_workers_are_missing(&browser);
}

#[test]
fn it_works_without_webgpu() {
    the_page_works(WebGpu::Absent, "auto");
}

#[test]
fn it_works_on_webgpu() {
    the_page_works(WebGpu::Software, "webgpu-software");
}
