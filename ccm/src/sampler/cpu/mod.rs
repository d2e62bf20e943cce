//! Runs a [`Plan`] on the CPU. Each kernel is one file with the name of its shader.
//!
//! The threads of a team compute a plan together: each computes its share of every operation, and all wait at a
//! barrier between two operations. With enough images, each thread is a team of its own and computes whole images.

mod advance;
mod arch;
mod attention;
mod conv;
#[cfg(feature = "text")]
mod copy;
mod group_norm;
#[cfg(feature = "text")]
mod layer_norm;
mod multiply;
#[cfg(feature = "text")]
mod pointwise;
mod pool;
mod shared;

use conv::{Operands, PackedWeight};
use shared::{Barrier, Member, Presence, Shared};

#[cfg(feature = "text")]
use super::plan::{Factor, Term};
use super::plan::{Map, Op, Plan, Vector};
use super::schedule::Work;

/// The packed weights of a network, threads and buffers.
pub(super) struct Executor {
    weights: Vec<PackedWeight>,
    zeros: Vec<f32>,
    threads: usize,
    #[cfg(not(target_arch = "wasm32"))]
    pool: rayon::ThreadPool,
    /// The buffers of the plan, one set for each team of threads.
    buffers: Vec<Vec<Vec<f32>>>,
}

/// State that the threads of a team share.
struct Arena<'a> {
    buffers: Vec<Shared<'a>>,
    vectors: &'a [f32],
    zeros: &'a [f32],
}

impl Arena<'_> {
    /// # Safety
    /// No thread writes the map's buffer while the slice is in use.
    unsafe fn read(&self, map: Map) -> &[f32] {
        // SAFETY: guaranteed by the caller.
        unsafe { self.buffers[map.buffer].read(map.len()) }
    }

    /// Copies this member's share of values to a map.
    #[cfg(feature = "text")]
    fn load(&self, map: Map, values: &[f32], member: &Member) {
        assert!(values.len() == map.len(), "values of an input");
        let own = member.share(map.len());
        // SAFETY: each member writes its own share. The caller waits before any thread reads the map.
        let input = unsafe { self.buffers[map.buffer].write(own.start, own.len()) };
        input.copy_from_slice(&values[own]);
    }

    fn vector<'a>(&'a self, vector: Vector, row: &'a [f32], len: usize) -> &'a [f32] {
        match vector {
            Vector::Fixed(place) => &self.vectors[place..place + len],
            Vector::Conditioned(place) => &row[place..place + len],
        }
    }
}

impl Executor {
    /// Takes the weights out of the plan, packs them for this machine and starts `threads` threads, at least 1.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn new(plan: &mut Plan, threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        Ok(Self {
            weights: plan.weights.drain(..).map(PackedWeight::new).collect(),
            zeros: zeros(plan),
            threads,
            pool,
            buffers: Vec::new(),
        })
    }

    /// Takes the weights out of the plan and packs them.
    #[cfg(target_arch = "wasm32")]
    pub(super) fn new(plan: &mut Plan) -> Self {
        Self {
            weights: plan.weights.drain(..).map(PackedWeight::new).collect(),
            zeros: zeros(plan),
            threads: 1,
            buffers: Vec::new(),
        }
    }

    /// Number of threads that share the work.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Bytes of weights and buffers.
    pub(super) fn memory(&self) -> usize {
        let weights: usize = self.weights.iter().map(PackedWeight::bytes).sum();
        weights + 4 * (self.buffers.iter().flatten().map(Vec::len).sum::<usize>())
    }

    /// Samples the images of `work`, in the layout of [`Plan::x`].
    ///
    /// # Panics
    /// If an operation of the plan writes a buffer that it reads.
    pub(super) fn sample(&mut self, plan: &Plan, work: &Work) -> Vec<f32> {
        let image = plan.x.len();
        let members = if work.images() < self.threads { self.threads } else { 1 };
        let teams = self.threads / members;
        let mut images = vec![0.0; work.images() * image];
        // A team finishes an image before it begins the next one.
        let mut memory = vec![0.0; teams * image];
        let [output, memory] = [&mut images, &mut memory].map(|values| Shared::new(values));
        self.run(plan, teams, |team, member, weights, arena| {
            for i in (team..work.images()).step_by(teams) {
                for (number, update) in work.updates.iter().enumerate() {
                    let own = member.share(image);
                    if number > 0 {
                        let inputs = &work.inputs[number - 1][i];
                        #[cfg(feature = "text")]
                        if let (Some(text), Some(map)) = (&inputs.text, plan.text) {
                            arena.load(map, &text.tokens, member);
                            member.wait();
                        }
                        evaluate(plan, weights, arena, &inputs.row, member);
                    }
                    // SAFETY: each member updates its own share. There are barriers before and after the evaluation,
                    // which reads only the arena.
                    let x = unsafe { output.write(i * image + own.start, own.len()) };
                    // SAFETY: as above.
                    let kept = unsafe { memory.write(team * image + own.start, own.len()) };
                    // SAFETY: as above. Before the first evaluation the update ignores these values.
                    let of_network = &unsafe { arena.read(plan.output) }[own.clone()];
                    let noise = work.noise.get(number).filter(|noise| !noise.is_empty());
                    let fresh = noise.map(|noise| &noise[i * image..][own.clone()]);
                    advance::advance(update, x, kept, of_network, fresh);
                    // SAFETY: as above.
                    let input = unsafe { arena.buffers[plan.x.buffer].write(own.start, own.len()) };
                    input.iter_mut().zip(&*x).for_each(|(input, x)| *input = update.c_in * x);
                    member.wait();
                }
            }
        });
        images
    }

    /// Evaluates a network without conditions for one input, in the layout of [`Plan::x`]. Returns its output and its
    /// second output, which is empty if there is none.
    ///
    /// # Panics
    /// If an operation of the plan writes a buffer that it reads.
    #[cfg(feature = "text")]
    pub(super) fn evaluate(&mut self, plan: &Plan, x: &[f32]) -> [Vec<f32>; 2] {
        let mut outputs =
            [Some(plan.output), plan.pooled].map(|map| vec![0.0; map.map_or(0, |map| map.len())]);
        let [output, pooled] = outputs.each_mut().map(|values| Shared::new(values));
        self.run(plan, 1, |_, member, weights, arena| {
            arena.load(plan.x, x, member);
            member.wait();
            evaluate(plan, weights, arena, &[], member);
            for (map, output) in [(Some(plan.output), output), (plan.pooled, pooled)] {
                let Some(map) = map else { continue };
                let own = member.share(map.len());
                // SAFETY: each member copies its own share, and all have waited after the last operation.
                let values = unsafe { output.write(own.start, own.len()) };
                // SAFETY: as above.
                values.copy_from_slice(&unsafe { arena.read(map) }[own]);
            }
        });
        outputs
    }

    /// Runs `work` on every thread, with the number of its team, of `teams` teams.
    fn run(
        &mut self,
        plan: &Plan,
        teams: usize,
        work: impl Fn(usize, &Member, &[PackedWeight], &Arena) + Sync,
    ) {
        plan.ops.iter().for_each(Op::assert_writes_no_input);
        let members = self.threads / teams;
        self.buffers.resize(teams, Vec::new());
        let barriers: Vec<Barrier> = (0..teams).map(|_| Barrier::default()).collect();
        let arenas = self.buffers.iter_mut().map(|buffers| Arena {
            buffers: fitted(buffers, plan).iter_mut().map(|buffer| Shared::new(buffer)).collect(),
            vectors: &plan.vectors,
            zeros: &self.zeros,
        });
        let arenas: Vec<Arena> = arenas.collect();
        let weights = &self.weights;
        let run = |thread: usize| {
            let team = thread / members;
            let member = Member { index: thread % members, count: members, barrier: &barriers[team] };
            let _presence = Presence(&barriers[team]);
            work(team, &member, weights, &arenas[team]);
        };
        #[cfg(not(target_arch = "wasm32"))]
        if self.threads > 1 {
            self.pool.broadcast(|context| run(context.index()));
            return;
        }
        run(0);
    }
}

/// Zeros, as many as the widest input of the plan has channels.
fn zeros(plan: &Plan) -> Vec<f32> {
    let inputs = plan.ops.iter().flat_map(Op::inputs);
    vec![0.0; inputs.map(|map| map.channels).fold(0, usize::max)]
}

/// The buffers, resized to the plan.
fn fitted<'a>(buffers: &'a mut Vec<Vec<f32>>, plan: &Plan) -> &'a mut [Vec<f32>] {
    buffers.resize(plan.buffers.len(), Vec::new());
    for (buffer, len) in buffers.iter_mut().zip(&plan.buffers) {
        buffer.resize(*len, 0.0);
    }
    buffers
}

/// Computes this member's share of every operation of the plan, for one image.
fn evaluate(plan: &Plan, weights: &[PackedWeight], arena: &Arena, row: &[f32], member: &Member) {
    for op in &plan.ops {
        // SAFETY: `sample` checks that no operation reads a buffer that it writes, and all members wait between
        // operations.
        let read = |map: Map| unsafe { arena.read(map) };
        let y = arena.buffers[op.y().buffer];
        match op {
            Op::Conv(op) => {
                let operands = Operands {
                    x: [read(op.x.first), op.x.second.map_or(&[], read)],
                    weight: &weights[op.weight],
                    bias: arena.vector(op.bias, row, op.y.channels),
                    residual: op.residual.map(|residual| read(residual.map)),
                    y,
                    zeros: arena.zeros,
                };
                conv::conv(op, &operands, member);
            }
            Op::GroupNorm(op) => {
                let x = [read(op.x.first), op.x.second.map_or(&[], read)];
                let gain = arena.vector(op.gain, row, op.y.channels);
                let offset = arena.vector(op.offset, row, op.y.channels);
                group_norm::group_norm(op, x, gain, offset, y, member);
            }
            Op::Attention(op) => {
                let operands = attention::Operands {
                    q: read(op.q.map),
                    k: read(op.k.map),
                    v: read(op.v.map),
                    #[cfg(feature = "text")]
                    bias: op.bias.map_or(&[], |bias| &arena.vectors[bias.start..]),
                };
                attention::attention(op, operands, y, member);
            }
            Op::Pool(op) => pool::pool(op, read(op.x), y, member),
            #[cfg(feature = "text")]
            Op::LayerNorm(op) => {
                let gain = arena.vector(op.gain, row, op.y.channels);
                let offset = arena.vector(op.offset, row, op.y.channels);
                layer_norm::layer_norm(op, read(op.x), gain, offset, y, member);
            }
            #[cfg(feature = "text")]
            Op::Pointwise(op) => {
                let factor = match op.factor {
                    None => pointwise::Factor::None,
                    Some(Factor::Map(of)) => pointwise::Factor::Map(read(of.map)),
                    Some(Factor::Vector(vector)) => {
                        pointwise::Factor::Vector(arena.vector(vector, row, op.y.channels))
                    }
                };
                let term = match op.term {
                    None => &[],
                    Some(Term::Map(map)) => read(map),
                    Some(Term::Fixed(start)) => &arena.vectors[start..][..op.y.len()],
                };
                pointwise::pointwise(op, read(op.x.map), factor, term, y, member);
            }
            #[cfg(feature = "text")]
            Op::Copy(op) => copy::copy(op, read(op.x), y, member),
        }
        member.wait();
    }
}
