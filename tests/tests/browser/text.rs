//! Pipelines with text in a page: pictures of a prompt are those of diffusers and those of the program, and other models do
//! not load their part of the package.

use std::fs;
use std::path::{Path, PathBuf};

use ccm::import::text_to_image::Folder;
use ccm::import::{pack, text_to_image};
use ccm::model::json::Json;
use ccm::pipeline::{Pipeline, sample_times};
use ccm::sampler::Backend;
use ccm::sampler::image::to_byte;
use ccm::sampler::schedule::Request;
use ccm::weights::{HostTensor, Precision, TensorFile};
use ccm_tests::browser::WebGpu;
use ccm_tests::fixtures;
use ccm_tests::site::{SHAPES, Site, assert_no_complaints, assert_same_picture};
use pollster::block_on;
use serde_json::json;

/// Packs a pipeline of the fixtures into a file of the site. Returns its path on the server, and on the disk.
fn packed(site: &Site, name: &str, precision: Precision) -> (String, PathBuf) {
    let folder = text_to_image::open(&fixtures().join("pipelines").join(name)).unwrap();
    packed_folder(site, &folder, name, precision)
}

fn packed_folder(site: &Site, folder: &Folder, name: &str, precision: Precision) -> (String, PathBuf) {
    let file = format!("{name}-{precision}.safetensors");
    let path = site.scratch.path().join(&file);
    pack::pack(folder, &folder.weights, precision, None, &path).unwrap();
    (format!("/scratch/{file}"), path)
}

/// Planes `[3, H, W]` of an image as bytes `[H, W, 4]`.
fn rgba(planes: &[f32]) -> Vec<u8> {
    let pixels = planes.len() / 3;
    let byte = |pixel: usize, channel: usize| match channel {
        3 => u8::MAX,
        _ => to_byte(planes[channel * pixels + pixel]),
    };
    (0..pixels)
        .flat_map(|pixel| (0..4).map(move |channel| (pixel, channel)))
        .map(|(p, c)| byte(p, c))
        .collect()
}

/// The picture that the sampler computes natively: RGBA.
fn native(file: &Path, prompt: &str, negative: Option<&str>, seed: u64, steps: usize) -> Vec<u8> {
    let opened = text_to_image::open_packed(file).unwrap();
    let pipeline = Pipeline::new(opened.spec, opened.tokenizers, opened.weights, Backend::Cpu);
    let pipeline = pipeline.with_precision(opened.precision);
    let (texts, guidance) = block_on(pipeline.conditions(&[prompt], negative, 5.0)).unwrap();
    let sampler = block_on(pipeline.denoiser()).unwrap();
    let (solver, times) = (sampler.solver(), sample_times(None, sampler.times()));
    let mut sampler = sampler.with_solver(solver, times);
    let request = Request { texts, guidance, ..Request::from_seeds(sampler.spec(), seed, &[], 1) };
    let latents = block_on(sampler.sample(&request, steps)).unwrap();
    rgba(&block_on(pipeline.decode(&latents)).unwrap())
}

#[test]
fn pictures_of_prompts_are_those_of_diffusers() {
    let site = Site::new();
    for (webgpu, backend, runs_on) in
        [(WebGpu::Absent, "cpu", "cpu"), (WebGpu::Software, "webgpu-software", "webgpu")]
    {
        let mut browser = site.open(webgpu);
        for name in ["sd1", "sdxl"] {
            let (url, _) = packed(&site, name, Precision::F32);
            let folder = fixtures().join("pipelines").join(name);
            let io = TensorFile::from_bytes(&fs::read(folder.join("reference.safetensors")).unwrap())
                .unwrap()
                .tensors;
            let reference = fs::read_to_string(folder.join("reference.json")).unwrap();
            let reference = Json::parse(&reference).unwrap();
            let guidance = reference.get("guidance").unwrap().number().unwrap();
            let info = browser.eval(&format!(
                "ccm.Sampler.load('{url}', {{ backend: '{backend}' }}).then((s) => (window.s = s).info)"
            ));
            let expected = &io["image_1"].shape;
            for (key, value) in [
                ("backend", json!(runs_on)),
                ("text", json!(true)),
                ("steps", json!(50)),
                ("height", json!(expected[2])),
                ("width", json!(expected[3])),
                ("numClasses", json!(null)),
                ("source", json!(name)),
            ] {
                assert_eq!(info[key], value, "{name}: {key}");
            }
            for (row, prompt) in reference.get("prompts").unwrap().list().unwrap().iter().enumerate() {
                let values = |tensor: &HostTensor| -> Vec<f32> {
                    let len = tensor.values.len() / tensor.shape[0];
                    tensor.values[row * len..][..len].to_vec()
                };
                let (prompt, noise) = (json!(prompt.text().unwrap()), json!(values(&io["noise"])));
                for (steps, guidance, image) in [(1, 1.0, "image_1"), (4, guidance, "image_4_guided")] {
                    let found = browser.eval(&format!(
                        "s.sample({{ prompt: {prompt}, noise: new Float32Array({noise}), steps: {steps},
                            guidance: {guidance} }}).then(([image]) => [...image.data])"
                    ));
                    assert_same_picture(&found, &rgba(&values(&io[image])));
                    println!("{name} on {backend}: {image}, row {row}");
                }
            }
            browser.eval("(s.free(), 0)");
        }
        assert_no_complaints(&browser);
    }
}

#[test]
fn seeds_drawings_elements_and_workers_give_the_pictures_of_the_program() {
    let site = Site::new();
    let mut browser = site.open(WebGpu::Absent);
    let (url, file) = packed(&site, "sdxl", Precision::Q4);
    let shown = browser.eval(&format!(
        "(async () => {{
            const s = await ccm.Sampler.load('{url}');
            const asked = {{ prompt: 'a horse', negative: 'red', steps: 2 }};
            const images = await s.sample({{ ...asked, seed: 6, count: 2 }});
            const canvas = document.body.appendChild(document.createElement('canvas'));
            await s.draw(canvas, {{ ...asked, seed: 7 }});
            const drawn = pixels(canvas);
            await s.interpolate(canvas, 6, 7, 1, asked);
            const blended = pixels(canvas);
            // No negative text: guidance leads away from zeros.
            const [plain] = await s.sample({{ prompt: 'a horse', seed: 7, steps: 2 }});
            const worker = await ccm.WorkerSampler.load('{url}');
            const [moved] = await worker.sample({{ ...asked, seed: 7 }});
            worker.free();
            document.body.innerHTML =
                '<ccm-image model=\"{url}\" prompt=\"a horse\" negative=\"red\" guidance=\"5\" seed=\"7\" steps=\"2\"></ccm-image>';
            const element = document.querySelector('ccm-image');
            await next(element, 'load');
            const inside = pixels(element.shadowRoot.querySelector('canvas'));
            const changed = next(element, 'load');
            element.removeAttribute('negative');
            await changed;
            const other = pixels(element.shadowRoot.querySelector('canvas'));
            return [...images.map((image) => image.data), drawn, blended, moved.data, inside, plain.data, other]
                .map((data) => [...data]);
        }})()"
    ));
    let guided = native(&file, "a horse", Some("red"), 7, 2);
    assert_same_picture(&shown[0], &native(&file, "a horse", Some("red"), 6, 2));
    for picture in 1..6 {
        assert_same_picture(&shown[picture], &guided);
    }
    let plain = native(&file, "a horse", None, 7, 2);
    assert_ne!(plain, guided);
    for picture in [6, 7] {
        assert_same_picture(&shown[picture], &plain);
    }
    assert_no_complaints(&browser);
}

#[test]
fn only_models_with_text_load_their_part_and_wrong_requests_are_typed_errors() {
    let site = Site::new();
    let mut browser = site.open(WebGpu::Absent);
    browser.eval(&format!("ccm.Sampler.load('{SHAPES}').then((s) => {{ window.shapes = s; return 0; }})"));
    let downloads = || super::TEXT_FILES.map(|file| site.downloads(&format!("/web/pkg/{file}")));
    assert_eq!(downloads(), [0; 3]);
    let (url, file) = packed(&site, "sd1", Precision::Q8);
    browser.eval(&format!("ccm.Sampler.load('{url}').then((s) => {{ window.s = s; return 0; }})"));
    assert_eq!(downloads(), [1; 3]);
    for request in [
        "shapes.sample({ prompt: 'a horse' })",
        "s.sample()",
        "s.sample({ prompt: 7 })",
        "s.sample({ prompt: 'a', negative: 7 })",
        "s.sample({ prompt: 'a', guidance: 'much' })",
        "s.sample({ prompt: 'a', guidance: NaN })",
        "s.sample({ prompt: 'a', label: 1 })",
        "s.sample({ prompt: 'a', steps: 0 })",
        "s.sample({ prompt: 'a', noise: new Float32Array(3) })",
        "s.sample({ prompt: 'a', noise: [1, 2] })",
        "s.draw(document.createElement('canvas'))",
    ] {
        assert_eq!(browser.eval(&format!("fault({request})")), json!("RequestError request"), "{request}");
    }
    let bytes = fs::read(&file).unwrap();
    let text = String::from_utf8_lossy(&bytes).find("\\\"hidden_size\\\":32").expect("a text encoder");
    let mut other = bytes.clone();
    other[text + 16] = b'9';
    let cut = bytes[..bytes.len() / 2].to_vec();
    for (name, bytes) in [("cut", cut), ("other", other), ("head", bytes[..100].to_vec())] {
        let url = site.put(name, &bytes);
        let error = browser.eval(&format!("fault(ccm.Sampler.load('{url}'))"));
        assert_eq!(error, json!("CorruptModelError corrupt"), "{name}");
    }
    // T5 is too large for a page.
    let (url, _) = packed(&site, "sd3", Precision::Q8);
    let error = format!("ccm.Sampler.load('{url}').catch((error) => `${{error.code}}: ${{error.message}}`)");
    let error = browser.eval(&error);
    let error = error.as_str().unwrap();
    assert!(error.starts_with("corrupt: ") && error.contains("T5"), "{error}");
    let mut folder = text_to_image::open(&fixtures().join("pipelines/sd3")).unwrap();
    folder.spec = folder.spec.without_t5().unwrap();
    let (url, without) = packed_folder(&site, &folder, "without-t5", Precision::F32);
    let picture = browser.eval(&format!(
        "ccm.Sampler.load('{url}').then((s) => s.sample({{ prompt: 'two!', seed: 3, steps: 2 }}))
            .then(([image]) => [...image.data])"
    ));
    assert_same_picture(&picture, &native(&without, "two!", None, 3, 2));
    let picture =
        browser.eval("s.sample({ prompt: 'two!', seed: 3, steps: 1 }).then(([image]) => [...image.data])");
    assert_same_picture(&picture, &native(&file, "two!", None, 3, 1));
    assert_eq!(browser.eval("(s.free(), fault(s.sample({ prompt: 'a' })))"), json!("RequestError request"));
    assert_no_complaints(&browser);
}
