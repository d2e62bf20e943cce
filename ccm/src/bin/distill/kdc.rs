//! `distill kdc`: KDC and teacher steps against t for a run.

use std::path::PathBuf;

use ccm::train::disk;
use ccm::train::folder::{files, read_config};
use ccm::train::run::{Run, suit, trained_teacher};

use crate::Failure;
use crate::device::{self, Choice, Opened};
use crate::run::load_data;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The folder of the run
    run: PathBuf,
    #[arg(long, default_value = "auto")]
    device: Choice,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut config = read_config(&arguments.run)?;
    config.validate()?;
    let teacher = trained_teacher(&config, &arguments.run)?;
    let (data, held_out) = load_data(&config)?;
    suit(&mut config, &data)?;
    let Opened { device, .. } = device::open(arguments.device)?;
    let run =
        Run { config, folder: arguments.run, device, threads: 1, data, held_out, command: String::new() };
    let curves = run.curves(&teacher, &mut |text| println!("{text}"))?;
    println!("T = {} dB    curriculum               fixed step", curves.threshold);
    println!("      t    KDC/dB  teacher steps    KDC/dB  teacher steps");
    for (curriculum, fixed) in curves.curriculum.iter().zip(&curves.fixed) {
        println!(
            "   {:.2}    {:>6.1}  {:>13.2}    {:>6.1}  {:>13.2}",
            curriculum.t, curriculum.kdc, curriculum.teacher_steps, fixed.kdc, fixed.teacher_steps
        );
    }
    let path = run.folder.join(files::KDC);
    disk::write(&path, serde_json::to_string_pretty(&curves)?.as_bytes())?;
    println!("{}", path.display());
    Ok(())
}
