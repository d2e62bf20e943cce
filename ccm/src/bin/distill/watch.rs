//! `distill watch`: shows where a run is, from the files in its folder.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use ccm::disk;
use ccm::train::folder::files;
use ccm::train::status::Status;

use crate::Failure;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the run
    run: PathBuf,
    /// Seconds between two looks at the folder
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Show the state once and exit
    #[arg(long)]
    once: bool,
    /// Write a page with curves and samples to RUN/watch.html, which a browser reloads
    #[arg(long)]
    page: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { run, every, once, page } = arguments;
    loop {
        let status = Status::read(run)?;
        if !once && std::io::stdout().is_terminal() {
            // Clears the terminal.
            print!("\x1b[2J\x1b[H");
        }
        print!("{status}");
        if *page {
            let path = run.join(files::WATCH);
            let mut report = status.report()?;
            report.reload_seconds = (!status.is_finished()).then_some(*every);
            disk::write(&path, report.to_html()?.as_bytes())?;
            println!("page     {}", path.display());
        }
        if *once || status.is_finished() {
            return Ok(());
        }
        println!();
        std::thread::sleep(Duration::from_secs(*every));
    }
}
