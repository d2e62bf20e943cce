//! The time of the exchange of gradients between processes, for networks of several sizes:
//!
//! `mpirun -n 2 cargo bench --profile dev -p ccm --features mpi --bench exchange`
//!
//! Without a launcher or the feature `mpi`, it measures two threads.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot start has failed")]

use std::time::Instant;

use ccm::train::group::{Group, Threads};

/// Names and parameters of networks.
const NETWORKS: [(&str, usize); 3] =
    [("avatars", 3_160_000), ("cifar10", 35_700_000), ("imagenet64", 296_000_000)];

fn measure(group: &dyn Group) {
    for (network, parameters) in NETWORKS {
        let mut gradient = vec![1.0_f32; parameters];
        group.all_reduce(&mut gradient);
        let rounds = (100_000_000 / parameters).clamp(1, 20);
        group.barrier();
        let begin = Instant::now();
        for _ in 0..rounds {
            gradient.fill(1.0);
            group.all_reduce(&mut gradient);
        }
        group.barrier();
        let seconds = begin.elapsed().as_secs_f64() / rounds as f64;
        assert_eq!(gradient[parameters - 1], group.size() as f32);
        if group.is_first() {
            println!(
                "{network:>10}: {:>7.1} MB in {:>8.1} ms, {} ranks",
                parameters as f64 * 4e-6,
                seconds * 1e3,
                group.size()
            );
        }
    }
}

fn main() {
    #[cfg(feature = "mpi")]
    if let Some(processes) = ccm::train::mpi::Mpi::start() {
        measure(&processes);
        return;
    }
    std::thread::scope(|scope| {
        for rank in Threads::new(2) {
            scope.spawn(move || measure(&rank));
        }
    });
}
