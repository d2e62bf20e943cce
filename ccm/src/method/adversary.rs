//! The adversarial loss of PAPER.md §6 and §10: a discriminator on the teacher's features.
//!
//! The published discriminator uses features of networks trained on ImageNet. This one uses the teacher's encoder, which every
//! run has. The features of a diffusion model separate real from generated images (Sauer et al., arXiv 2403.12015; Yin et al.,
//! arXiv 2405.14867). The encoder's input is a noised image `x_t` at a random time `t` in [0.5, 1), or more often near the
//! image, where grain shows ([`super::views`]).
//!
//! Other deviations from the published training (PAPER.md §6): Adam instead of RAdam; student and discriminator both learn in every
//! step; and instead of differentiable augmentation, images are noised, and may be moved by a few pixels.
//!
//! The encoder is frozen, or a copy that learns with the heads (Lin et al., arXiv 2402.13929). With a teacher that predicts data,
//! a frozen encoder's discriminator can stay at chance (docs/experiments.md), and its gradient then has no meaning.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

use super::batch::Batch;
use super::discriminator::{AdversarialLoss, Discriminator, DiscriminatorGradients, SHIFT};
use super::views::{Augmentation, View, Views};
use crate::nn::denoiser::Denoiser;
use crate::nn::optimizer::Schedule;

/// The adversarial loss and its settings.
pub struct Adversary {
    /// The feature extractor: the teacher, [`Denoiser::frozen`]. A discriminator whose encoder learns has its own.
    pub encoder: Arc<Denoiser>,
    /// The losses of student and discriminator.
    pub loss: AdversarialLoss,
    /// Weight of the student's loss. Beside a distance, it is the norm of its gradient with respect to the student's
    /// images, relative to the distance's gradient.
    pub weight: f64,
    /// The student's step at which the adversarial loss starts.
    pub from: u64,
    /// Discriminator steps over which the weight grows linearly from zero.
    pub warmup_steps: u64,
    /// Learning rate of the discriminator.
    pub learning_rate: f64,
    /// What the encoder sees of images.
    pub augmentation: Augmentation,
}

impl Adversary {
    /// The discriminator's schedule: the student's, with its own learning rate and without a warm-up.
    pub fn schedule(&self, student: &Schedule) -> Schedule {
        Schedule { learning_rate: self.learning_rate, warmup_steps: 0, ..*student }
    }

    /// The weight after `steps` discriminator steps.
    fn weight_after(&self, steps: u64) -> f64 {
        self.weight * ((steps + 1) as f64 / self.warmup_steps.max(1) as f64).min(1.0)
    }

    /// Adds the adversarial loss to the distance, for one micro-batch. Returns the student's loss, `[1]`, and the
    /// discriminator's loss and gradients.
    ///
    /// `estimate` is the student's images, `[B, C, H, W]`, `part` the micro-batch, `rows` its rows in the whole batch, and
    /// `distance` the distance of images from their targets.
    ///
    /// The value of the student's loss is the distance. Its gradient with respect to `estimate` is
    /// `g_distance + weight * balance * g_adversarial`. [`Discriminator::balance`] is the ratio of the norms of the two
    /// gradients, over the whole batch of the last step. The published code takes this ratio with respect to the weights
    /// of the last layer; with respect to the images it needs no second backward pass through the student.
    pub fn join(
        &self,
        discriminator: &Discriminator,
        estimate: Tensor<4>,
        part: &Batch,
        rows: Range<usize>,
        distance: impl FnOnce(Tensor<4>) -> Tensor<1>,
    ) -> (Tensor<1>, DiscriminatorGradients) {
        let images = estimate.clone().inner().autodiff().require_grad();
        let value = distance(images.clone());
        let of_distance = gradient(&images, &value);
        let AdversarialTerms { gradient: of_adversary, of_discriminator, .. } =
            self.terms(discriminator, &images, part, rows);

        let square = |gradient: &Tensor<4>| (gradient.clone() * gradient.clone()).sum();
        let squared_norms = Tensor::cat(vec![square(&of_distance), square(&of_adversary)], 0);
        let weight = self.weight_after(discriminator.step) as f32 * discriminator.balance;
        let loss = with_gradient(value.inner(), estimate, of_distance + of_adversary * weight);
        (loss, DiscriminatorGradients { squared_norms: Some(squared_norms), ..of_discriminator })
    }

    /// The adversarial loss alone, for one micro-batch (PAPER.md §10). Arguments and results are those of
    /// [`Adversary::join`], without a distance: the value of the student's loss is the adversarial loss.
    pub fn alone(
        &self,
        discriminator: &Discriminator,
        estimate: Tensor<4>,
        part: &Batch,
        rows: Range<usize>,
    ) -> (Tensor<1>, DiscriminatorGradients) {
        let images = estimate.clone().inner().autodiff().require_grad();
        let AdversarialTerms { value, gradient, of_discriminator } =
            self.terms(discriminator, &images, part, rows);
        let weight = self.weight_after(discriminator.step) as f32;
        (with_gradient(value, estimate, gradient * weight), of_discriminator)
    }

    fn terms(
        &self,
        discriminator: &Discriminator,
        images: &Tensor<4>,
        part: &Batch,
        rows: Range<usize>,
    ) -> AdversarialTerms {
        let Views { of_real, of_fake, shift } =
            Views::draw(part, rows, self.augmentation, self.loss.r1() > 0.0);
        let see =
            |encoder: &Denoiser, view: &View, images| view.features(encoder, images, part.condition.clone());
        let fixed = discriminator.fixed_encoder(&self.encoder);
        let fake = see(&fixed, &of_fake, images.clone());
        let value = discriminator.student_loss(self.loss, &fake);
        let gradient = gradient(images, &value);

        let discriminator = discriminator.fresh();
        let encoder = discriminator.encoder.as_ref().unwrap_or(&fixed);
        let fake = match discriminator.encoder {
            Some(_) => see(encoder, &of_fake, images.clone().inner().autodiff()),
            None => fake.into_iter().map(|map| map.inner().autodiff()).collect(),
        };
        let real_images = part.x1.clone().autodiff();
        let real = see(encoder, &of_real, real_images.clone());
        let shifted = shift.map(|shift| see(encoder, &of_real, real_images + shift * SHIFT));
        let (loss, gradients) = discriminator.loss(self.loss, &real, shifted.as_deref(), &fake);
        let of_discriminator = DiscriminatorGradients { loss, gradients, squared_norms: None };
        AdversarialTerms { value: value.inner(), gradient, of_discriminator }
    }
}

/// The adversarial loss of one micro-batch.
struct AdversarialTerms {
    /// The student's loss, `[1]`.
    value: Tensor<1>,
    /// Its gradient with respect to the student's images.
    gradient: Tensor<4>,
    /// The discriminator's loss and gradients.
    of_discriminator: DiscriminatorGradients,
}

/// Gradient of a loss with respect to the images.
fn gradient(images: &Tensor<4>, loss: &Tensor<1>) -> Tensor<4> {
    images.grad(&loss.backward()).unwrap_or_else(|| images.clone().inner().zeros_like())
}

/// A loss, `[1]`, with this value and this gradient with respect to `estimate`.
fn with_gradient(value: Tensor<1>, estimate: Tensor<4>, gradient: Tensor<4>) -> Tensor<1> {
    let along = (estimate * gradient.autodiff()).sum();
    let rest = value - along.clone().inner();
    along + rest.autodiff()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::config::Config;
    use crate::model::{NetworkSpec, Prediction};
    use crate::nn::conditions::Conditions;
    use crate::nn::denoiser::random_model;
    use crate::nn::host::to_host;
    use crate::noise::Noise;

    const PLAIN: Augmentation = Augmentation { noise_power: 1.0, translation: 0 };

    const IMAGES: usize = 4;

    fn spec() -> NetworkSpec {
        let mut spec = Config::preset("shapes").unwrap().network;
        (spec.height, spec.width, spec.num_classes) = (8, 8, Some(3));
        (spec.channel_mult, spec.attention_resolutions) = (vec![1.0, 2.0], vec![4]);
        spec.into()
    }

    /// Images `[IMAGES, 3, 8, 8]`.
    fn images(stream: u64) -> Tensor<4> {
        let values = Noise::new(1, stream).normals(IMAGES * spec().image_len());
        Tensor::from_data(TensorData::new(values, [IMAGES, 3, 8, 8]), &Device::flex())
    }

    fn batch() -> Batch {
        let condition = Conditions::of_labels(&[0, 1, 2, 0], &Device::flex());
        Batch {
            x0: images(0),
            x1: images(1),
            uniform: vec![0.5; IMAGES],
            condition,
            seed: 7,
            rows: (0..IMAGES).collect(),
            size: IMAGES,
        }
    }

    fn adversary(weight: f64) -> Adversary {
        let encoder =
            Arc::new(Denoiser::frozen(&random_model(spec(), &Prediction::Velocity, 3), &Device::flex()));
        Adversary {
            encoder,
            loss: AdversarialLoss::Hinge,
            weight,
            from: 0,
            warmup_steps: 0,
            learning_rate: 0.01,
            augmentation: PLAIN,
        }
    }

    fn schedule(learning_rate: f64) -> Schedule {
        Schedule { learning_rate, warmup_steps: 0, steps: 100, cooldown: 0.0, gradient_clip: 1e9 }
    }

    fn number(tensor: Tensor<1>) -> f64 {
        to_host(tensor).into_iter().map(f64::from).sum()
    }

    fn dot(a: &Tensor<4>, b: &Tensor<4>) -> f64 {
        number((a.clone() * b.clone()).sum())
    }

    #[test]
    fn the_gradient_in_the_images_is_that_of_the_logits() {
        let (adversary, batch, estimate) = (adversary(1.0), batch(), images(3));
        let discriminator = Discriminator::new(&spec(), 5, None, &Device::flex());
        let loss = |images: &Tensor<4>| {
            let views = Views::draw(&batch, 0..IMAGES, PLAIN, false);
            let features =
                views.of_fake.features(&adversary.encoder, images.clone(), batch.condition.clone());
            discriminator.student_loss(adversary.loss, &features)
        };
        let tracked = estimate.clone().autodiff().require_grad();
        let of_logits = gradient(&tracked, &loss(&tracked));
        for direction in [images(4), images(5)] {
            let step = 1e-2;
            let at =
                |step: f32| number(loss(&(estimate.clone() + direction.clone() * step).autodiff()).inner());
            let expected = (at(step) - at(-step)) / (2.0 * f64::from(step));
            let found = dot(&of_logits, &direction);
            assert!((found - expected).abs() < 0.01 * expected.abs(), "{found}, not {expected}");
        }
    }

    /// The gradient of the student's loss with respect to its images, the loss, and the discriminator's gradients.
    fn joined(weight: f64, discriminator: &Discriminator) -> (Tensor<4>, f64, DiscriminatorGradients) {
        let target = images(6).autodiff();
        let estimate = images(3).autodiff().require_grad();
        let distance = |images: Tensor<4>| ((images - target.clone()) * 0.01).abs().mean();
        let (loss, part) =
            adversary(weight).join(discriminator, estimate.clone(), &batch(), 0..IMAGES, distance);
        assert!((number(loss.clone().inner()) - number(distance(estimate.clone()).inner())).abs() < 1e-7);
        (gradient(&estimate, &loss), number(loss.inner()), part)
    }

    #[test]
    fn both_gradients_are_equally_long() {
        let mut discriminator = Discriminator::new(&spec(), 5, None, &Device::flex());
        let (distance, value, part) = joined(1.0, &discriminator);
        discriminator.learn(&schedule(0.0), part);
        let (both, same_value, _) = joined(0.5, &discriminator);
        assert_eq!(value, same_value);
        let length = |gradient: &Tensor<4>| dot(gradient, gradient).sqrt();
        let ratio = length(&(both - distance.clone())) / length(&distance);
        assert!((ratio - 0.5).abs() < 1e-3, "{ratio}");
    }

    #[test]
    fn the_penalty_is_the_squared_slope_of_the_logits() {
        let (adversary, batch) = (adversary(1.0), batch());
        let discriminator = Discriminator::new(&spec(), 5, None, &Device::flex());
        let Views { of_real, shift, .. } = Views::draw(&batch, 0..IMAGES, PLAIN, true);
        let shift = shift.unwrap();
        let features = |images: &Tensor<4>| {
            of_real.features(&adversary.encoder, images.clone(), batch.condition.clone())
        };
        let real = batch.x1.clone().autodiff().require_grad();
        // The negative mean logit of all images.
        let mean = discriminator.student_loss(AdversarialLoss::Hinge, &features(&real));
        let of_each = gradient(&real, &mean) * -(IMAGES as f32);
        let slope = (of_each * shift.clone().inner()).flatten::<2>(1, 3).sum_dim(1);
        let expected = number((slope.clone() * slope).mean());

        let real = batch.x1.clone().autodiff();
        let (maps, shifted) = (features(&real), features(&(real + shift * SHIFT)));
        let loss = |r1| {
            let loss = AdversarialLoss::NonSaturating { r1 };
            number(discriminator.loss(loss, &maps, Some(&shifted), &maps).0)
        };
        let found = loss(2e4) - loss(0.0);
        assert!((found / (1e4 * expected) - 1.0).abs() < 0.05, "{found}, not 1e4 {expected}");
    }

    #[test]
    fn an_encoder_that_learns_has_the_gradient_of_the_discriminator_loss() {
        let adversary = adversary(1.0);
        let encoder = Some(adversary.encoder.encoder());
        let mut discriminator = Discriminator::new(&spec(), 5, encoder, &Device::flex());
        // After a step, its weights are no longer the teacher's.
        discriminator.learn(&schedule(0.01), joined(1.0, &discriminator).2);
        let parameters = discriminator.parameters();
        let names = discriminator.tensors(&spec());
        assert_eq!(names.len(), parameters.len());
        assert!(names.iter().all(|tensor| !tensor.name.contains("output_blocks")));
        let loss = |parameters: Vec<Tensor<1>>| {
            let discriminator = discriminator.clone().with_parameters(parameters);
            let estimate = images(3).autodiff();
            let part = adversary.alone(&discriminator, estimate, &batch(), 0..IMAGES).1;
            (number(part.loss), part.gradients)
        };
        let (_, gradients) = loss(parameters.clone());
        for name in
            ["encoder.input_blocks.0.0.weight", "encoder.time_embed.0.weight", "heads.0.logits.weight"]
        {
            let place = names.iter().position(|tensor| tensor.name == name).unwrap();
            let norm = number((gradients[place].clone() * gradients[place].clone()).sum()).sqrt();
            assert!(norm > 0.0, "{name}");
            let at = |step: f64| {
                let mut moved = parameters.clone();
                let along = gradients[place].clone() * (step / norm) as f32;
                moved[place] = moved[place].clone() + along;
                loss(moved).0
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((slope / norm - 1.0).abs() < 0.02, "{name}: {slope}, not {norm}");
        }
    }

    #[test]
    fn a_student_faces_the_encoder_as_it_is_now() {
        let adversary = adversary(1.0);
        let gradient = |encoder| {
            let discriminator = Discriminator::new(&spec(), 5, encoder, &Device::flex());
            joined(1.0, &Discriminator { balance: 1.0, ..discriminator }).0
        };
        let (of_teacher, of_copy) = (gradient(None), gradient(Some(adversary.encoder.encoder())));
        assert_eq!(dot(&of_teacher, &of_copy), dot(&of_teacher, &of_teacher));
        let encoder = adversary.encoder.encoder();
        let doubled = encoder.parameters().into_iter().map(|values| values * 2.0).collect();
        let of_other = gradient(Some(encoder.with_parameters(doubled)));
        let difference = of_other - of_teacher.clone();
        assert!(dot(&difference, &difference) > 1e-4 * dot(&of_teacher, &of_teacher));
    }

    #[test]
    fn alone_it_has_the_gradient_of_the_student_loss() {
        let adversary = Adversary { loss: AdversarialLoss::NonSaturating { r1: 1.0 }, ..adversary(1.0) };
        let discriminator = Discriminator::new(&spec(), 5, None, &Device::flex());
        let estimate = images(3).autodiff().require_grad();
        let (loss, part) = adversary.alone(&discriminator, estimate.clone(), &batch(), 0..IMAGES);
        assert!(part.squared_norms.is_none());
        let found = gradient(&estimate, &loss);

        let views = Views::draw(&batch(), 0..IMAGES, PLAIN, true);
        let images = estimate.clone().inner().autodiff().require_grad();
        let maps = views.of_fake.features(&adversary.encoder, images.clone(), batch().condition);
        let direct = discriminator.student_loss(adversary.loss, &maps);
        assert!((number(loss.inner()) - number(direct.clone().inner())).abs() < 1e-6);
        let expected = gradient(&images, &direct);
        let difference = found - expected.clone();
        assert!(dot(&difference, &difference) < 1e-10 * dot(&expected, &expected));
    }

    #[test]
    fn the_weight_grows_to_what_is_asked_for() {
        let at_once = adversary(3.0);
        assert_eq!([0, 5].map(|steps| at_once.weight_after(steps)), [3.0, 3.0]);
        let slowly = Adversary { warmup_steps: 30, ..at_once };
        assert_eq!([0, 14, 29, 100].map(|steps| slowly.weight_after(steps)), [0.1, 1.5, 3.0, 3.0]);
    }

    #[test]
    fn it_learns_to_tell_real_from_generated() {
        let mut discriminator = Discriminator::new(&spec(), 5, None, &Device::flex());
        let losses: Vec<f64> = (0..60)
            .map(|_| {
                let part = joined(1.0, &discriminator).2;
                discriminator.learn(&schedule(0.01), part)
            })
            .collect();
        assert_eq!(discriminator.step, 60);
        assert!((losses[0] - 2.0).abs() < 0.5 && losses[59] < 0.5, "{losses:?}");
    }
}
