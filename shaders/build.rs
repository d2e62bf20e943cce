//! Removes comments and white space from the kernels, because a web page downloads them.

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

/// The source without comments and without white space that separates nothing.
fn shortened(source: &str) -> String {
    let lines = source.lines().map(|line| line.find("//").map_or(line, |comment| &line[..comment]));
    let mut short = String::new();
    for word in lines.flat_map(str::split_whitespace) {
        let (last, first) = (short.chars().last(), word.chars().next());
        let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        // Two of the same sign would be another sign.
        if joins(last) && joins(first) || last == first {
            short.push(' ');
        }
        short.push_str(word);
    }
    short
}
