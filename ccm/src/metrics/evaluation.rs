//! Evaluation: all metrics of a set of generated images compared with a set of real ones.

use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;

use super::MetricsError;
use super::extractor::{Extractor, Features};
use super::frechet::{Gaussian, Moments, frechet_distance};
use super::kernel::{Spread, kernel_distance};
use super::manifold::{Manifold, manifold};
use super::rows::Rows;
use super::score::Score;
use crate::data::{Dataset, ImageShape};
use crate::model::NetworkSpec;
use crate::noise::Noise;
use crate::sampler::image::to_byte;
use crate::sampler::schedule::Request;

/// Number of subsets for the kernel distance and images per subset, as in the paper.
const SUBSETS: (usize, usize) = (100, 1000);

/// Images that are generated, or whose features are extracted, in one batch.
const BATCH: usize = 100;

/// Number of images whose features are kept. Comparing all pairs of a larger set takes minutes.
pub const MOST_KEPT: usize = 10_000;

/// The images of [`Collection::of_samples`].
#[derive(Debug, Clone, Copy)]
pub struct Generated<'a> {
    /// The model's network.
    pub spec: &'a NetworkSpec,
    /// Names of the model's classes; empty if it does not name them.
    pub classes: &'a [String],
    /// Seed of the first image.
    pub seed: u64,
    /// Number of images.
    pub count: usize,
}

/// Features of a set of images: mean and covariance of all, and the features of the first images.
pub struct Collection {
    moments: Moments,
    width: usize,
    classes: usize,
    kept: Vec<f64>,
    most_kept: usize,
    score: Score,
    /// Number of images whose largest logit is that of their label, and number of images with a label.
    right: (usize, usize),
}

impl Collection {
    /// Creates an empty collection for `total` images that keeps the features of the first `most_kept`.
    pub fn new(extractor: &dyn Extractor, total: usize, most_kept: usize) -> Self {
        let (width, classes) = (extractor.width(), extractor.classes());
        Self {
            moments: Moments::new(width),
            width,
            classes,
            kept: Vec::new(),
            most_kept,
            score: Score::new(total, classes),
            right: (0, 0),
        }
    }

    /// Adds a batch. `labels` are the classes that the images were generated for, or empty.
    ///
    /// # Errors
    /// [`MetricsError::NotFinite`] if a feature is not finite.
    pub fn add(&mut self, seen: &Features, labels: &[u32]) -> Result<(), MetricsError> {
        let features: Vec<f64> = seen.features.iter().map(|&value| f64::from(value)).collect();
        let room = (self.most_kept * self.width).saturating_sub(self.kept.len());
        self.kept.extend(&features[..room.min(features.len())]);
        self.moments.add(&Rows::new(self.width, features)?)?;
        if self.classes > 0 {
            seen.logits.chunks_exact(self.classes).for_each(|logits| self.score.add(logits));
            let pairs = seen.classes(self.classes).zip(labels);
            self.right.0 += pairs.filter(|(class, label)| *class == **label as usize).count();
            self.right.1 += labels.len();
        }
        Ok(())
    }

    /// Extracts the features of all images of a data set. Calls `say` with the number of images done.
    ///
    /// # Errors
    /// As [`Collection::add`].
    pub fn of_data(
        extractor: &dyn Extractor,
        data: &Dataset,
        device: &Device,
        mut say: impl FnMut(usize),
    ) -> Result<Self, MetricsError> {
        let mut collection = Self::new(extractor, data.len(), MOST_KEPT);
        // Data sets can be sorted by class, and the kept features must come from all classes.
        let order = Noise::new(0, 0).permutation(data.len());
        for indices in order.chunks(BATCH) {
            let seen = extractor.extract(images_tensor(data.batch(indices, &[]), data.shape(), device));
            collection.add(&seen, &[])?;
            say(collection.images() as usize);
        }
        Ok(collection)
    }

    /// Generates `count` images with the seeds `seed, seed + 1, ...`, cycling through the classes, rounds them to bytes
    /// and extracts their features. `generate` makes the images `[N, C, H, W]` of a request. Calls `say` with the number of
    /// images done.
    ///
    /// # Errors
    /// As [`Collection::add`] and `generate`, and [`MetricsError::NotFinite`] if an image is not finite.
    pub fn of_samples(
        extractor: &dyn Extractor,
        Generated { spec, classes, seed, count }: Generated<'_>,
        device: &Device,
        mut generate: impl FnMut(&Request) -> Result<Vec<f32>, MetricsError>,
        mut say: impl FnMut(usize),
    ) -> Result<Self, MetricsError> {
        let (shape, num_classes) = (ImageShape::of(spec), spec.num_classes());
        let same_classes = are_classes(num_classes, classes, extractor);
        let mut collection = Self::new(extractor, count, MOST_KEPT);
        for start in (0..count).step_by(BATCH) {
            let numbers = start..count.min(start + BATCH);
            let labels: Vec<u32> = match num_classes {
                Some(classes) => numbers.clone().map(|i| (i % classes) as u32).collect(),
                None => Vec::new(),
            };
            let request = Request::from_seeds(spec, seed.wrapping_add(start as u64), &labels, numbers.len());
            let images = generate(&request)?;
            if images.iter().any(|value| !value.is_finite()) {
                return Err(MetricsError::NotFinite("images"));
            }
            let rounded = images.into_iter().map(|value| f32::from(to_byte(value)) / 127.5 - 1.0).collect();
            let known = if same_classes { &labels[..] } else { &[] };
            collection.add(&extractor.extract(images_tensor(rounded, shape, device)), known)?;
            say(numbers.end);
        }
        Ok(collection)
    }

    /// Number of images added.
    pub fn images(&self) -> u64 {
        self.moments.count()
    }

    /// Mean and covariance of the features.
    ///
    /// # Errors
    /// [`MetricsError::TooFew`] if there are fewer than two images.
    pub fn gaussian(&self) -> Result<Gaussian, MetricsError> {
        self.moments.gaussian()
    }

    fn rows(&self) -> Result<Rows, MetricsError> {
        Rows::new(self.width, self.kept.clone())
    }
}

/// Whether a model and the extractor have the same classes. A model without class names, such as an imported one, is
/// compared by the number of classes.
fn are_classes(num_classes: Option<usize>, names: &[String], extractor: &dyn Extractor) -> bool {
    num_classes == Some(extractor.classes()) && (names.is_empty() || names == extractor.class_names())
}

/// A tensor of images `[B, C, H, W]`.
pub(super) fn images_tensor(values: Vec<f32>, shape: ImageShape, device: &Device) -> Tensor<4> {
    let count = values.len() / shape.bytes();
    Tensor::from_data(TensorData::new(values, [count, shape.channels, shape.height, shape.width]), device)
}

/// The real images.
pub enum Reference {
    /// Only mean and covariance, from a file.
    Statistics(Gaussian),
    /// Features of the images.
    Images(Box<Collection>),
}

/// Metrics of a set of generated images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Name of the extractor. Metrics of different extractors cannot be compared.
    pub features: String,
    /// Number of generated images.
    pub images: u64,
    /// Number of real images; 0 if the reference is a statistics file.
    pub reference_images: u64,
    /// Fréchet distance; the FID if the extractor is the FID's network.
    pub frechet: f64,
    /// Kernel distance, if the reference has images.
    pub kernel: Option<Kernel>,
    /// Precision, recall, density and coverage, if the reference has images.
    pub manifold: Option<Neighbours>,
    /// Inception score, if the extractor has logits.
    pub score: Option<Spread>,
    /// Class accuracy of the generated images in [0, 1], if the extractor has the model's classes.
    pub accuracy: Option<f64>,
}

/// Kernel distance over random subsets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Kernel {
    /// Mean and standard deviation over subsets. The deviation is 0 for a single subset.
    pub distance: Spread,
    /// Number of subsets; 1 if a set is not larger than a subset.
    pub subsets: usize,
    /// Images per subset of each set.
    pub images: usize,
}

/// Precision, recall, density and coverage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Neighbours {
    /// The metrics.
    #[serde(flatten)]
    pub manifold: Manifold,
    /// Images used of each set.
    pub images: usize,
}

impl Neighbours {
    /// Uses as many images of each set as the smaller set has.
    fn of(generated: &Rows, real: &Rows) -> Result<Self, MetricsError> {
        let images = generated.len().min(real.len());
        Ok(Self { manifold: manifold(&real.first(images), &generated.first(images))?, images })
    }
}

impl Kernel {
    /// Uses [`SUBSETS`], or one subset as large as the smaller set if that is not larger than a subset.
    fn of(generated: &Rows, real: &Rows) -> Result<Self, MetricsError> {
        let (subsets, images) = SUBSETS;
        let most = generated.len().min(real.len());
        let (subsets, images) = if most > images { (subsets, images) } else { (1, most) };
        let distance = kernel_distance(generated, real, subsets, images, 0)?;
        Ok(Self { distance, subsets, images })
    }
}

impl Figures {
    /// Compares generated images with real ones.
    ///
    /// # Errors
    /// [`MetricsError`] if there are too few images or a feature is not finite.
    pub fn of(
        extractor: &dyn Extractor,
        generated: &Collection,
        reference: &Reference,
    ) -> Result<Self, MetricsError> {
        let (real, pair) = match reference {
            Reference::Statistics(gaussian) => (gaussian.clone(), None),
            Reference::Images(images) => (images.gaussian()?, Some((images.rows()?, generated.rows()?))),
        };
        let (kernel, neighbours) = match &pair {
            Some((real, generated)) => {
                (Some(Kernel::of(generated, real)?), Some(Neighbours::of(generated, real)?))
            }
            None => (None, None),
        };
        Ok(Self {
            features: extractor.name(),
            images: generated.images(),
            reference_images: match reference {
                Reference::Statistics(_) => 0,
                Reference::Images(images) => images.images(),
            },
            frechet: frechet_distance(&generated.gaussian()?, &real)?,
            kernel,
            manifold: neighbours,
            score: generated.score.value(),
            accuracy: (generated.right.1 > 0).then(|| generated.right.0 as f64 / generated.right.1 as f64),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nn::host::to_host;

    /// Uses pixels as features; the first two are the logits of the classes cat and dog.
    struct Pixels([String; 2]);

    fn pixels() -> Pixels {
        Pixels(["cat", "dog"].map(str::to_owned))
    }

    impl Extractor for Pixels {
        fn name(&self) -> String {
            "pixels".into()
        }
        fn width(&self) -> usize {
            4
        }
        fn classes(&self) -> usize {
            2
        }
        fn class_names(&self) -> &[String] {
            &self.0
        }
        fn shape(&self) -> Option<ImageShape> {
            None
        }
        fn extract(&self, images: Tensor<4>) -> Features {
            seen(to_host(images))
        }
    }

    fn seen(features: Vec<f32>) -> Features {
        let logits = features.chunks_exact(4).flat_map(|row| [row[0], row[1]]).collect();
        Features { features, logits }
    }

    fn collection(seed: u64, shift: f32) -> Collection {
        let mut collection = Collection::new(&pixels(), 300, 200);
        for part in 0..3 {
            let values = Noise::new(seed, part).normals(400).into_iter().map(|value| value + shift).collect();
            collection.add(&seen(values), &[0; 100]).unwrap();
        }
        collection
    }

    #[test]
    fn metrics_distinguish_near_sets_from_far_ones() {
        let real = Reference::Images(Box::new(collection(1, 0.0)));
        let near = Figures::of(&pixels(), &collection(2, 0.0), &real).unwrap();
        let far = Figures::of(&pixels(), &collection(2, 3.0), &real).unwrap();
        assert_eq!((near.features.as_str(), near.images, near.reference_images), ("pixels", 300, 300));
        assert!(
            near.frechet < 0.1 && (far.frechet - 36.0).abs() < 4.0,
            "{} and {}",
            near.frechet,
            far.frechet
        );
        let (near_by, far_off) = (near.manifold.unwrap(), far.manifold.unwrap());
        assert_eq!(near_by.images, 200, "the number of kept images");
        assert!(near_by.manifold.precision > 0.8 && far_off.manifold.precision < 0.3);
        assert!(near.kernel.unwrap().distance.mean < far.kernel.unwrap().distance.mean);
        let accuracy = near.accuracy.unwrap();
        assert!((accuracy - 0.5).abs() < 0.1, "{accuracy}");
        assert!(near.score.unwrap().mean > 1.0);
    }

    #[test]
    fn classes_are_compared_by_name() {
        let are = |count, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            are_classes(count, &names, &pixels())
        };
        assert!(are(Some(2), &["cat", "dog"]) && are(Some(2), &[]));
        assert!(!are(Some(2), &["dog", "cat"]) && !are(Some(3), &[]) && !are(None, &[]));
    }

    #[test]
    fn statistics_alone_give_the_same_frechet_distance() {
        let real = collection(1, 0.0);
        let statistics = Reference::Statistics(real.gaussian().unwrap());
        let generated = collection(2, 0.2);
        let from_statistics = Figures::of(&pixels(), &generated, &statistics).unwrap();
        let from_images = Figures::of(&pixels(), &generated, &Reference::Images(Box::new(real))).unwrap();
        assert_eq!(from_statistics.frechet, from_images.frechet);
        assert_eq!(from_statistics.manifold, None);
    }
}
