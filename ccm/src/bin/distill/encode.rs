//! `distill encode`: encodes captioned images with a pipeline, so that training starts from latents and embeddings.

use std::path::PathBuf;

use ccm::data::encoded::Origin;
use ccm::import::text_to_image::{self, Folder};
use ccm::pipeline::Pipeline;

use crate::Failure;
use crate::data::write_encoded;
use crate::device::Choice;
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
    let Folder { mut spec, tokenizers, weights, notes, .. } =
        text_to_image::open_any(&arguments.model, arguments.config.as_deref())?;
    notes.iter().for_each(|note| println!("{note}"));
    if let Some(size) = arguments.size {
        spec = spec.with_image_size(size).map_err(|error| format!("--size: {error}"))?;
    }
    let pipeline = Pipeline::new(spec, tokenizers, weights, backend(arguments.device));
    let origin = Origin {
        data: arguments.data.display().to_string(),
        pipeline: arguments.model.display().to_string(),
        size: pipeline.spec.image_size(),
    };
    let network = pipeline.spec.network.clone();
    write_encoded(&pipeline, &network, &arguments.data, origin, &arguments.out)
}
