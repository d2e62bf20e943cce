//! Writes what a page downloads: `bindgen MODULE.wasm FOLDER` puts there the module, the JavaScript that wasm-bindgen
//! makes for it, and the scripts of `js/`, all without what only readers need.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(module), Some(out), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("usage: bindgen MODULE.wasm FOLDER");
        return ExitCode::FAILURE;
    };
    let (module, out) = (Path::new(&module), Path::new(&out));
    match bind(module, out).and_then(|()| copy_scripts(out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn bind(module: &Path, out: &Path) -> Result<(), String> {
    let bindgen = |error: &dyn std::fmt::Display| format!("wasm-bindgen: {error:#}");
    let mut output = Bindgen::new()
        .input_path(module)
        .web(true)
        .and_then(|bindgen| {
            let bindgen = bindgen.remove_name_section(true).remove_producers_section(true);
            bindgen.typescript(false).generate_output()
        })
        .map_err(|error| bindgen(&error))?;
    // wasm-bindgen's names for imports end in a hash, which does not compress, and stand in both files.
    let mut short = HashMap::new();
    for (number, import) in output.wasm_mut().imports.iter_mut().enumerate() {
        let name = format!("_{number}");
        short.insert(std::mem::replace(&mut import.name, name.clone()), name);
    }
    let script = renamed(&shortened(output.js()), &short);
    output.emit(out).map_err(|error| bindgen(&error))?;
    let file = out.join("ccm_web.js");
    write(&file, &script)
}

/// Copies the scripts of `js/` to where the module is.
fn copy_scripts(out: &Path) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("js");
    let fault = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    for entry in fs::read_dir(&folder).map_err(|error| fault(&folder, error))? {
        let file = entry.map_err(|error| fault(&folder, error))?.path();
        let script = fs::read_to_string(&file).map_err(|error| fault(&file, error))?;
        let name = file.file_name().unwrap_or_default();
        write(&out.join(name), &shortened(&script).replace("\"../pkg/", "\"./"))?;
    }
    Ok(())
}

fn write(file: &Path, script: &str) -> Result<(), String> {
    fs::write(file, script).map_err(|error| format!("{}: {error}", file.display()))
}

/// A script without its indentation and the lines that are comments.
fn shortened(script: &str) -> String {
    let lines = script.lines().map(str::trim);
    let comment = |line: &str| ["//", "/*", "*"].iter().any(|start| line.starts_with(start));
    lines.filter(|line| !line.is_empty() && !comment(line)).flat_map(|line| [line, "\n"]).collect()
}

/// A script with other names for some of its identifiers.
fn renamed(script: &str, names: &HashMap<String, String>) -> String {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    let mut result = String::with_capacity(script.len());
    let mut rest = script;
    while let Some(start) = rest.find(part_of_name) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|c| !part_of_name(c)).unwrap_or(from.len()));
        result.push_str(before);
        result.push_str(names.get(word).map_or(word, String::as_str));
        rest = after;
    }
    result + rest
}
