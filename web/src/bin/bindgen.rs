//! Writes the files of the package: `bindgen MODULE.wasm FOLDER` writes the module, the JavaScript that wasm-bindgen
//! generates for it, and the scripts of `js/`, all minified, to a folder, and copies the licences to `package.json`'s
//! folder.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use ccm_web::script::{own_names, renamed, shortened};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(module), Some(out), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("usage: bindgen MODULE.wasm FOLDER");
        return ExitCode::FAILURE;
    };
    let (module, out) = (Path::new(&module), Path::new(&out));
    match bind(module, out).and_then(|()| copy_scripts(out)).and_then(|()| copy_licences()) {
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
    // wasm-bindgen's names of imports and closures end in a hash, which does not compress, and occur in both files.
    let mut names = HashMap::new();
    let module = output.wasm_mut();
    let imports = module.imports.iter_mut().map(|import| &mut import.name);
    let exports = module.exports.iter_mut().map(|export| &mut export.name);
    for (number, name) in imports.chain(exports.filter(|name| name.contains("closures"))).enumerate() {
        let short = format!("_{number}");
        names.insert(std::mem::replace(name, short.clone()), short);
    }
    let script = renamed(&output.js().replace(": function(", "("), &names);
    let own = own_names(&script).into_iter().enumerate();
    let own = own.map(|(number, name)| (name.to_owned(), format!("${number}"))).collect();
    let script = shortened(&renamed(&script, &own));
    output.emit(out).map_err(|error| bindgen(&error))?;
    let file = out.join("ccm_web.js");
    write(&file, &script)
}

/// Copies the scripts of `js/` to the folder of the module.
fn copy_scripts(out: &Path) -> Result<(), String> {
    let folder = web().join("js");
    for entry in fs::read_dir(&folder).map_err(|error| fault(&folder, error))? {
        let file = entry.map_err(|error| fault(&folder, error))?.path();
        let script = fs::read_to_string(&file).map_err(|error| fault(&file, error))?;
        let name = file.file_name().unwrap_or_default();
        write(&out.join(name), &shortened(&script).replace("\"../pkg/", "\"./"))?;
    }
    Ok(())
}

/// Copies the licences of the repository into the package, because npm packs only files inside it.
fn copy_licences() -> Result<(), String> {
    for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
        let file = web().join("..").join(name);
        fs::copy(&file, web().join(name)).map_err(|error| fault(&file, error))?;
    }
    Ok(())
}

fn web() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fault(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn write(file: &Path, script: &str) -> Result<(), String> {
    fs::write(file, script).map_err(|error| fault(file, error))
}
