//! Builds the WebAssembly of this crate and the JavaScript that loads it. Needs only Cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The compilation target.
const TARGET: &str = "wasm32-unknown-unknown";

/// Why the page's WebAssembly could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A program could not be started.
    #[error("cannot run `{0}`: {1}")]
    Start(String, std::io::Error),
    /// A program failed and has printed the reason.
    #[error("`{0}` failed")]
    Failed(String),
    /// The output of `cargo metadata` is invalid.
    #[error("cargo metadata: {0}")]
    Metadata(String),
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let web = Path::new(env!("CARGO_MANIFEST_DIR"));
    web.parent().unwrap_or(web).to_owned()
}

/// Compiles the sampler for the browser and writes `ccm_web.js` and `ccm_web_bg.wasm` into `out`, and those of pipelines with
/// text, `ccm_text.js` and `ccm_text_bg.wasm`.
///
/// Installs the wasm target with rustup if it is missing. The modules have their own target folder, so that their flags do
/// not affect the native build.
///
/// # Errors
/// [`BuildError`] if a program is missing or fails.
pub fn build(out: &Path) -> Result<(), BuildError> {
    add_target()?;
    let target = target_folder()?.join("web");
    for (name, features) in [("ccm_web", ""), ("ccm_text", "text")] {
        module(out, &target, name, features)?;
    }
    Ok(())
}

/// Compiles one module with features of this crate, and writes it and its JavaScript under a name.
fn module(out: &Path, target: &Path, name: &str, features: &str) -> Result<(), BuildError> {
    let mut compile = Command::new(cargo());
    compile
        .current_dir(root())
        .args([
            "build",
            "--package",
            "ccm-web",
            "--lib",
            "--profile",
            "web",
            "--target",
            TARGET,
            "--features",
            features,
            "--target-dir",
        ])
        .arg(target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", format!("-C target-feature=+simd128{}", shorter_paths()));
    run(&mut compile)?;
    let mut bindgen = Command::new(cargo());
    bindgen
        .current_dir(root())
        .args([
            "run",
            "--quiet",
            "--package",
            "ccm-web",
            "--bin",
            "bindgen",
            "--features",
            "bindgen",
            "--target-dir",
        ])
        .arg(target)
        .arg("--")
        .arg(target.join(TARGET).join("web/ccm_web.wasm"))
        .arg(name)
        .arg(out);
    run(&mut bindgen)
}

/// Flags that remove the folders of crates from the paths in panic messages, which are a part of the module.
fn shorter_paths() -> String {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo"))).unwrap_or_default();
    let registries = home.join("registry/src");
    let each = std::fs::read_dir(&registries).into_iter().flatten().flatten().map(|entry| entry.path());
    // Of two prefixes that fit, rustc takes the last one.
    let prefixes = std::iter::once(registries.clone()).chain(each).map(|folder| folder.display().to_string());
    let prefixes = prefixes.chain(["ccm/src".to_owned()]);
    prefixes.map(|prefix| format!(" --remap-path-prefix={prefix}/=")).collect()
}

/// The Cargo that runs this program, or the one in `PATH`.
fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

fn run(command: &mut Command) -> Result<(), BuildError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|error| BuildError::Start(name.clone(), error))?;
    if status.success() { Ok(()) } else { Err(BuildError::Failed(name)) }
}

fn output(command: &mut Command) -> Result<String, BuildError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| BuildError::Start(name.clone(), error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(BuildError::Failed(name))
    }
}

/// Installs the standard library for the target if it is missing.
fn add_target() -> Result<(), BuildError> {
    let library = output(Command::new("rustc").current_dir(root()).args([
        "--print",
        "target-libdir",
        "--target",
        TARGET,
    ]))?;
    if Path::new(library.trim()).exists() {
        return Ok(());
    }
    run(Command::new("rustup").current_dir(root()).args(["target", "add", TARGET]))
}

fn target_folder() -> Result<PathBuf, BuildError> {
    let mut command = Command::new(cargo());
    let text = output(command.current_dir(root()).args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| BuildError::Metadata(error.to_string()))?;
    let folder = metadata["target_directory"].as_str();
    folder.map(PathBuf::from).ok_or_else(|| BuildError::Metadata("no target_directory".into()))
}
