//! A data set on disk: images are read and decoded when a batch needs them.
//!
//! An epoch is a function of random numbers and the size of a batch, not a process: it can begin at any step. Row `i` of all
//! batches reads the `i`-th stretch of the shards in random order, through a shuffle buffer. Rows thus read files from front to
//! back, and ranks that share the rows of a batch share the shards.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::content::Content;
use super::dataset::to_values;
use super::{DataError, Entry, ImageShape, Listing, decode};
use crate::noise::Noise;

/// Images that are read at once without an archive around them: they count as a shard.
const SHARD: usize = 1024;

/// A place of an image on disk, with its class.
struct Image {
    content: Content,
    label: u32,
}

/// Labelled images of one shape on disk.
pub struct Streamed {
    images: Vec<Image>,
    /// Ranges of images that are next to each other on disk.
    shards: Vec<Range<usize>>,
    classes: Vec<String>,
    shape: ImageShape,
    /// Images in the shuffle buffers of all rows of a batch together.
    buffer: usize,
    skipped: Mutex<Skipped>,
}

/// The unreadable images so far.
#[derive(Default)]
struct Skipped {
    /// Numbers of the images.
    images: Vec<usize>,
    /// Messages that nobody has taken yet.
    messages: Vec<String>,
}

/// Images of a batch.
pub struct Read {
    /// `[B, C, H, W]` in [-1, 1].
    pub values: Vec<f32>,
    /// Classes, `[B]`.
    pub labels: Vec<u32>,
}

impl std::fmt::Debug for Streamed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} images of {} in {} shards", self.images.len(), self.shape, self.shards.len())
    }
}

impl Streamed {
    /// The images of a listing.
    ///
    /// # Errors
    /// Images that are not on disk one by one, but in a compressed archive or a file of many images.
    pub(super) fn new(
        path: &std::path::Path,
        listing: Listing,
        shape: ImageShape,
        buffer: usize,
    ) -> Result<Self, DataError> {
        let Listing { classes, entries, .. } = listing;
        let place = |content: &Content| match content {
            Content::Part(part) => Some((part.archive.to_path_buf(), part.start)),
            Content::File(file) => Some((file.clone(), 0)),
            _ => None,
        };
        // An entry that was refused can stay: it counts as unreadable.
        if let Some(Entry { .. }) = entries
            .iter()
            .find(|entry| place(&entry.content).is_none() && !matches!(entry.content, Content::Refused(_)))
        {
            return Err(DataError::NotOnDisk { path: path.to_path_buf() });
        }
        let mut placed: Vec<(Option<(std::path::PathBuf, u64)>, Image)> = entries
            .into_iter()
            .map(|Entry { label, content, .. }| (place(&content), Image { content, label }))
            .collect();
        placed.sort_by(|(a, _), (b, _)| a.cmp(b));
        let archive = |place: &Option<(std::path::PathBuf, u64)>, image: &Image| match image.content {
            Content::Part(_) => place.as_ref().map(|(archive, _)| archive.clone()),
            _ => None,
        };
        let mut shards: Vec<Range<usize>> = Vec::new();
        let mut last = None;
        for (index, (place, image)) in placed.iter().enumerate() {
            let of = archive(place, image);
            match shards.last_mut() {
                Some(shard) if of == last && (of.is_some() || shard.len() < SHARD) => shard.end = index + 1,
                _ => shards.push(index..index + 1),
            }
            last = of;
        }
        let images = placed.into_iter().map(|(_, image)| image).collect();
        Ok(Self { images, shards, classes, shape, buffer, skipped: Mutex::default() })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Shape of every image.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Names of the classes, indexed by label.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Class of an image.
    ///
    /// # Panics
    /// If `index` is not below [`Streamed::len`].
    pub fn label(&self, index: usize) -> u32 {
        self.images[index].label
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The order of an epoch: batch `k` has the images `k * batch..(k + 1) * batch` of the result. The last images, too few for a
    /// batch, are left out; they are other ones in every epoch.
    pub(crate) fn order(&self, noise: &mut Noise, batch: usize) -> Vec<usize> {
        let order = noise.permutation(self.shards.len());
        let sequence: Vec<usize> = order.into_iter().flat_map(|shard| self.shards[shard].clone()).collect();
        let steps = sequence.len() / batch;
        let buffer = (self.buffer / batch).max(2);
        let mut epoch = vec![0; steps * batch];
        for (row, stretch) in
            sequence.chunks(steps.max(1)).take(if steps > 0 { batch } else { 0 }).enumerate()
        {
            for (step, image) in shuffled(stretch, buffer, noise).into_iter().enumerate() {
                epoch[step * batch + row] = image;
            }
        }
        epoch
    }

    /// Reads the images at `indices`; see [`super::Dataset::batch`] for `flip`. In place of an unreadable image stands the next one on
    /// disk that can be read.
    ///
    /// # Errors
    /// If more than 1 % of all images, but at least 10, are unreadable.
    pub fn batch(&self, indices: &[usize], flip: &[bool]) -> Result<Read, DataError> {
        let size = self.shape.bytes();
        let mut pixels = vec![0; indices.len() * size];
        let labels: Result<Vec<u32>, DataError> = indices
            .par_iter()
            .zip(pixels.par_chunks_exact_mut(size))
            .map(|(&index, image)| self.read(index, image).map(|index| self.label(index)))
            .collect();
        Ok(Read { values: to_values(&pixels, self.shape, flip), labels: labels? })
    }

    /// Reads an image, or the next one that can be read, into `out`. Returns the number of the image that was read.
    fn read(&self, index: usize, out: &mut [u8]) -> Result<usize, DataError> {
        for place in (index..self.images.len()).chain(0..index) {
            match self.decode(place, out) {
                Ok(()) => return Ok(place),
                Err(reason) => self.skip(place, &reason)?,
            }
        }
        Err(self.too_many(self.images.len(), "all"))
    }

    /// Decodes an image into `out`, `[C, H, W]`.
    ///
    /// # Errors
    /// The reason why it cannot be read.
    pub(super) fn decode(&self, index: usize, out: &mut [u8]) -> Result<(), String> {
        match &self.images[index].content {
            Content::Refused(reason) => Err(reason.clone()),
            content => decode::decode(content.on_disk().unwrap_or_default(), self.shape, out),
        }
    }

    fn skip(&self, place: usize, reason: &str) -> Result<(), DataError> {
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        if skipped.images.contains(&place) {
            return Ok(());
        }
        skipped.images.push(place);
        let message = format!("data: {}: {reason}; skipped", self.images[place].content.name());
        skipped.messages.push(message.clone());
        let allowed = (self.images.len() / 100).max(10);
        if skipped.images.len() > allowed { Err(self.too_many(allowed, &message)) } else { Ok(()) }
    }

    fn too_many(&self, allowed: usize, example: &str) -> DataError {
        DataError::TooManyUnreadable {
            path: "data.source".into(),
            unreadable: allowed + 1,
            total: self.images.len(),
            allowed,
            examples: example.to_owned(),
        }
    }

    /// The messages about unreadable images since the last call.
    pub fn messages(&self) -> Vec<String> {
        std::mem::take(&mut self.skipped.lock().unwrap_or_else(PoisonError::into_inner).messages)
    }
}

/// A list as it leaves a shuffle buffer: each number is drawn from a buffer that the next one of the list then fills up.
fn shuffled(list: &[usize], buffer: usize, noise: &mut Noise) -> Vec<usize> {
    let mut waiting: Vec<usize> = list[..buffer.min(list.len())].to_vec();
    let mut next = waiting.len();
    let mut out = Vec::with_capacity(list.len());
    while !waiting.is_empty() {
        let place = noise.below(waiting.len());
        match list.get(next) {
            Some(&image) => out.push(std::mem::replace(&mut waiting[place], image)),
            None => out.push(waiting.swap_remove(place)),
        }
        next += 1;
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `shards` shards of `each` images.
    fn streamed(shards: usize, each: usize, buffer: usize) -> Streamed {
        let image = |index| Image { content: Content::File(format!("{index}").into()), label: 0 };
        Streamed {
            images: (0..shards * each).map(image).collect(),
            shards: (0..shards).map(|shard| shard * each..(shard + 1) * each).collect(),
            classes: vec!["all".into()],
            shape: ImageShape { channels: 1, height: 1, width: 1 },
            buffer,
            skipped: Mutex::default(),
        }
    }

    #[test]
    fn an_epoch_has_every_image_once_but_for_those_too_few_for_a_batch() {
        let data = streamed(7, 31, 64);
        for batch in [1, 2, 10, 217] {
            let order = data.order(&mut Noise::new(1, 2), batch);
            assert_eq!(order.len(), 217 / batch * batch);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), order.len(), "batch {batch}");
            assert_eq!(order, data.order(&mut Noise::new(1, 2), batch));
            assert_ne!(order, data.order(&mut Noise::new(1, 3), batch));
        }
        assert!(data.order(&mut Noise::new(1, 2), 300).is_empty());
    }

    #[test]
    fn a_row_reads_few_shards_and_a_batch_many() {
        let (shards, each, batch) = (16, 100, 8);
        let order = streamed(shards, each, 80).order(&mut Noise::new(5, 0), batch);
        for row in 0..batch {
            let of_row: std::collections::BTreeSet<usize> =
                order.iter().skip(row).step_by(batch).map(|image| image / each).collect();
            assert!(of_row.len() <= 3, "row {row} reads {} shards", of_row.len());
        }
        let of_batch: std::collections::BTreeSet<usize> =
            order[..batch].iter().map(|image| image / each).collect();
        assert_eq!(of_batch.len(), batch);
    }

    #[test]
    fn a_shuffle_buffer_moves_images_forward_by_less_than_its_size() {
        let list: Vec<usize> = (0..500).collect();
        let out = shuffled(&list, 20, &mut Noise::new(3, 0));
        assert!(out.iter().enumerate().all(|(place, image)| *image < place + 20));
        let moved = out.iter().enumerate().filter(|(place, image)| place.abs_diff(**image) > 5).count();
        assert!(moved > 250, "{moved}");
    }
}
