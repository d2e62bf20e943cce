//! Writes the files of the package: `bindgen MODULE.wasm NAME FOLDER` writes the module under a name, the JavaScript that
//! wasm-bindgen generates for it, and the scripts of `js/`, all minified, to a folder, and copies the licences to
//! `package.json`'s folder.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use ccm_web::script::{own_names, renamed, shortened, without_block};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let mut next = || arguments.next();
    let (Some(module), Some(name), Some(out), None) = (next(), next(), next(), next()) else {
        eprintln!("usage: bindgen MODULE.wasm NAME FOLDER");
        return ExitCode::FAILURE;
    };
    let (module, out) = (Path::new(&module), Path::new(&out));
    match bind(module, &name.to_string_lossy(), out)
        .and_then(|()| copy_scripts(out))
        .and_then(|()| copy_licences())
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn bind(module: &Path, name: &str, out: &Path) -> Result<(), String> {
    let bindgen = |error: &dyn std::fmt::Display| format!("wasm-bindgen: {error:#}");
    let mut output = Bindgen::new()
        .input_path(module)
        .out_name(name)
        .web(true)
        .and_then(|bindgen| {
            let bindgen = bindgen.remove_name_section(true).remove_producers_section(true);
            bindgen.typescript(false).generate_output()
        })
        .map_err(|error| bindgen(&error))?;
    // wasm-bindgen's names of imports and closures end in a hash, which does not compress, and occur in both files.
    let mut names = HashMap::new();
    let module = output.wasm_mut();
    // A list for linkers.
    module.customs.remove_raw("target_features");
    let imports = module.imports.iter_mut().map(|import| &mut import.name);
    let exports = module.exports.iter_mut().map(|export| &mut export.name);
    for (number, name) in imports.chain(exports.filter(|name| name.contains("closures"))).enumerate() {
        let short = format!("_{number}");
        names.insert(std::mem::replace(name, short.clone()), short);
    }
    let script = without_legacy(&renamed(&output.js().replace(": function(", "("), &names))?;
    let own = own_names(&script).into_iter().enumerate();
    let own = own.map(|(number, name)| (name.to_owned(), format!("${number}"))).collect();
    let script = shortened(&renamed(&script, &own));
    output.emit(out).map_err(|error| bindgen(&error))?;
    let file = out.join(format!("{name}.js"));
    write(&file, &script)
}

/// The script without what this package does not use: a start that blocks, addresses in place of responses, browsers without
/// `encodeInto`, `using` declarations, and warnings about servers and old versions.
fn without_legacy(script: &str) -> Result<String, String> {
    let mut script = script.replace("export { initSync, ", "export { ");
    for start in [
        "function initSync(",
        "if (typeof module_or_path === 'string'",
        "if (!('encodeInto' in cachedTextEncoder))",
    ] {
        let changed = without_block(&script, start);
        script = changed.ok_or_else(|| format!("wasm-bindgen's script has no `{start}`"))?;
    }
    let is_needed = |line: &&str| {
        !["console.warn(", "if (Symbol.dispose)"].iter().any(|start| line.trim_start().starts_with(start))
    };
    Ok(script.lines().filter(is_needed).map(|line| format!("{line}\n")).collect())
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
