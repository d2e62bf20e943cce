//! Loads the images of a run, and says what is found in their source.

use std::path::Path;

use ccm::config::{Config, SHAPES};
use ccm::data::encoded::Origin;
use ccm::data::{self, Dataset, Encoded, Event, Examples, ImageShape, LoadOptions, Split};
use ccm::disk;
use ccm::import::text_to_image::PartWeights;
use ccm::model::NetworkSpec;
use ccm::pipeline::Pipeline;
use ccm::train::encode::{self, Progress};
use ccm::train::folder::files;
use ccm::train::given::Given;

use crate::Failure;
use crate::progress::counter;

/// Loads both splits of the images, of the kind that the run trains on. Captioned images are encoded once; the result is kept
/// in the run's folder. `quiet` omits messages.
pub(crate) fn load_data(
    config: &Config,
    given: &Given,
    folder: &Path,
    quiet: bool,
) -> Result<[Examples; 2], Failure> {
    let source = config.data.source.as_deref().ok_or("--data: this preset needs images: --data PATH")?;
    if let Some(pipeline) = &given.pipeline {
        let teacher =
            config.teacher.model.as_deref().ok_or("teacher.model: expected a pipeline, found none")?;
        let network = &given.spec(config);
        return load_encoded(pipeline, network, teacher, Path::new(source), folder);
    }
    let shape = ImageShape::of(&given.spec(config));
    if config.data.streamed {
        const BUFFER: usize = 8192;
        let buffer = config.data.shuffle_buffer.unwrap_or(BUFFER);
        let open = |split, messages| {
            let messages = if quiet { Messages::None } else { messages };
            data::open(Path::new(source), shape, split, buffer, &mut printer(source, split, messages))
        };
        return Ok([
            open(Split::Train, Messages::All)?.into(),
            open(Split::HeldOut, Messages::Split)?.into(),
        ]);
    }
    let (count, seed) = (config.data.count.unwrap_or(SHAPES_HELD_OUT), config.run.seed);
    let load = |split, messages| {
        let messages = if quiet { Messages::None } else { messages };
        load_part(source, shape, split, (count, seed), messages)
    };
    Ok([load(Split::Train, Messages::All)?.into(), load(Split::HeldOut, Messages::Split)?.into()])
}

/// The messages about a source.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Messages {
    /// All.
    All,
    /// Those about the split.
    Split,
    /// None.
    None,
}

/// Whether a source is a file that `distill encode` wrote.
pub(crate) fn is_encoded(source: &Path) -> bool {
    source.extension().is_some_and(|ending| ending == "safetensors")
}

/// Number of held-out shapes.
const SHAPES_HELD_OUT: usize = 1024;

/// One split of a source: a path, or `shapes`, for which `count` training images are generated.
pub(crate) fn load_split(
    source: &str,
    shape: ImageShape,
    split: Split,
    count: usize,
    seed: u64,
) -> Result<Dataset, Failure> {
    load_part(source, shape, split, (count, seed), Messages::All)
}

/// As [`load_split`], with these messages.
fn load_part(
    source: &str,
    shape: ImageShape,
    split: Split,
    (count, seed): (usize, u64),
    messages: Messages,
) -> Result<Dataset, Failure> {
    if source == SHAPES {
        let count = if split == Split::Train { count } else { SHAPES_HELD_OUT };
        let data = data::shapes(count, shape, split, seed)?;
        if messages != Messages::None {
            println!(
                "data: {split}: {} shapes, {} classes; {:.1} MB of memory",
                data.len(),
                data.classes().len(),
                megabytes(data.memory() as u64)
            );
        }
        return Ok(data);
    }
    let say = &mut printer(source, split, messages);
    Ok(data::load(Path::new(source), shape, split, LoadOptions::default(), say)?)
}

/// Prints messages about a source.
pub(crate) fn printer(source: &str, split: Split, messages: Messages) -> impl FnMut(Event<'_>) {
    move |event| match event {
        _ if messages == Messages::None => {}
        Event::Nested { .. } | Event::NotRead { .. } if messages == Messages::Split => {}
        event => describe(source, split, event),
    }
}

/// The first names of a list, and the number of the others.
fn listed(names: &[String]) -> String {
    const MOST: usize = 8;
    let listed = names.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MOST) {
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn describe(source: &str, split: Split, event: Event<'_>) {
    match event {
        Event::Found { images, classes, left_out, bytes } => {
            let left_out = if left_out > 0 { format!(", {left_out} left out") } else { String::new() };
            let place = match bytes {
                0 => "read from disk".to_owned(),
                _ => format!("{:.1} MB of memory", megabytes(bytes)),
            };
            println!("data: {source}: {split}: {images} images, {classes} classes{left_out}; {place}");
        }
        Event::Nested { classes, below } => {
            println!(
                "data: {source}: the classes are the folders {}; folders below them, such as {below}, are not classes",
                listed(classes)
            );
        }
        Event::NotRead { files, formats } => {
            println!("data: {source}: not read: {files} (read are {formats})");
        }
        Event::Unreadable { name, reason } => eprintln!("data: {name}: {reason}; skipped"),
        Event::Skipped { unreadable, kept } => {
            println!("data: {split}: {unreadable} images skipped, {kept} kept");
        }
        Event::Reading { .. } | Event::Progress { .. } => {}
    }
}

/// Encodes the images of a source for a network, and writes them to a file.
pub(crate) fn write_encoded(
    pipeline: &Pipeline<PartWeights>,
    network: &NetworkSpec,
    source: &Path,
    origin: Origin,
    out: &Path,
) -> Result<(), Failure> {
    disk::check_file(out)?;
    let Some(shape) = network.text() else {
        return Err("expected a pipeline with text".into());
    };
    let shown = source.display().to_string();
    let load = |split| {
        let options = LoadOptions { captions: true, ..LoadOptions::default() };
        let say = &mut |event: data::Event<'_>| match event {
            Event::Found { images, classes, left_out, .. } => println!(
                "data: {shown}: {split}: {images} images; {classes} captions in both splits; {left_out} images left out, \
                 which have no caption or are in neither split"
            ),
            event => describe(&shown, split, event),
        };
        data::load(source, encode::image_shape(pipeline), split, options, say)
    };
    let (train, held_out) = (load(Split::Train)?, load(Split::HeldOut)?);
    let bar = counter("images encoded");
    let [train, held_out] =
        encode::encode(pipeline, [&train, &held_out], network, &mut |progress| match progress {
            Progress::Texts { captions } => println!("encoding {captions} captions"),
            Progress::Images { done, total } => {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
        })?;
    bar.finish_and_clear();
    Encoded::write(out, [&train, &held_out], shape, origin)?;
    println!("{}: {} images to train on, {} held out", out.display(), train.len(), held_out.len());
    Ok(())
}

/// Encoded images for a run: a file that `distill encode` wrote, or a source that is encoded now or was when the run began.
fn load_encoded(
    pipeline: &Pipeline<PartWeights>,
    network: &NetworkSpec,
    teacher: &str,
    source: &Path,
    folder: &Path,
) -> Result<[Examples; 2], Failure> {
    let path = if is_encoded(source) { source.to_owned() } else { folder.join(files::ENCODED) };
    if is_encoded(source) {
        return Ok(Encoded::read(&path, network, None)?.map(Examples::from));
    }
    let origin = Origin {
        data: source.display().to_string(),
        pipeline: teacher.to_owned(),
        size: pipeline.spec.image_size(),
    };
    if !path.exists() {
        disk::make(folder)?;
        write_encoded(pipeline, network, source, origin.clone(), &path)?;
    }
    Ok(Encoded::read(&path, network, Some(&origin))?.map(Examples::from))
}
