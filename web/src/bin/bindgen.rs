//! Writes the JavaScript that loads a WebAssembly module: `bindgen MODULE.wasm FOLDER`.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(module), Some(out), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("usage: bindgen MODULE.wasm FOLDER");
        return ExitCode::FAILURE;
    };
    match bind(Path::new(&module), Path::new(&out)) {
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
    let script = renamed(output.js(), &short);
    output.emit(out).map_err(|error| bindgen(&error))?;
    let file = out.join("ccm_web.js");
    std::fs::write(&file, script).map_err(|error| format!("{}: {error}", file.display()))
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
