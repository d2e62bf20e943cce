//! The ranks of a run: processes or threads that train one network together, each on its own device.
//!
//! Every rank holds the whole state of training and takes the same steps. The ranks share the parts of each batch, and add up
//! gradients and counts ([`Group::all_reduce`]), so that their states stay equal. The first rank writes the files.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// The ranks of a run, as one of them sees them. Every rank must call the same methods in the same order.
pub trait Group: fmt::Debug + Send + Sync {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// The number of this rank among those of its machine, from 0: it selects the rank's device.
    fn local_rank(&self) -> usize {
        self.rank()
    }

    /// The bytes of every rank, in the order of the ranks. Their lengths may differ.
    fn all_gather(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// Replaces values by their sums over the ranks. They are added in the order of [`fold`], so that every rank gets the same
    /// bits, whatever rank is faster.
    fn all_reduce(&self, values: &mut [f32]);

    /// Whether also a thread other than the one that trains may call these methods, if never two at a time.
    fn is_for_any_thread(&self) -> bool {
        true
    }

    /// Ends all ranks after an error of this one.
    fn abort(&self) {}
}

impl dyn Group + '_ {
    /// Whether this rank writes files and messages.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Waits for every rank.
    pub fn barrier(&self) {
        self.all_gather(&[]);
    }

    /// Whether a rank says so.
    pub fn any(&self, here: bool) -> bool {
        self.size() > 1 && self.all_gather(&[u8::from(here)]).contains(&vec![1]) || here
    }

    /// The first rank's text.
    pub fn first(&self, text: &str) -> String {
        let text = if self.is_first() { text.as_bytes() } else { &[] };
        String::from_utf8_lossy(&self.all_gather(text)[0]).into_owned()
    }

    /// The sums of these numbers over the ranks, added in the order of [`fold`].
    pub fn all_reduce_figures(&self, numbers: &[f64]) -> Vec<f64> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let of_rank = |bytes: Vec<u8>| -> Vec<f64> {
            bytes.as_chunks().0.iter().map(|number| f64::from_le_bytes(*number)).collect()
        };
        let add = |a: Vec<f64>, b: Vec<f64>| a.into_iter().zip(b).map(|(a, b)| a + b).collect();
        fold(self.all_gather(&bytes).into_iter().map(of_rank).collect(), &add).unwrap_or_default()
    }
}

/// Joins the halves of a list, each of them joined in the same way. A list that is divided among a power of two of ranks is thus
/// joined in one order, whether one rank joins it or each rank joins its share first.
pub(super) fn fold<T>(mut list: Vec<T>, join: &impl Fn(T, T) -> T) -> Option<T> {
    if list.len() <= 1 {
        return list.pop();
    }
    let second = list.split_off(list.len() / 2);
    match (fold(list, join), fold(second, join)) {
        (Some(first), Some(second)) => Some(join(first, second)),
        (first, second) => first.or(second),
    }
}

/// The sums of lists of equal length, added in the order of [`fold`].
pub(super) fn sum_lists(lists: Vec<Vec<f32>>) -> Vec<f32> {
    let add = |mut a: Vec<f32>, b: Vec<f32>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    fold(lists, &add).unwrap_or_default()
}

/// A run of one rank.
#[derive(Debug)]
pub struct Alone;

impl Group for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        vec![bytes.to_vec()]
    }

    fn all_reduce(&self, _: &mut [f32]) {}
}

/// Ranks that are threads of this process. If one ends early, the others end at their next exchange by unwinding with [`Ended`].
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    to: Vec<Sender<Arc<[u8]>>>,
    from: Vec<std::sync::Mutex<Receiver<Arc<[u8]>>>>,
}

/// What a thread unwinds with if another rank has ended.
#[derive(Debug)]
pub struct Ended;

impl Threads {
    /// The ranks of a group.
    pub fn new(size: usize) -> Vec<Self> {
        let mut ranks: Vec<Self> =
            (0..size).map(|rank| Self { rank, to: Vec::new(), from: Vec::new() }).collect();
        for from in 0..size {
            for to in 0..size {
                let (sender, receiver) = channel();
                ranks[from].to.push(sender);
                ranks[to].from.push(receiver.into());
            }
        }
        ranks
    }

    fn exchange(&self, bytes: Arc<[u8]>) -> Vec<Arc<[u8]>> {
        let ended = || -> ! { std::panic::resume_unwind(Box::new(Ended) as Box<dyn Any + Send>) };
        for to in &self.to {
            if to.send(Arc::clone(&bytes)).is_err() {
                ended();
            }
        }
        let receive = |from: &std::sync::Mutex<Receiver<_>>| {
            let from = from.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            from.recv().unwrap_or_else(|_| ended())
        };
        self.from.iter().map(receive).collect()
    }
}

impl Group for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn all_gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.exchange(bytes.into()).iter().map(|bytes| bytes.to_vec()).collect()
    }

    fn all_reduce(&self, values: &mut [f32]) {
        let of_ranks = self.exchange(bytemuck::cast_slice(values).into());
        let numbers = |bytes: &Arc<[u8]>| {
            bytes.as_chunks().0.iter().map(|number| f32::from_ne_bytes(*number)).collect()
        };
        values.copy_from_slice(&sum_lists(of_ranks.iter().map(numbers).collect()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Applies `f` in every rank of a group of threads.
    fn in_ranks<R: Send>(size: usize, f: impl Fn(&dyn Group) -> R + Sync) -> Vec<std::thread::Result<R>> {
        std::thread::scope(|scope| {
            let f = &f;
            let start = |rank: Threads| scope.spawn(move || f(&rank));
            let threads: Vec<_> = Threads::new(size).into_iter().map(start).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        })
    }

    #[test]
    fn every_rank_gets_the_same_sums() {
        let values = |rank: usize| [1.0, 0.1 * (rank as f32 + 1.0), (rank as f32).exp()];
        for size in 1..6 {
            let sums = in_ranks(size, |group| {
                let mut sums = values(group.rank());
                group.all_reduce(&mut sums);
                (sums, group.all_reduce_figures(&[group.rank() as f64, 1.0]))
            });
            let expected = |i: usize| fold((0..size).map(|rank| values(rank)[i]).collect(), &|a, b| a + b);
            let expected = [0, 1, 2].map(|i| expected(i).unwrap());
            for sum in sums {
                let (sums, figures) = sum.unwrap();
                assert_eq!((sums, figures[1]), (expected, size as f64));
                assert_eq!(figures[0], (size * (size - 1) / 2) as f64);
            }
        }
    }

    #[test]
    fn ranks_agree_and_hear_the_first() {
        for said in in_ranks(3, |group| (group.any(group.rank() == 2), group.any(false), group.first("abc")))
        {
            assert_eq!(said.unwrap(), (true, false, "abc".to_owned()));
        }
        let alone: &dyn Group = &Alone;
        assert_eq!((alone.any(true), alone.any(false), alone.first("x")), (true, false, "x".to_owned()));
    }

    #[test]
    fn if_one_rank_ends_the_others_do() {
        let ends = in_ranks(3, |group| {
            if group.rank() == 1 {
                return;
            }
            group.barrier();
            group.barrier();
        });
        assert!(ends[1].is_ok());
        for rank in [0, 2] {
            assert!(ends[rank].as_ref().unwrap_err().is::<Ended>());
        }
    }

    #[test]
    fn shares_of_a_power_of_two_are_joined_as_the_whole() {
        let join = |a: String, b: String| format!("({a}{b})");
        let letters = |range: std::ops::Range<usize>| range.map(|i| i.to_string()).collect::<Vec<_>>();
        assert_eq!(fold(letters(0..3), &join).unwrap(), "(0(12))");
        for (workers, ranks) in [(2, 2), (6, 2), (12, 4), (8, 8)] {
            let share = workers / ranks;
            let shares =
                (0..ranks).map(|rank| fold(letters(rank * share..(rank + 1) * share), &join).unwrap());
            assert_eq!(fold(shares.collect(), &join), fold(letters(0..workers), &join));
        }
    }
}
