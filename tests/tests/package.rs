//! The packed npm package in other projects: bundlers, Next.js, Node, TypeScript and package checkers. npm installs
//! everything once, into a folder that later runs reuse; the projects are in `packages/`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ccm_tests::browser::{Browser, WebGpu};
use ccm_tests::site::{assert_no_complaints, assert_same_picture, native, package, shapes};
use ccm_web::build::root;
use ccm_web::serve::Server;
use serde_json::{Value, json};

const MODEL: &str = "web/models/shapes/student.safetensors";

/// The packed package.
const PACKED: &str = "./ccm-web-0.1.0.tgz";

/// Packages that npm installs for the tests. Major versions are pinned, because options change with them.
const INSTALLED: [&str; 14] = [
    "webpack@5",
    "esbuild@0",
    "next@16",
    "react@19",
    "react-dom@19",
    "@types/react@19",
    "@types/react-dom@19",
    "types-react18@npm:@types/react@18",
    "preact@10",
    "typescript@5",
    "@types/node@20",
    "publint@0.3",
    "@arethetypeswrong/cli@0.18",
    "axe-core@4",
];

/// Timeout for the start of the Next.js server.
const PATIENCE: Duration = Duration::from_secs(60);

fn npm(arguments: &[&str], folder: &Path) -> String {
    let output = Command::new("npm").args(arguments).current_dir(folder).output();
    let output = output.expect("npm is missing: install it (Debian: apt-get install nodejs npm)");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "npm {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn major(version: &str) -> u32 {
    version.trim_start_matches('v').split('.').next().unwrap().parse().unwrap()
}

/// The folder with the packed package and all other installed packages.
fn installed() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
        fs::create_dir_all(&folder).unwrap();
        let node = Command::new("node").arg("--version").output().expect("node is missing (Debian: nodejs)");
        let node = String::from_utf8_lossy(&node.stdout).into_owned();
        assert!(major(&node) >= 20, "the package needs Node 20 or later, found {node}");
        // The packages that Vite 8 depends on need npm 11.
        let vite = if major(&npm(&["--version"], &folder)) < 11 { "vite@7" } else { "vite@8" };
        npm(&["pack", "--silent", "--pack-destination", folder.to_str().unwrap()], package());
        // The version number does not change with the package, so npm would keep the installed one.
        let _ = fs::remove_dir_all(folder.join("node_modules/ccm-web"));
        let _ = fs::remove_file(folder.join("node_modules/.package-lock.json"));
        fs::write(folder.join("package.json"), r#"{ "private": true, "type": "module" }"#).unwrap();
        let install =
            ["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline"];
        npm(&[&install[..], &[PACKED, vite], &INSTALLED[..]].concat(), &folder);
        folder
    })
}

/// Copies a project of `packages/` into a folder beside the installed packages.
fn project(name: &str, copy: &str) -> PathBuf {
    let folder = installed().join(copy);
    let _ = fs::remove_dir_all(&folder);
    copy_folder(&root().join("tests/packages").join(name), &folder);
    folder
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// An installed program, or `node`.
fn program(name: &str, folder: &Path) -> Command {
    let installed = installed().join("node_modules/.bin").join(name);
    let mut command = Command::new(if name == "node" { Path::new(name) } else { &installed });
    command.current_dir(folder).env("NEXT_TELEMETRY_DISABLED", "1");
    command
}

/// Runs a program that must succeed and returns its output.
fn run(name: &str, arguments: &[&str], folder: &Path) -> String {
    let output = program(name, folder).args(arguments).output().unwrap();
    let text = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{name} {arguments:?}: {}", text.concat());
    let [output, _] = text;
    output
}

/// Asserts that a page shows the image of the native sampler: from the page, from a worker and in an element.
fn assert_page_works(url: &str) -> Browser {
    let mut browser = Browser::start(WebGpu::Absent);
    browser.open(url);
    browser.wait_for("window.drawn === 32 && window.pictures !== undefined");
    let expected = native(&shapes(), 7, 3, 1);
    for picture in [0, 1] {
        assert_same_picture(&browser.eval(&format!("pictures[{picture}]")), &expected);
    }
    assert_no_complaints(&browser);
    browser
}

fn assert_site_works(folder: &Path) {
    let models = root().join("web/models/shapes");
    let server = Server::start(0, &[("/", folder), ("/models", &models)]).unwrap();
    assert_page_works(&server.url());
}

#[test]
fn the_package_works_in_vite() {
    let folder = project("bundled", "vite");
    run("vite", &["build", "--logLevel", "error", "--target", "es2022"], &folder);
    assert_site_works(&folder.join("dist"));
}

#[test]
fn the_package_works_in_webpack() {
    let folder = project("bundled", "webpack");
    // esbuild removes the types.
    run("esbuild", &["main.ts", "--outfile=main.js", "--log-level=warning"], &folder);
    run("node", &["webpack.mjs"], &folder);
    fs::copy(folder.join("webpack.html"), folder.join("webpack/index.html")).unwrap();
    assert_site_works(&folder.join("webpack"));
}

#[test]
fn the_package_works_in_esbuild_as_the_readme_configures_it() {
    let folder = project("esbuild", "esbuild");
    copy_folder(&root().join("tests/packages/bundled"), &installed().join("bundled"));
    let readme = fs::read_to_string(package().join("README.md")).unwrap();
    for loader in ["file", "binary"] {
        let loader = format!("--loader:.wasm={loader}");
        let documented = ["main.ts", "worker=ccm-web/worker", "--bundle", "--format=esm", &loader];
        let build = [
            &documented[..],
            &["--outdir=dist", "--public-path=/", "--target=es2022", "--log-level=warning"],
        ];
        run("esbuild", &build.concat(), &folder);
        fs::copy(folder.join("index.html"), folder.join("dist/index.html")).unwrap();
        assert_site_works(&folder.join("dist"));
    }
    for part in ["worker=ccm-web/worker --bundle --format=esm --loader:.wasm=file", "from \"ccm-web/wasm\""] {
        assert!(readme.contains(part), "the README documents {part}");
    }
}

/// The Next.js server, stopped when dropped.
struct Next(Child);

impl Drop for Next {
    fn drop(&mut self) {
        // Ignore errors: the test is over.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_package_works_in_a_page_that_next_renders_on_the_server() {
    let folder = project("next", "next");
    fs::create_dir_all(folder.join("public")).unwrap();
    fs::copy(root().join(MODEL), folder.join("public/student.safetensors")).unwrap();
    fs::copy(package().join("demo/icon.svg"), folder.join("app/icon.svg")).unwrap();
    run("next", &["build"], &folder);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut command = program("next", &folder);
    command.args(["start", "--hostname", "127.0.0.1", "--port", &port]);
    let _server = Next(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let start = Instant::now();
    while TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
        assert!(start.elapsed() < PATIENCE, "the server of Next.js has not started");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut browser = assert_page_works(&format!("http://127.0.0.1:{port}/"));
    let rendered = browser.eval("document.querySelector('main').dataset.pixels.split(',').map(Number)");
    assert_same_picture(&rendered, &native(&shapes(), 7, 3, 1));
}

#[test]
fn node_samples_from_paths_urls_and_bytes() {
    let folder = project("node", "node");
    let model = root().join(MODEL);
    let server = Server::start(0, &[("/", &root())]).unwrap();
    let url = format!("{}/{MODEL}", server.url());
    let found: Value =
        serde_json::from_str(&run("node", &["main.mjs", model.to_str().unwrap(), &url], &folder)).unwrap();
    let expected = native(&shapes(), 7, 3, 1);
    let pictures = found["pictures"].as_object().unwrap();
    assert_eq!(pictures.len(), 7);
    for (source, picture) in pictures {
        let shape = json!([32, 32, "srgb", "Uint8ClampedArray"]);
        assert_eq!(picture.as_array().unwrap()[..4], shape.as_array().unwrap()[..], "{source}");
        assert_same_picture(&picture[4], &expected);
    }
    let bytes = shapes().len();
    assert_eq!(found["progress"], json!([[bytes, bytes]]));
    let errors = json!({
        "missing": "DownloadError download",
        "no webgpu": "NoWebGpuError no-webgpu",
        "no worker": "NoWorkerError no-worker",
        "corrupt": "CorruptModelError corrupt",
        "late": "RequestError request",
    });
    assert_eq!(found["errors"], errors);
    assert_eq!(found["element"], json!(["function", "undefined"]), "the element's script defines no element");
    let exports = [
        "AbortedError",
        "CcmError",
        "CorruptModelError",
        "DeviceLostError",
        "DownloadError",
        "ModelTooLargeError",
        "NoWebGpuError",
        "NoWorkerError",
        "RequestError",
        "Sampler",
        "WorkerSampler",
        "seedFrom",
    ];
    assert_eq!(found["exports"], json!(exports));
}

#[test]
fn node_takes_the_webassembly_that_is_configured() {
    let folder = project("node", "node-configure");
    let wasm = folder.join("engine.wasm");
    fs::copy(installed().join("node_modules/ccm-web/pkg/ccm_web_bg.wasm"), &wasm).unwrap();
    let expected = native(&shapes(), 7, 3, 1);
    for source in ["path", "bytes"] {
        let model = root().join(MODEL);
        let found = run("node", &["configure.mjs", model.to_str().unwrap(), "engine.wasm", source], &folder);
        let found: Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found[0], json!("DownloadError download"));
        assert_same_picture(&found[1], &expected);
    }
}

/// Checks files with TypeScript in strict mode, including the declarations of packages.
fn check_types(folder: &Path, files: &[&str], options: &Value) {
    let mut all = json!({
        "noEmit": true,
        "strict": true,
        "exactOptionalPropertyTypes": true,
        "noUncheckedIndexedAccess": true,
        "skipLibCheck": false,
        "target": "es2022",
        "module": "esnext",
        "moduleResolution": "bundler",
        "types": [],
    });
    all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    fs::write(folder.join("tsconfig.json"), json!({ "compilerOptions": all, "files": files }).to_string())
        .unwrap();
    run("tsc", &["-p", "."], folder);
}

#[test]
fn strict_typescript_accepts_the_types() {
    let folder = project("types", "types");
    let react18 = json!({
        "react": ["../node_modules/types-react18"],
        "react/jsx-runtime": ["../node_modules/types-react18/jsx-runtime.d.ts"],
    });
    check_types(&folder, &["react.tsx"], &json!({ "jsx": "react-jsx" }));
    check_types(&folder, &["react.tsx"], &json!({ "jsx": "react-jsx", "paths": react18 }));
    check_types(&folder, &["preact.tsx"], &json!({ "jsx": "react-jsx", "jsxImportSource": "preact" }));
    let node =
        json!({ "lib": ["es2022"], "types": ["node"], "module": "nodenext", "moduleResolution": "nodenext" });
    check_types(&folder, &["node.mts"], &node);
    // The pages and settings of the other tests.
    copy_folder(&root().join("tests/packages/esbuild"), &folder.join("esbuild"));
    copy_folder(&root().join("tests/packages/bundled"), &folder.join("bundled"));
    check_types(&folder, &["esbuild/main.ts"], &json!({}));
    // In a project without other packages.
    let alone = tempfile::tempdir().unwrap();
    copy_folder(&folder, alone.path());
    copy_folder(&installed().join("node_modules/ccm-web"), &alone.path().join("node_modules/ccm-web"));
    check_types(alone.path(), &["page.ts"], &json!({}));
    check_types(alone.path(), &["plain.mts"], &json!({ "lib": ["es2022"] }));
}

#[test]
fn publint_and_attw_find_no_fault() {
    let folder = installed();
    run("publint", &["--strict", PACKED], folder);
    // The package has no CommonJS. Calling `require` on it is only a warning, which this profile ignores.
    run("attw", &[PACKED, "--profile", "esm-only"], folder);
}

#[test]
fn the_package_holds_both_licences() {
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        let packed = fs::read(installed().join("node_modules/ccm-web").join(licence)).unwrap();
        assert_eq!(packed, fs::read(root().join(licence)).unwrap(), "{licence}");
    }
}

#[test]
fn the_demo_page_has_no_accessibility_violation() {
    let axe = fs::read_to_string(installed().join("node_modules/axe-core/axe.min.js")).unwrap();
    package();
    let server = Server::start(0, &[("/", &root())]).unwrap();
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
        let mut browser = Browser::start(WebGpu::Absent);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        browser.call("Emulation.setEmulatedMedia", json!({ "features": features }));
        let screen = json!({ "width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500 });
        browser.call("Emulation.setDeviceMetricsOverride", screen);
        browser.open(&format!("{}/?still", server.url()));
        browser.wait_for("document.documentElement.dataset.state === 'ready'");
        browser.eval(&format!("{axe}; 0"));
        let found = browser.eval(
            "axe.run().then(({ violations }) =>
                violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(', ')}`))",
        );
        assert_eq!(found, json!([]), "{scheme}, {width} pixels wide");
    }
}
