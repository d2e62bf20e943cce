//! A small classifier trained on the data itself. It extracts features without pretrained weights and measures class
//! accuracy.

use burn::module::Module;
use burn::tensor::activation::{log_softmax, relu};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::MetricsError;
use super::evaluation::images_tensor;
use super::extractor::{Extractor, Features, fingerprint};
use crate::data::{Dataset, ImageShape};
use crate::model::TensorSpec;
use crate::nn::host::to_host;
use crate::nn::layers::{Convolution, Linear, Loader, gradients, parameters, with_parameters};
use crate::nn::optimizer::{Optimizer, Schedule};
use crate::noise::Noise;
use crate::weights::{HostTensor, TensorFile};

/// Output channels of the four convolutions. The second and the fourth have stride 2.
const CHANNELS: [usize; 4] = [32, 32, 64, 64];
/// Number of features.
const WIDTH: usize = 128;

/// Description of a classifier, stored in its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassifierCard {
    /// Channels of the input images.
    pub channels: usize,
    /// Height of the input images.
    pub height: usize,
    /// Width of the input images.
    pub width: usize,
    /// Class names, indexed by label.
    pub classes: Vec<String>,
    /// Name of the training data.
    pub data: String,
    /// Epochs of training.
    pub epochs: usize,
    /// Seed of training.
    pub seed: u64,
    /// Accuracy on held-out images, in [0, 1].
    pub accuracy: f64,
    /// Version of this program.
    pub version: String,
}

/// JSON description in the file. Its key marks the file as a classifier.
#[derive(Serialize, Deserialize)]
struct Description {
    classifier: ClassifierCard,
}

/// Four convolutions, a linear layer for the features and one for the logits, with ReLU in between.
#[derive(Module, Debug)]
pub struct Classifier {
    convolutions: Vec<Convolution>,
    features: Linear,
    logits: Linear,
    #[module(skip)]
    card: ClassifierCard,
}

/// Hyperparameters of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Training {
    /// Number of epochs.
    pub epochs: usize,
    /// Images per step.
    pub batch: usize,
    /// Initial learning rate; cosine decay to zero.
    pub learning_rate: f64,
    /// Largest random shift of an image in each direction, in pixels.
    pub shift: usize,
    /// Whether to mirror images horizontally with probability 1/2.
    pub horizontal_flip: bool,
    /// Seed of the initial weights, the order of images and the augmentation.
    pub seed: u64,
}

impl Default for Training {
    fn default() -> Self {
        Self { epochs: 4, batch: 128, learning_rate: 2e-3, shift: 2, horizontal_flip: false, seed: 0 }
    }
}

impl ClassifierCard {
    /// Names and shapes of the tensors, in file order.
    fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        let mut add = |name: &str, shape: &[usize]| {
            let mut push = |kind, shape: &[usize]| {
                tensors.push(TensorSpec { name: format!("{name}.{kind}"), shape: shape.to_vec() });
            };
            push("weight", shape);
            push("bias", &shape[..1]);
        };
        let mut inputs = self.channels;
        for (i, outputs) in CHANNELS.into_iter().enumerate() {
            add(&format!("convolutions.{i}"), &[outputs, inputs, 3, 3]);
            inputs = outputs;
        }
        add(
            "features",
            &[WIDTH, inputs * self.height.div_ceil(2).div_ceil(2) * self.width.div_ceil(2).div_ceil(2)],
        );
        add("logits", &[self.classes.len(), WIDTH]);
        tensors
    }
}

impl Classifier {
    fn new(card: ClassifierCard, tensors: &[HostTensor], device: &Device) -> Self {
        let specs = card.tensors();
        let mut load = Loader::new(&specs, tensors, device);
        let convolutions = 0..CHANNELS.len();
        let network = Self {
            convolutions: convolutions.map(|i| load.convolution(&format!("convolutions.{i}"))).collect(),
            features: load.linear("features"),
            logits: load.linear("logits"),
            card,
        };
        load.finish();
        network
    }

    /// Features `[B, WIDTH]` and logits `[B, classes]` of images `[B, C, H, W]`.
    fn forward(&self, images: Tensor<4>) -> (Tensor<2>, Tensor<2>) {
        let mut x = images;
        for (i, convolution) in self.convolutions.iter().enumerate() {
            x = relu(convolution.forward(x, None, 1 + i % 2));
        }
        let [batch, channels, height, width] = x.dims();
        let features = relu(self.features.forward(x.reshape([batch, channels * height * width])));
        (features.clone(), self.logits.forward(features))
    }

    /// Description of the classifier.
    pub fn card(&self) -> &ClassifierCard {
        &self.card
    }

    /// Trains a classifier and measures its accuracy on held-out images. Calls `say` after every step with the number
    /// of steps done, the total number of steps, and the loss.
    ///
    /// # Errors
    /// [`MetricsError::File`] if the data has fewer than two classes.
    pub fn train(
        data: &Dataset,
        held_out: &Dataset,
        source: &str,
        training: &Training,
        device: &Device,
        mut say: impl FnMut(usize, usize, f64),
    ) -> Result<Self, MetricsError> {
        let classes = data.classes();
        if classes.len() < 2 {
            let found = classes.len();
            return Err(MetricsError::File(format!(
                "{source}: expected at least two classes, found {found}"
            )));
        }
        let shape = data.shape();
        let card = ClassifierCard {
            channels: shape.channels,
            height: shape.height,
            width: shape.width,
            classes: classes.to_vec(),
            data: source.into(),
            epochs: training.epochs,
            seed: training.seed,
            accuracy: 0.0,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let plain = device.clone().without_autodiff();
        let mut network = Self::new(card.clone(), &random(&card, training.seed), &device.clone().autodiff());
        let mut optimizer = Optimizer::default();
        let steps_of_epoch = data.len().div_ceil(training.batch);
        let steps = steps_of_epoch * training.epochs;
        let schedule = Schedule {
            learning_rate: training.learning_rate,
            warmup_steps: 100,
            steps: steps as u64,
            cooldown: 1.0,
            gradient_clip: 5.0,
        };
        for epoch in 0..training.epochs {
            let mut noise = Noise::new(training.seed, 1 + epoch as u64);
            let order = noise.permutation(data.len());
            for (i, indices) in order.chunks(training.batch).enumerate() {
                let step = epoch * steps_of_epoch + i;
                let images = augmented(data, indices, training, &mut noise);
                let labels: Vec<u32> = indices.iter().map(|&index| data.label(index)).collect();
                let (_, logits) = network.forward(images_tensor(images, shape, &plain).autodiff());
                let loss = cross_entropy(logits, &labels, classes.len(), &plain);
                let gradients = gradients(&network, &loss);
                let (changed, _) = optimizer.step(&schedule, step as u64, parameters(&network), gradients);
                network = with_parameters(network, changed);
                let loss = to_host(loss.inner()).into_iter().map(f64::from).sum();
                say(step + 1, steps, loss);
            }
        }
        let mut network = network.valid();
        network.card.accuracy = network.accuracy(held_out, &plain);
        Ok(network)
    }

    /// Accuracy on a data set, in [0, 1].
    pub fn accuracy(&self, data: &Dataset, device: &Device) -> f64 {
        const BATCH: usize = 256;
        let all: Vec<usize> = (0..data.len()).collect();
        let mut right = 0;
        for indices in all.chunks(BATCH) {
            let seen = self.extract(images_tensor(data.batch(indices, &[]), data.shape(), device));
            let found = seen.classes(self.card.classes.len()).zip(indices);
            right += found.filter(|(class, index)| *class == data.label(**index) as usize).count();
        }
        right as f64 / data.len().max(1) as f64
    }

    /// Serializes the classifier as safetensors.
    pub fn to_bytes(&self) -> Vec<u8> {
        let values = parameters(self).into_iter().map(to_host);
        let tensors = self.card.tensors().into_iter().zip(values);
        let tensors =
            tensors.map(|(spec, values)| (spec.name, HostTensor::new(spec.shape, values))).collect();
        #[expect(clippy::expect_used, reason = "a struct of numbers and strings is valid JSON")]
        let description = serde_json::to_string(&Description { classifier: self.card.clone() })
            .expect("a card is valid JSON");
        TensorFile { tensors, description }.to_bytes()
    }

    /// Reads a classifier from the bytes of its file.
    ///
    /// # Errors
    /// [`MetricsError::File`] if the file is truncated, is not a classifier, or has tensors of other names or shapes.
    pub fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self, MetricsError> {
        let mut file =
            TensorFile::from_bytes(bytes).map_err(|error| MetricsError::File(error.to_string()))?;
        let Description { classifier: card } = serde_json::from_str(&file.description).map_err(|error| {
            MetricsError::File(format!("not a classifier of `distill features`: {error}"))
        })?;
        let shape = ImageShape { channels: card.channels, height: card.height, width: card.width };
        shape.validate().map_err(|error| MetricsError::File(error.to_string()))?;
        let mut tensors = Vec::new();
        for TensorSpec { name, shape: expected } in card.tensors() {
            let tensor = file.take(&name).map_err(|error| MetricsError::File(error.to_string()))?;
            if tensor.shape != expected {
                let found = tensor.shape;
                return Err(MetricsError::File(format!(
                    "tensor `{name}`: expected shape {expected:?}, found {found:?}"
                )));
            }
            tensors.push(tensor);
        }
        Ok(Self::new(card, &tensors, device))
    }
}

impl Extractor for Classifier {
    fn name(&self) -> String {
        let ClassifierCard { data, accuracy, .. } = &self.card;
        let weights = fingerprint(parameters(self).into_iter().map(to_host));
        format!(
            "classifier of {data} ({:.2} % right on held-out images, weights {weights})",
            100.0 * accuracy
        )
    }

    fn width(&self) -> usize {
        WIDTH
    }

    fn classes(&self) -> usize {
        self.card.classes.len()
    }

    fn class_names(&self) -> &[String] {
        &self.card.classes
    }

    fn shape(&self) -> Option<ImageShape> {
        let ClassifierCard { channels, height, width, .. } = self.card;
        Some(ImageShape { channels, height, width })
    }

    fn extract(&self, images: Tensor<4>) -> Features {
        let (features, logits) = self.forward(images);
        Features { features: to_host(features), logits: to_host(logits) }
    }
}

/// Weights uniform in `±sqrt(6 / inputs)` (He et al., arXiv 1502.01852); biases zero.
fn random(card: &ClassifierCard, seed: u64) -> Vec<HostTensor> {
    let tensors = card.tensors().into_iter().enumerate().map(|(i, TensorSpec { shape, .. })| {
        let mut noise = Noise::new(seed, (1 << 32) + i as u64);
        let count = shape.iter().product();
        let inputs: usize = shape[1..].iter().product();
        let bound = if shape.len() > 1 { (6.0 / inputs as f64).sqrt() } else { 0.0 };
        let values = noise.uniforms(count, bound);
        HostTensor { shape, values }
    });
    tensors.collect()
}

/// A batch of images, shifted and mirrored at random. Shifted images are padded with their edge pixels.
fn augmented(data: &Dataset, indices: &[usize], training: &Training, noise: &mut Noise) -> Vec<f32> {
    let ImageShape { channels, height, width } = data.shape();
    let flip: Vec<bool> = indices.iter().map(|_| training.horizontal_flip && noise.below(2) == 1).collect();
    let images = data.batch(indices, &flip);
    let mut moved = Vec::with_capacity(images.len());
    for image in images.chunks_exact(channels * height * width) {
        let mut offset = || noise.below(2 * training.shift + 1) as isize - training.shift as isize;
        let (down, right) = (offset(), offset());
        let within =
            |place: usize, offset: isize, size: usize| place.saturating_add_signed(offset).min(size - 1);
        for plane in image.chunks_exact(height * width) {
            for row in 0..height {
                let row = &plane[within(row, down, height) * width..][..width];
                moved.extend((0..width).map(|column| row[within(column, right, width)]));
            }
        }
    }
    moved
}

/// Cross-entropy: the mean of `-log p(label)`.
fn cross_entropy(logits: Tensor<2>, labels: &[u32], classes: usize, device: &Device) -> Tensor<1> {
    let mut chosen = vec![0.0f32; labels.len() * classes];
    for (row, &label) in chosen.chunks_exact_mut(classes).zip(labels) {
        row[label as usize] = -1.0 / labels.len() as f32;
    }
    let chosen = Tensor::<2>::from_data(TensorData::new(chosen, [labels.len(), classes]), device);
    (log_softmax(logits, 1) * chosen.autodiff()).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::{Split, shapes};

    #[test]
    fn a_classifier_learns_and_its_file_restores_it() {
        let shape = ImageShape { channels: 3, height: 16, width: 16 };
        let (data, held_out) =
            (shapes(1600, shape, Split::Train, 0).unwrap(), shapes(200, shape, Split::HeldOut, 0).unwrap());
        let device = Device::flex();
        let training = Training { epochs: 4, batch: 64, ..Training::default() };
        let network =
            Classifier::train(&data, &held_out, "shapes", &training, &device, |_, _, _| {}).unwrap();
        assert!(network.card.accuracy > 0.5, "{} of 8 classes", network.card.accuracy);
        let read = Classifier::from_bytes(&network.to_bytes(), &device).unwrap();
        assert_eq!(read.card, network.card);
        let images = || images_tensor(held_out.batch(&[1, 2, 3], &[]), shape, &device);
        assert_eq!(read.extract(images()), network.extract(images()));
    }

    #[test]
    fn other_files_are_reported_as_not_a_classifier() {
        let error = |bytes: &[u8]| Classifier::from_bytes(bytes, &Device::flex()).unwrap_err().to_string();
        assert!(error(b"abc").contains("safetensors"));
        let file = TensorFile { description: "{}".into(), ..TensorFile::default() };
        assert!(error(&file.to_bytes()).contains("not a classifier"));
    }
}
