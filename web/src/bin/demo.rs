//! Builds the demo page and serves it: `cargo run --bin demo -- [--port N] [--build-only]`.

use std::process::ExitCode;

use ccm_web::build::{build, root};
use ccm_web::serve::Server;

const USAGE: &str = "usage: demo [--port N] [--build-only]";
const PORT: u16 = 8080;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let (mut port, mut build_only) = (PORT, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--build-only" => build_only = true,
            "--port" => {
                let value = arguments.next().unwrap_or_default();
                port = value.parse().map_err(|_| format!("--port: expected 0 to 65535, found `{value}`"))?;
            }
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(());
            }
            _ => return Err(format!("{argument}: no such option; {USAGE}")),
        }
    }
    build(&root().join("web/pkg")).map_err(|error| error.to_string())?;
    if build_only {
        return Ok(());
    }
    let server = Server::start(port, &[("/", &root())]).map_err(|error| format!("--port {port}: {error}"))?;
    println!("demo page: {}/  (stop with Ctrl-C)", server.url());
    loop {
        std::thread::park();
    }
}
