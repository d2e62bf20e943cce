//! `distill import`: a checkpoint of another program becomes a model file.

use std::path::PathBuf;

use ccm::config::Config;
use ccm::disk;
use ccm::import::{Checkpoint, ImportError, spec_from_json};
use ccm::spec::{ModelCard, Role, UNetSpec};
use ccm::weights::Model;

use crate::Failure;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The checkpoint: PyTorch's (.pt, .pth, .ckpt) or safetensors, with the network behind any prefix
    checkpoint: PathBuf,
    /// Take the network of a preset
    #[arg(long, conflicts_with = "spec", required_unless_present = "spec")]
    preset: Option<String>,
    /// Take the network from a JSON file: this program's own description, or the arguments of torchcfm's
    /// UNetModelWrapper
    #[arg(long, value_name = "FILE.json")]
    spec: Option<PathBuf>,
    /// State dict to take, such as `net_model`; by default the one with averaged weights, where there are several
    #[arg(long)]
    key: Option<String>,
    /// What the model is: a teacher takes many solver steps, a student (a consistency model) one
    #[arg(long, value_parser = role, default_value = "teacher")]
    role: Role,
    /// The model file to write
    #[arg(long, value_name = "MODEL.safetensors")]
    out: PathBuf,
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "teacher" => Ok(Role::Teacher),
        "student" => Ok(Role::Student),
        other => Err(format!("expected teacher or student, found `{other}`")),
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(&arguments.checkpoint)?;
    if !checkpoint.description.is_empty() {
        return Err(ImportError::OwnModel(arguments.checkpoint).into());
    }
    let mut spec = network(&arguments)?;
    if arguments.preset.is_some() && spec.num_classes.is_none() {
        // A preset leaves the number of classes to the data; here the checkpoint has it.
        spec.num_classes = checkpoint.rows("label_emb.weight");
    }
    let found = checkpoint.select(&spec.tensors(), arguments.key.as_deref())?;
    let path = arguments.checkpoint.display();
    if !found.others.is_empty() {
        let others = found.others.iter().map(|prefix| format!("`{}`", prefix.trim_end_matches('.')));
        let others = others.collect::<Vec<_>>().join(", ");
        println!("{path}: takes {}; the network is under {others} too (--key)", found.prefix_shown());
    }
    if found.left_out > 0 {
        println!("{path}: {} tensors under {} are not the network's", found.left_out, found.prefix_shown());
    }
    let source = arguments.checkpoint.file_name();
    let card = ModelCard {
        role: arguments.role,
        source: source.map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        version: env!("CARGO_PKG_VERSION").into(),
        ..ModelCard::default()
    };
    let model = Model::new(spec, card, found.tensors).map_err(|error| format!("{path}: {error}"))?;
    disk::write(&arguments.out, &model.to_bytes())?;
    println!(
        "{}: a {} of {} tensors, {} parameters",
        arguments.out.display(),
        model.card.role,
        model.tensors.len(),
        model.spec.parameters()
    );
    Ok(())
}

fn network(arguments: &Arguments) -> Result<UNetSpec, Failure> {
    if let Some(file) = &arguments.spec {
        let text = disk::read_text(file)?;
        return Ok(spec_from_json(&text).map_err(|error| format!("{}: {error}", file.display()))?);
    }
    let preset = arguments.preset.as_deref().ok_or("--preset: expected a preset, or --spec")?;
    Ok(Config::preset(preset).map_err(|error| format!("--preset: {error}"))?.network)
}
