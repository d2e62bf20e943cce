//! `distill encode`: encodes captioned images with a pipeline, so that training starts from latents and embeddings.

use std::path::{Path, PathBuf};

use ccm::data::{self, Encoded, Examples, LoadOptions, Split};
use ccm::disk;
use ccm::import::text_to_image::{self, Folder, PartWeights};
use ccm::pipeline::Pipeline;
use ccm::train::encode::{self, Progress};
use ccm::train::folder::files;

use crate::Failure;
use crate::device::Choice;
use crate::progress::counter;
use crate::run::describe;
use crate::sample::{backend, size};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Text-to-image pipeline: a folder in diffusers' layout, or a single file
    model: PathBuf,
    /// Folder in diffusers' layout with the configuration and the tokenizers of a single file
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Captioned images: a folder, .zip or .tar with metadata.jsonl or metadata.csv, or a .txt file beside each image; or a
    /// folder of webdataset's .tar files
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Height and width of the images in pixels [default: the pipeline's]
    #[arg(long, value_name = "HEIGHTxWIDTH", value_parser = size)]
    size: Option<[usize; 2]>,
    /// Device; `auto` is a hardware GPU if there is one, otherwise the CPU
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// Output: the encoded images, for `distill run --data`
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Folder { mut spec, tokenizers, weights, .. } =
        text_to_image::open_any(&arguments.model, arguments.config.as_deref())?;
    if let Some(size) = arguments.size {
        spec = spec.with_image_size(size).map_err(|error| format!("--size: {error}"))?;
    }
    let pipeline = Pipeline::new(spec, tokenizers, weights, backend(arguments.device));
    write(&pipeline, &arguments.data, &arguments.out)
}

/// Encodes the images of a source, and writes them to a file.
fn write(pipeline: &Pipeline<PartWeights>, source: &Path, out: &Path) -> Result<(), Failure> {
    let Some(shape) = pipeline.spec.network.text() else {
        return Err("expected a pipeline with text".into());
    };
    let shown = source.display().to_string();
    let load = |split| {
        let options = LoadOptions { captions: true, ..LoadOptions::default() };
        let say = &mut |event: data::Event<'_>| describe(&shown, split, event);
        data::load(source, encode::image_shape(pipeline), split, options, say)
    };
    let (train, held_out) = (load(Split::Train)?, load(Split::HeldOut)?);
    let bar = counter("images encoded");
    let [train, held_out] = encode::encode(pipeline, [&train, &held_out], &mut |progress| match progress {
        Progress::Texts { captions } => println!("encoding {captions} captions"),
        Progress::Images { done, total } => {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
    })?;
    bar.finish_and_clear();
    Encoded::write(out, &train, &held_out, shape)?;
    println!("{}: {} images to train on, {} held out", out.display(), train.len(), held_out.len());
    Ok(())
}

/// Encoded images for a run: a file that `distill encode` wrote, or a source that is encoded now or was when the run began.
pub(crate) fn load(
    pipeline: &Pipeline<PartWeights>,
    source: &Path,
    folder: &Path,
) -> Result<[Examples; 2], Failure> {
    let is_encoded = source.extension().is_some_and(|ending| ending == "safetensors");
    let path = if is_encoded { source.to_owned() } else { folder.join(files::ENCODED) };
    if !path.exists() && !is_encoded {
        disk::make(folder)?;
        write(pipeline, source, &path)?;
    }
    Ok(Encoded::read(&path, &pipeline.spec.network)?.map(Examples::from))
}
