//! `distill import`: a PyTorch checkpoint becomes a model file.

use std::path::PathBuf;

use ccm::config::Config;
use ccm::disk;
use ccm::import::{read_checkpoint, spec_from_json};
use ccm::spec::{ModelCard, UNetSpec};
use ccm::weights::Model;

use crate::Failure;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The checkpoint: a state dict, or a dictionary of them as torchcfm and CCM save it
    checkpoint: PathBuf,
    /// Take the network of a preset
    #[arg(long, conflicts_with = "spec", required_unless_present = "spec")]
    preset: Option<String>,
    /// Take the network from a JSON file: this program's own description, or the arguments of torchcfm's
    /// UNetModelWrapper
    #[arg(long, value_name = "FILE.json")]
    spec: Option<PathBuf>,
    /// State dict to take; by default `ema_model`, else `net_model`, else the checkpoint itself
    #[arg(long)]
    key: Option<String>,
    /// The model file to write
    #[arg(long, value_name = "MODEL.safetensors")]
    out: PathBuf,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let tensors = read_checkpoint(&arguments.checkpoint, arguments.key.as_deref())?;
    let mut spec = network(&arguments)?;
    if arguments.preset.is_some() && spec.num_classes.is_none() {
        // A preset leaves the number of classes to the data; here the checkpoint knows it.
        spec.num_classes = tensors.get("label_emb.weight").and_then(|table| table.shape.first().copied());
    }
    let card = ModelCard {
        role: "imported".into(),
        source: arguments.checkpoint.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..ModelCard::default()
    };
    let model = Model::new(spec, card, tensors)
        .map_err(|error| format!("{}: {error}", arguments.checkpoint.display()))?;
    disk::write(&arguments.out, &model.to_bytes())?;
    println!(
        "{}: {} tensors, {} parameters",
        arguments.out.display(),
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
    let preset = arguments.preset.as_deref().unwrap_or_default();
    Ok(Config::preset(preset).map_err(|error| format!("--preset: {error}"))?.network)
}
