//! What the threads of a team share: buffers, of which each thread writes its own part, and the barrier between two
//! operations.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A buffer that several threads write at once, each its own values.
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

    /// The first `len` values, to be read.
    ///
    /// # Safety
    /// No thread writes any of them while the slice is in use.
    pub(super) unsafe fn read(self, len: usize) -> &'a [f32] {
        assert!(len <= self.len);
        // SAFETY: within the buffer; the caller promises that no thread writes it.
        unsafe { std::slice::from_raw_parts(self.start, len) }
    }

    /// The values `place..place + len`, to be written.
    ///
    /// # Safety
    /// No other thread, and no other slice of this one, has any of them in use.
    pub(super) unsafe fn write(self, place: usize, len: usize) -> &'a mut [f32] {
        assert!(place <= self.len && len <= self.len - place);
        // SAFETY: within the buffer; the caller promises that nothing else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(place), len) }
    }
}

/// One of the threads that compute a plan together.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    /// Its number.
    pub(super) index: usize,
    /// How many there are.
    pub(super) count: usize,
    /// The barrier of the team.
    pub(super) barrier: &'a Barrier,
}

impl Member<'_> {
    /// This member's share of `0..items`, in one piece.
    pub(super) fn share(&self, items: usize) -> std::ops::Range<usize> {
        items * self.index / self.count..items * (self.index + 1) / self.count
    }

    /// Waits until all members wait.
    pub(super) fn wait(&self) {
        if self.count > 1 {
            self.barrier.wait(self.count);
        }
    }
}

/// A barrier that spins: an operation takes microseconds, and a sleeping thread needs tens of them to wake.
#[derive(Default)]
pub(super) struct Barrier {
    arrived: AtomicUsize,
    round: AtomicUsize,
    broken: AtomicBool,
}

/// Held by a member while it works. If the member panics, the barrier breaks, and the others do not wait for ever.
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
        /// Spins before a thread yields, which it must where there are fewer cores than threads.
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
