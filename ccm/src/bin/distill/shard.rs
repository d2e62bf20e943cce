//! `distill shard`: writes images as webdataset's tar archives, for training from disk.

use std::path::PathBuf;

use ccm::data::shards::{self, Images};
use ccm::data::{self, DataError, ImageShape, LoadOptions, Split};

use crate::Failure;
use crate::data::{Messages, printer};
use crate::features::shape;
use crate::progress::counter;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Images: a folder, .zip, .tar or .tgz; MNIST's or CIFAR-10's files
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Channels, height and width: images are cropped to the centre and resized
    #[arg(long, value_name = "CxHxW", value_parser = shape)]
    shape: ImageShape,
    /// Images in an archive
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    each: u64,
    /// Seed of the order
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder of the archives; it must not have any yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { data: source, shape, each, seed, out } = arguments;
    let files = std::fs::read_dir(out).into_iter().flatten().flatten();
    if let Some(found) =
        files.map(|file| file.path()).find(|path| path.extension().is_some_and(|e| e == "tar"))
    {
        return Err(format!("--out: expected a folder without archives, found {}", found.display()).into());
    }
    let name = source.display().to_string();
    for (split, messages) in [(Split::Train, Messages::All), (Split::HeldOut, Messages::Split)] {
        let print = &mut printer(&name, split, messages);
        let images = match data::open(source, *shape, split, 1, print) {
            Ok(images) => Images::OnDisk(images),
            // Compressed archives and files of many images are read into memory.
            Err(DataError::NotOnDisk { .. }) => {
                let quiet = &mut printer(&name, split, Messages::None);
                Images::Here(data::load(source, *shape, split, LoadOptions::default(), quiet)?)
            }
            Err(error) => return Err(error.into()),
        };
        let bar = counter("images");
        bar.set_length(images.len() as u64);
        let written = shards::write(&images, split, out, *each as usize, *seed, &mut |done, skipped| {
            bar.set_position(done as u64);
            if let Some(reason) = skipped {
                eprintln!("data: {name}: an image is skipped: {reason}");
            }
        })?;
        bar.finish_and_clear();
        println!("{}: {split}: {written} images", out.display());
    }
    Ok(())
}
