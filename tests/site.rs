//! Serves the package and the repository to a browser, and computes the expected images natively.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ccm::model::UNetSpec;
use ccm::sampler::image::to_byte;
use ccm::sampler::schedule::Request;
use ccm::sampler::{Backend, Sampler};
use ccm_web::build::{build, root};
use ccm_web::serve::Server;
use serde_json::Value;
use tempfile::TempDir;

use crate::browser::{Browser, WebGpu};
use crate::lively_model;

/// A shipped class-conditional model of 32x32 creatures, eight classes.
pub const SHAPES: &str = "/web/models/shapes/student.safetensors";

/// The folder of the package with its WebAssembly, which is built once per test process.
///
/// # Panics
/// If the build fails.
pub fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let web = root().join("web");
        build(&web.join("pkg")).unwrap_or_else(|error| panic!("{error}"));
        web
    })
}

/// Serves the repository, and additional files under `/scratch`.
pub struct Site {
    /// The running server.
    pub server: Server,
    /// The folder under `/scratch`.
    pub scratch: TempDir,
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// Serves the repository without additional headers.
    pub fn new() -> Self {
        Self::with_headers(&[])
    }

    /// Serves the repository with headers such as a content security policy.
    ///
    /// # Panics
    /// If the server cannot start.
    pub fn with_headers(headers: &[(&str, &str)]) -> Self {
        package();
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let mounts: [(&str, &Path); 2] = [("/", &root()), ("/scratch", scratch.path())];
        let server = Server::start_with(0, &mounts, headers).expect("a server");
        Self { server, scratch }
    }

    /// Writes a file to the scratch folder and returns its path on the server.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn put(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.scratch.path().join(name), bytes).expect("a file");
        format!("/scratch/{name}")
    }

    /// Opens a browser with the package loaded as `ccm`.
    pub fn open(&self, webgpu: WebGpu) -> Browser {
        let mut browser = Browser::start(webgpu);
        self.reopen(&mut browser);
        browser
    }

    /// Reloads the package.
    pub fn reopen(&self, browser: &mut Browser) {
        browser.open(&format!("{}/tests/pages/sampler.html", self.server.url()));
        browser.wait_for("window.ready === true");
    }

    /// Number of requests for a file.
    pub fn downloads(&self, path: &str) -> usize {
        self.server.requests().iter().filter(|line| **line == format!("GET {path}")).count()
    }
}

/// The contents of [`SHAPES`].
///
/// # Panics
/// If the file cannot be read.
pub fn shapes() -> Vec<u8> {
    fs::read(root().join(&SHAPES[1..])).expect("a model")
}

/// The seed of the name "Grace": the first eight bytes of its SHA-256.
pub const GRACE: u64 = 0xf246_5f78_e06e_9352;

/// The first model of the page: faces of 64x64 pixels in twelve styles.
///
/// # Panics
/// If the file cannot be read.
pub fn avatars() -> Vec<u8> {
    fs::read(root().join("web/models/avatars/student.safetensors")).expect("a model")
}

/// A small grey model without classes, on patches; images are 12 pixels high and 8 wide.
pub fn grey() -> Vec<u8> {
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
        patch_size: 2,
    };
    lively_model(&spec).to_bytes()
}

/// The image that the native sampler computes: RGBA.
///
/// # Panics
/// If the model is invalid.
pub fn native(model: &[u8], seed: u64, label: u32, steps: usize) -> Vec<u8> {
    let mut sampler = pollster::block_on(Sampler::load(model, Backend::Cpu)).expect("a model");
    let request = Request::from_seeds(sampler.spec(), seed, &[label], 1);
    let planes = pollster::block_on(sampler.sample(&request, steps)).expect("an image");
    let [channels, height, width] = sampler.spec().image();
    let pixels = height * width;
    let value = |pixel: usize, channel: usize| planes[channel.min(channels - 1) * pixels + pixel];
    let rgba = |pixel| [0, 1, 2, 3].map(|c| if c == 3 { 255 } else { to_byte(value(pixel, c)) });
    (0..pixels).flat_map(rgba).collect()
}

/// Asserts that an image of the page equals the expected one up to 1/255.
///
/// # Panics
/// If the images differ.
#[track_caller]
pub fn assert_same_picture(found: &Value, expected: &[u8]) {
    let found: Vec<i64> = found.as_array().expect("pixels").iter().filter_map(Value::as_i64).collect();
    assert_eq!(found.len(), expected.len(), "bytes of the image");
    let difference = found.iter().zip(expected).map(|(a, b)| (a - i64::from(*b)).abs()).max();
    assert!(difference <= Some(1), "the images differ by {difference:?}/255");
}

/// Asserts that the page reported no error.
///
/// # Panics
/// If the page reported an error.
#[track_caller]
pub fn assert_no_complaints(browser: &Browser) {
    assert!(browser.complaints.is_empty(), "errors of the page: {:?}", browser.complaints);
}
