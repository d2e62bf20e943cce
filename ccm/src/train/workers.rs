//! The threads and ranks that share a batch, and sums over its parts.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::tensor::Tensor;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::exchange;
use super::group::{Alone, Group, fold};

/// What a part of a batch contributes to a sum over the parts, the threads and the ranks.
pub trait Summand: Send {
    /// The sum of two contributions.
    fn join(self, other: Self) -> Self;

    /// Its numbers.
    fn figures(&self) -> Vec<f64>;

    /// Replaces the numbers of [`Summand::figures`].
    fn set_figures(&mut self, figures: &[f64]);

    /// Its tensors.
    fn tensors(&mut self) -> Vec<&mut Tensor<1>>;

    /// Replaces its numbers by their sums over the ranks of a group.
    fn all_reduce_figures(&mut self, group: &dyn Group) {
        let sums = group.all_reduce_figures(&self.figures());
        self.set_figures(&sums);
    }
}

impl Summand for () {
    fn join(self, (): Self) -> Self {}

    fn figures(&self) -> Vec<f64> {
        Vec::new()
    }

    fn set_figures(&mut self, _: &[f64]) {}

    fn tensors(&mut self) -> Vec<&mut Tensor<1>> {
        Vec::new()
    }
}

/// Images of a part of a batch of `batch` images for `threads` threads of all ranks, with at most `most` images in a part.
pub(super) fn part_of(threads: usize, batch: usize, most: usize) -> usize {
    most.min(batch.div_ceil(threads)).max(1)
}

/// Splits a batch over the threads of all ranks, with a limit on the images of one part.
///
/// On a CPU it is faster to run the whole network on separate images in each thread than to synchronise the threads
/// after every operation. A GPU needs one worker.
pub struct Workers {
    pools: Vec<ThreadPool>,
    part: usize,
    /// The ranks.
    pub(super) group: Arc<dyn Group>,
    /// Whether gradients are exchanged while others are being computed.
    overlapping: bool,
    /// Seconds of computation since [`Workers::take_busy`], without the exchange with other ranks.
    busy: Mutex<f64>,
}

impl Workers {
    /// Workers with `threads` threads for batches of `batch` images, with at most `most` images in a part.
    ///
    /// # Errors
    /// If the system cannot start threads.
    pub fn new(threads: usize, batch: usize, most: usize) -> Result<Self, ThreadPoolBuildError> {
        Self::of_ranks(Arc::new(Alone), threads, batch, most)
    }

    /// As [`Workers::new`], for every rank of a group. A rank must have a part of each batch ([`Workers::parts`]).
    ///
    /// # Errors
    /// If the system cannot start threads.
    pub fn of_ranks(
        group: Arc<dyn Group>,
        threads: usize,
        batch: usize,
        most: usize,
    ) -> Result<Self, ThreadPoolBuildError> {
        let part = part_of(threads * group.size(), batch, most);
        let pool = || ThreadPoolBuilder::new().num_threads(1).build();
        let pools =
            if threads > 1 { (0..threads).map(|_| pool()).collect::<Result<_, _>>()? } else { Vec::new() };
        Ok(Self { pools, part, group, overlapping: false, busy: Mutex::default() })
    }

    /// The same workers, which exchange gradients while others are being computed.
    ///
    /// # Panics
    /// If a rank has more than one thread.
    pub fn overlapping(self) -> Self {
        assert!(self.pools.is_empty(), "one thread in each rank");
        Self { overlapping: true, ..self }
    }

    /// Whether they exchange gradients while others are being computed.
    pub fn overlap(&self) -> bool {
        self.overlapping
    }

    /// The rows of the parts of each thread of this rank, in a batch of `batch` images. Thread `i` of all ranks has the parts
    /// `i`, `i + threads`, and so on.
    pub fn parts(&self, batch: usize) -> Vec<Vec<Range<usize>>> {
        let threads = self.pools.len().max(1);
        let first = self.group.rank() * threads;
        let rows = |start: usize| start..batch.min(start + self.part);
        let of_thread = |thread: usize| {
            let step = self.part * threads * self.group.size();
            (thread * self.part..batch).step_by(step).map(rows).collect()
        };
        (first..first + threads).map(of_thread).collect()
    }

    /// The rows of all parts of this rank, ascending.
    pub fn rows(&self, batch: usize) -> Vec<usize> {
        let mut rows: Vec<usize> = self.parts(batch).into_iter().flatten().flatten().collect();
        rows.sort_unstable();
        rows
    }

    /// The sum of `f` over the parts of a batch. Each thread adds up its own parts; then the sums of the threads and of the
    /// ranks are added in the order of [`fold`]. A sum therefore depends on the number of threads of all ranks, but not on
    /// their timing. A thread holds at most two results at a time.
    ///
    /// # Panics
    /// If the batch has no part for this rank.
    pub(super) fn sum<R: Summand>(&self, batch: usize, f: impl Fn(Range<usize>) -> R + Sync) -> R {
        let mut of_rank = self.busy(|| self.sum_of(self.parts(batch), f));
        if self.group.size() > 1 {
            of_rank.all_reduce_figures(&*self.group);
            exchange::all_reduce(&*self.group, of_rank.tensors());
        }
        of_rank
    }

    /// If gradients are exchanged while others are being computed: the sum of `f` over all parts of this rank but the last, if
    /// there are others, and the rows of the last part.
    ///
    /// # Panics
    /// As [`Workers::sum`].
    pub(super) fn before_last<R: Summand>(
        &self,
        batch: usize,
        f: impl Fn(Range<usize>) -> R + Sync,
    ) -> Option<(Option<R>, Range<usize>)> {
        if !self.overlapping {
            return None;
        }
        let mut parts = self.parts(batch);
        let last = parts.iter_mut().find_map(Vec::pop).unwrap_or_else(|| no_part());
        let others = parts.iter().any(|parts| !parts.is_empty());
        Some((others.then(|| self.busy(|| self.sum_of(parts, f))), last))
    }

    /// Runs `compute`, and adds its time to that of [`Workers::take_busy`].
    pub(super) fn busy<R>(&self, compute: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let result = compute();
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) += begin.elapsed().as_secs_f64();
        result
    }

    fn sum_of<R: Summand>(&self, parts: Vec<Vec<Range<usize>>>, f: impl Fn(Range<usize>) -> R + Sync) -> R {
        self.fold(parts, f, R::join).unwrap_or_else(|| no_part())
    }

    /// Seconds of computation since the last call, without the exchange with other ranks.
    pub fn take_busy(&self) -> f64 {
        std::mem::take(&mut self.busy.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fold<T: Send, R: Send>(
        &self,
        mut parts: Vec<Vec<T>>,
        f: impl Fn(T) -> R + Sync,
        join: impl Fn(R, R) -> R + Sync,
    ) -> Option<R> {
        if self.pools.is_empty() {
            return parts.pop()?.into_iter().map(f).reduce(join);
        }
        let (f, join) = (&f, &join);
        std::thread::scope(|scope| {
            let start = |(pool, share): (_, Vec<T>)| {
                let pool: &ThreadPool = pool;
                scope.spawn(move || pool.install(move || share.into_iter().map(f).reduce(join)))
            };
            let threads: Vec<_> = self.pools.iter().zip(parts).map(start).collect();
            let wait = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            fold(threads.into_iter().filter_map(wait).collect(), join)
        })
    }
}

/// A run checks its batches before it starts.
fn no_part() -> ! {
    panic!("expected a part of the batch for every rank")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_row_is_in_one_part_of_one_thread() {
        for (threads, batch, most) in [(1, 11, 3), (2, 64, 64), (3, 7, 2), (4, 4, 1)] {
            let one = Workers::new(threads, batch, most).unwrap().parts(batch);
            assert_eq!(one.len(), threads);
            let mut rows: Vec<usize> = one.iter().flatten().cloned().flatten().collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..batch).collect::<Vec<_>>());
            let ranks = crate::train::group::Threads::new(threads).into_iter();
            let of_rank = |rank| Workers::of_ranks(Arc::new(rank), 1, batch, most).unwrap().parts(batch);
            assert_eq!(ranks.flat_map(of_rank).collect::<Vec<_>>(), one);
        }
    }

    #[test]
    fn the_parts_are_joined_in_one_order_whatever_thread_is_faster() {
        for threads in 1..5 {
            let workers = Workers::new(threads, 11, 1).unwrap();
            let joined =
                workers.fold(workers.parts(11), |rows| vec![rows.start], |a, b| [a, b].concat()).unwrap();
            let expected: Vec<usize> =
                (0..threads).flat_map(|thread| (thread..11).step_by(threads)).collect();
            assert_eq!(joined, expected);
            assert!(workers.fold(Vec::<Vec<usize>>::new(), |i| i, |a, b| a + b).is_none());
        }
    }

    #[test]
    fn no_more_results_are_held_than_two_a_thread() {
        /// Counts its live instances.
        struct Held(Arc<AtomicUsize>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        for threads in 1..4 {
            let (now, most) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
            let result = |_: usize| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                Held(Arc::clone(&now))
            };
            let workers = Workers::new(threads, 64, 1).unwrap();
            workers.fold(workers.parts(64), |rows| result(rows.start), |sum, _| sum);
            assert!(most.into_inner() <= 2 * threads, "{threads} threads");
        }
    }
}
