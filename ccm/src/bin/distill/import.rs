//! `distill import`: converts a model of another program to a model file.

use std::path::{Path, PathBuf};

use ccm::config::{Config, PRESETS};
use ccm::disk;
use ccm::import::description::{
    Description, PUBLISHED, described_folder, description_from_json, prediction, published,
};
use ccm::import::{Checkpoint, ImportError, diffusers, pack, text_to_image};
use ccm::model::{ModelCard, Prediction, Role};
use ccm::weights::{Model, Precision};

use crate::Failure;
use crate::sample::lora;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder in diffusers' layout, or a checkpoint in PyTorch (.pt, .pth, .ckpt) or safetensors format. Names of
    /// tensors may have any prefix. A Stable Diffusion pipeline becomes one file with all its parts
    source: PathBuf,
    /// Configuration and tokenizers of a pipeline whose weights are in a single file: a folder in diffusers' layout
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Precision of the weights of a pipeline with text, unless they are stored in a smaller one: f32, f16, q8 or q4
    /// [default: f32]
    #[arg(long)]
    precision: Option<Precision>,
    /// Leave T5, by far the largest text encoder, out of a Stable Diffusion 3 pipeline
    #[arg(long)]
    without_t5: bool,
    /// Model file of a denoiser in the place of the pipeline's own, such as the student of `distill run`
    #[arg(long, value_name = "MODEL")]
    denoiser: Option<PathBuf>,
    /// LoRA file that is added to the weights of a pipeline with text, and its weight [default: 1]; may be given several times
    #[arg(long, value_name = "FILE[:WEIGHT]", value_parser = lora)]
    lora: Vec<(PathBuf, f32)>,
    /// Network of a checkpoint: a preset, or a published network: openai-imagenet64 or openai-lsun256
    #[arg(long, conflicts_with = "spec")]
    preset: Option<String>,
    /// Network of a checkpoint, as a JSON file: this program's description, or the arguments of torchcfm's
    /// UNetModelWrapper. Either may be under the key `network`, beside the key `sigma_data` of EDM or `prediction`
    #[arg(long, value_name = "FILE.json")]
    spec: Option<PathBuf>,
    /// What the network of a checkpoint predicts: velocity, noise, data, v or edm, with the published settings
    #[arg(long, value_name = "WHAT")]
    predicts: Option<String>,
    /// State dict of a checkpoint, such as `net_model` [default: the one with averaged weights if there are several]
    #[arg(long)]
    key: Option<String>,
    /// Role of the model: a teacher takes many solver steps, a student (a consistency model) one [default: teacher, or
    /// student if the folder has a consistency model's scheduler]. The file of a pipeline with text has the encoder of its
    /// autoencoder, which only training needs, if this is teacher
    #[arg(long, value_parser = role)]
    role: Option<Role>,
    /// Output model file
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
    if arguments.config.is_some() || text_to_image::is_text_to_image(&arguments.source) {
        return pipeline(&arguments);
    }
    let shown = arguments.source.display();
    for (flag, given) in [
        ("--precision", arguments.precision.is_some()),
        ("--denoiser", arguments.denoiser.is_some()),
        ("--lora", !arguments.lora.is_empty()),
        ("--without-t5", arguments.without_t5),
    ] {
        if given {
            return Err(format!("{flag}: {shown} is not a pipeline with text").into());
        }
    }
    let model = if arguments.source.is_dir() {
        folder(&arguments)?
    } else {
        checkpoint(&arguments, &arguments.source, None)?
    };
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

/// Packs a pipeline with text into one file.
fn pipeline(arguments: &Arguments) -> Result<(), Failure> {
    arguments.describes_itself()?;
    let mut folder = text_to_image::open_any(&arguments.source, arguments.config.as_deref())?;
    if arguments.without_t5 {
        let before = folder.spec.text_encoders.len();
        folder.spec = folder.spec.without_t5().map_err(|error| format!("--without-t5: {error}"))?;
        if folder.spec.text_encoders.len() == before {
            return Err(format!("--without-t5: {} has no T5", arguments.source.display()).into());
        }
    }
    folder.notes.iter().for_each(|note| println!("{note}"));
    let weights = folder.read_changes(arguments.denoiser.as_deref(), &arguments.lora)?;
    disk::check_file(&arguments.out)?;
    let precision = arguments.precision.unwrap_or_default().max(folder.precision);
    let written = pack::pack(&folder, &weights, precision, arguments.role, &arguments.out)?;
    println!("{}: {precision}, {written}", arguments.out.display());
    Ok(())
}

impl Arguments {
    /// Refuses the flags that describe a checkpoint.
    fn describes_itself(&self) -> Result<(), Failure> {
        for (flag, given) in [
            ("--preset", self.preset.is_some()),
            ("--spec", self.spec.is_some()),
            ("--predicts", self.predicts.is_some()),
            ("--key", self.key.is_some()),
        ] {
            if given {
                let source = self.source.display();
                return Err(
                    format!("{flag}: not used with a folder, which describes itself: {source}").into()
                );
            }
        }
        Ok(())
    }
}

fn folder(arguments: &Arguments) -> Result<Model, Failure> {
    let source = &arguments.source;
    if !diffusers::is_pipeline(source) {
        let (file, spec) = described_folder(source)?;
        return checkpoint(arguments, &file, Some(&spec));
    }
    arguments.describes_itself()?;
    let pipeline = diffusers::read(source, arguments.role)?;
    pipeline.notes.iter().for_each(|note| println!("{note}"));
    Ok(pipeline.model)
}

/// Imports a checkpoint. `described` is the network's description in the same folder, if there is one.
fn checkpoint(arguments: &Arguments, path: &Path, described: Option<&Path>) -> Result<Model, Failure> {
    let checkpoint = Checkpoint::open(path)?;
    if !checkpoint.description.is_empty() {
        return Err(ImportError::OwnModel(path.to_owned()).into());
    }
    let role = arguments.role.unwrap_or_default();
    let Description { spec, prediction: described } = describe(arguments, described, role, &checkpoint)?;
    let prediction = match &arguments.predicts {
        Some(name) => prediction(name, role).map_err(|error| format!("--predicts: {error}"))?,
        None => described,
    };
    let found = checkpoint.select(&spec.tensors(), arguments.key.as_deref())?;
    let shown = path.display();
    if !found.others.is_empty() {
        let others = found.others.iter().map(|prefix| format!("`{}`", prefix.trim_end_matches('.')));
        let others = others.collect::<Vec<_>>().join(", ");
        println!("{shown}: takes {}; the network is under {others} too (--key)", found.prefix_shown());
    }
    if found.left_out > 0 {
        println!("{shown}: {} tensors under {} are not the network's", found.left_out, found.prefix_shown());
    }
    let card = ModelCard {
        role,
        source: path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        version: env!("CARGO_PKG_VERSION").into(),
        ..ModelCard::default()
    };
    Ok(Model::new(spec, prediction, card, found.tensors).map_err(|error| format!("{shown}: {error}"))?)
}

/// The network of `--spec` or `--preset`, otherwise of the description file `beside` the checkpoint.
fn describe(
    arguments: &Arguments,
    beside: Option<&Path>,
    role: Role,
    checkpoint: &Checkpoint,
) -> Result<Description, Failure> {
    let beside = beside.filter(|_| arguments.preset.is_none());
    if let Some(file) = arguments.spec.as_deref().or(beside) {
        let text = disk::read_text(file)?;
        return Ok(
            description_from_json(&text, role).map_err(|error| format!("{}: {error}", file.display()))?
        );
    }
    let preset =
        arguments.preset.as_deref().ok_or("--preset: expected a preset, or --spec, for a checkpoint")?;
    if let Some(description) = published(preset, role) {
        return Ok(description);
    }
    if !PRESETS.contains(&preset) {
        let known = [&PUBLISHED[..], &PRESETS[..]].concat().join(", ");
        return Err(format!("--preset: expected one of {known}, found `{preset}`").into());
    }
    let config = Config::preset(preset).map_err(|error| format!("--preset: {error}"))?;
    if config.data.captions {
        return Err(
            format!("--preset: {preset} is for pipelines, which describe their networks themselves").into()
        );
    }
    let mut spec = config.network;
    // A preset does not set the number of classes. The checkpoint's label embedding has one row per class.
    spec.num_classes = spec.num_classes.or(checkpoint.rows("label_emb.weight"));
    Ok(Description { spec: spec.into(), prediction: Prediction::Velocity })
}
