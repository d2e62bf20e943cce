//! Takes comments and indentation out of the kernels, because a page downloads them.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    for folder in ["", "prelude"].map(Path::new) {
        fs::create_dir_all(out.join(folder))?;
        for entry in fs::read_dir(Path::new("src").join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "wgsl") {
                let name = path.file_name().unwrap_or_default();
                fs::write(out.join(folder).join(name), shortened(&fs::read_to_string(&path)?))?;
            }
        }
    }
    Ok(())
}

fn shortened(source: &str) -> String {
    let lines = source.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).flat_map(|line| [line, "\n"]).collect()
}
