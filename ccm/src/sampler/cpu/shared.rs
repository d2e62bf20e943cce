//! State that the threads of a team share: buffers, of which each thread writes its own part, and the barrier between
//! two operations.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A buffer that several threads write at the same time, each at its own positions.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: all access is through `read` and `write`, whose callers promise that no thread writes a value while another
// thread uses it.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(values: &'a mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), of: PhantomData }
    }

    /// The first `len` values, for reading.
    ///
    /// # Safety
    /// No thread writes any of these values while the slice is in use.
    pub(super) unsafe fn read(self, len: usize) -> &'a [f32] {
        assert!(len <= self.len);
        // SAFETY: within the buffer; the caller guarantees that no thread writes it.
        unsafe { std::slice::from_raw_parts(self.start, len) }
    }

    /// The values `place..place + len`, for writing.
    ///
    /// # Safety
    /// No other thread or slice uses any of these values while the slice is in use.
    pub(super) unsafe fn write(self, place: usize, len: usize) -> &'a mut [f32] {
        assert!(place <= self.len && len <= self.len - place);
        // SAFETY: within the buffer; the caller guarantees that nothing else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(place), len) }
    }
}

/// One thread of a team.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    /// Index in the team, from 0.
    pub(super) index: usize,
    /// Number of members of the team.
    pub(super) count: usize,
    /// The barrier of the team.
    pub(super) barrier: &'a Barrier,
}

impl Member<'_> {
    /// This member's contiguous share of `0..items`.
    pub(super) fn share(&self, items: usize) -> std::ops::Range<usize> {
        items * self.index / self.count..items * (self.index + 1) / self.count
    }

    /// Waits until all members of the team wait.
    pub(super) fn wait(&self) {
        if self.count > 1 {
            self.barrier.wait(self.count);
        }
    }
}

/// A spinning barrier: an operation takes microseconds, and waking a sleeping thread takes tens of them.
#[derive(Default)]
pub(super) struct Barrier {
    arrived: AtomicUsize,
    round: AtomicUsize,
    broken: AtomicBool,
}

/// Held by a member while it works. If the member panics, the barrier breaks, so that the others do not wait forever.
pub(super) struct Presence<'a>(pub(super) &'a Barrier);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}

impl Barrier {
    fn wait(&self, count: usize) {
        /// Spins before a thread yields. It must yield if there are fewer cores than threads.
        const SPINS: usize = 2_000;
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == count {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.fetch_add(1, Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.round.load(Ordering::Acquire) == round {
            spins += 1;
            assert!(!self.broken.load(Ordering::Relaxed), "another thread of the team has panicked");
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}
