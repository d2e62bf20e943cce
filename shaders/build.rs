//! Removes comments and indentation from the kernels, because a web page downloads them.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src");
    let out =
        env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set: run this with Cargo"))?;
    for folder in ["", "prelude"].map(Path::new) {
        let out = PathBuf::from(&out).join(folder);
        fs::create_dir_all(&out)?;
        for entry in fs::read_dir(Path::new("src").join(folder))? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "wgsl") {
                let source = fs::read_to_string(entry.path())?;
                fs::write(out.join(entry.file_name()), shortened(&source))?;
            }
        }
    }
    Ok(())
}

/// The source without comments, indentation and empty lines.
fn shortened(source: &str) -> String {
    let lines = source.lines().map(|line| line.find("//").map_or(line, |comment| &line[..comment]).trim());
    lines.filter(|line| !line.is_empty()).flat_map(|line| [line, "\n"]).collect()
}
