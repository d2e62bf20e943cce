//! Pairs images and noise by optimal transport: within a batch, or within the images of several batches.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Batches, Conditioning, Purpose, lock, normals};
use crate::data::{DataError, Read};
use crate::noise::Noise;

impl Batches<'_> {
    /// Noise and images of the prepared rows, by a plan of the whole batch.
    pub(super) fn pair_batch(
        &self,
        noise: &mut Noise,
        indices: &[usize],
        flips: &[bool],
    ) -> Result<(Vec<f32>, Read), DataError> {
        let every: Vec<usize> = (0..self.size).collect();
        let Read { values: x1, labels } = self.read(&every, indices, flips)?;
        let len = x1.len() / self.size;
        let x0 = normals(noise, &every, self.size, len);
        let of = |all: &[f32], rows: &[usize]| -> Vec<f32> {
            rows.iter().flat_map(|&row| &all[row * len..(row + 1) * len]).copied().collect()
        };
        let pairs = self
            .coupling
            .pair(self.size, &labels, |rows| Ok::<_, DataError>([of(&x0, rows), of(&x1, rows)]))?;
        let samples: Vec<usize> = self.rows.iter().map(|&row| pairs[row]).collect();
        let labels = self.rows.iter().filter_map(|&row| labels.get(row).copied()).collect();
        Ok((of(&x0, &samples), Read { values: of(&x1, &self.rows), labels }))
    }

    /// The noise of this rank's rows, if one plan pairs the images of several batches.
    pub(super) fn planned_noise(&self, step: u64) -> Result<Vec<f32>, DataError> {
        let per_plan = self.batches_per_plan as u64;
        let plan = self.plan(step / per_plan)?;
        let first = (step % per_plan) as usize * self.size;
        let samples: Vec<usize> = self.rows.iter().map(|&row| plan[first + row]).collect();
        Ok(self.noise_of_plan(step / per_plan, &samples))
    }

    /// Noise samples of a plan, each with a random stream of its own.
    fn noise_of_plan(&self, number: u64, samples: &[usize]) -> Vec<f32> {
        let len: usize = self.data.shape().iter().product();
        let first = number * (self.batches_per_plan * self.size) as u64;
        let values = samples.par_iter().flat_map_iter(|&sample| {
            let mut noise = Noise::new(self.seed, self.stream(Purpose::Sample, first + sample as u64));
            (0..len).map(move |_| noise.normal())
        });
        values.collect()
    }

    /// The noise sample of each image of a plan, which is computed when its first batch is prepared, or after a resume.
    fn plan(&self, number: u64) -> Result<Arc<[usize]>, DataError> {
        let mut kept = lock(&self.ahead.plan);
        if let Some((_, plan)) = kept.as_ref().filter(|(of_number, _)| *of_number == number) {
            return Ok(Arc::clone(plan));
        }
        let (mut indices, mut flips) = (Vec::new(), Vec::new());
        let per_plan = self.batches_per_plan as u64;
        for step in number * per_plan..(number + 1) * per_plan {
            indices.extend(self.indices(step));
            flips.extend(self.flips(&mut Noise::new(self.seed, self.stream(Purpose::Step, step))));
        }
        let labels: Vec<u32> = match self.conditioning {
            Conditioning::None => Vec::new(),
            _ => indices.iter().map(|&index| self.data.label(index)).collect(),
        };
        let read = |rows: &[usize]| {
            Ok([self.noise_of_plan(number, rows), self.read(rows, &indices, &flips)?.values])
        };
        let plan: Arc<[usize]> = self.coupling.pair(indices.len(), &labels, read)?.into();
        *kept = Some((number, Arc::clone(&plan)));
        Ok(plan)
    }
}
