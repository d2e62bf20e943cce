//! Ranks that are processes, started by `mpirun` or `srun`, on one or more machines.

use mpi::Threading;
use mpi::collective::CommunicatorCollectives as _;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::{Communicator as _, SimpleCommunicator};

use super::group::{Group, sum_lists};

/// The variables that Open MPI, MPICH, Intel MPI and Slurm set for the processes that they start.
const STARTED: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MPI_LOCALRANKID"];

/// The processes of MPI's world. MPI ends when this is dropped.
pub struct Mpi {
    rank: usize,
    size: usize,
    /// The number of this rank among those of its machine.
    local_rank: usize,
    /// What MPI grants to threads.
    threading: Threading,
    _universe: Universe,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.size)
    }
}

impl Mpi {
    /// Starts MPI, if a launcher has started this process. To be called once, in the thread that trains. Only one thread at a
    /// time may use MPI.
    pub fn start() -> Option<Self> {
        if STARTED.iter().all(|name| std::env::var_os(name).is_none()) {
            return None;
        }
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)?;
        let world = universe.world();
        let local_rank = world.split_shared(world.rank()).rank() as usize;
        Some(Self {
            rank: world.rank() as usize,
            size: world.size() as usize,
            local_rank,
            threading,
            _universe: universe,
        })
    }
}

impl Group for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn all_gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let world = SimpleCommunicator::world();
        let mut counts = vec![0; self.size];
        world.all_gather_into(&(bytes.len() as i32), &mut counts[..]);
        let ends: Vec<i32> = counts
            .iter()
            .scan(0, |end, count| {
                *end += count;
                Some(*end)
            })
            .collect();
        if ends[self.size - 1] == 0 {
            // MPI refuses a buffer that is empty on both sides.
            return vec![Vec::new(); self.size];
        }
        let starts: Vec<i32> = ends.iter().zip(&counts).map(|(end, count)| end - count).collect();
        let mut all = vec![0; ends[self.size - 1] as usize];
        world.all_gather_varcount_into(bytes, &mut PartitionMut::new(&mut all[..], &counts[..], &starts[..]));
        let of_rank = |(start, end): (&i32, &i32)| all[*start as usize..*end as usize].to_vec();
        starts.iter().zip(&ends).map(of_rank).collect()
    }

    /// Each rank adds up one slice of the values, which it gets from all others, and sends them the sums. MPI's own reductions may
    /// add in any order.
    fn all_reduce(&self, values: &mut [f32]) {
        let world = SimpleCommunicator::world();
        if values.is_empty() {
            return;
        }
        let slice = values.len().div_ceil(self.size);
        let mut padded = values.to_vec();
        padded.resize(slice * self.size, 0.0);
        let mut of_ranks = vec![0.0_f32; slice * self.size];
        world.all_to_all_into(&padded[..], &mut of_ranks[..]);
        let sums = sum_lists(of_ranks.chunks_exact(slice).map(<[f32]>::to_vec).collect());
        world.all_gather_into(&sums[..], &mut padded[..]);
        values.copy_from_slice(&padded[..values.len()]);
    }

    fn is_for_any_thread(&self) -> bool {
        matches!(self.threading, Threading::Serialized | Threading::Multiple)
    }

    fn abort(&self) {
        SimpleCommunicator::world().abort(1)
    }
}
