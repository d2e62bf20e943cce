//! `distill kdc`: measures KDC and teacher steps against t for a run.

use std::path::PathBuf;
use std::sync::Arc;

use ccm::disk;
use ccm::train::folder::{files, read_config};
use ccm::train::given::Given;
use ccm::train::group::Alone;
use ccm::train::run::{Run, suit};

use crate::Failure;
use crate::data::load_data;
use crate::device::{self, Choice, Opened};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the run
    run: PathBuf,
    /// Device; `auto` is a hardware GPU if there is one, otherwise the CPU
    #[arg(long, default_value = "auto")]
    device: Choice,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut config = read_config(&arguments.run)?;
    config.validate()?;
    let given = Given::read(&config)?;
    let teacher = given.teacher_of_run(&config, &arguments.run)?;
    let [data, held_out] = load_data(&config, &given, &arguments.run, false)?;
    suit(&mut config, &given, &data)?;
    let Opened { device, .. } = device::open(arguments.device)?;
    let (folder, command, group) = (arguments.run, String::new(), Arc::new(Alone));
    let [data, held_out] = [data, held_out].map(Arc::new);
    let given = Arc::new(given);
    let run = Run { config, folder, device, threads: 1, group, given, data, held_out, command };
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
    disk::write(&path, curves.to_json().as_bytes())?;
    println!("{}", path.display());
    Ok(())
}
