//! The Curriculum Consistency Model, as PAPER.md describes it. No files, no threads.
//!
//! | module | content | source |
//! |---|---|---|
//! | [`flow`] | the straight path, the jump, the Euler step | PAPER.md §1 |
//! | [`teacher`] | the teacher's loss on any path | PAPER.md §2, §8 |
//! | [`batch`], [`coupling`] | pairs of noise and images | PAPER.md §2 |
//! | [`guidance`] | the teacher with guidance | PAPER.md §9 and §11 |
//! | [`kdc`] | knowledge discrepancy of the curriculum | PAPER.md §4 |
//! | [`curriculum`] | the target of each image | PAPER.md §5 |
//! | [`distance`], [`lpips`] | the student's loss | PAPER.md §6 |
//! | [`adversary`], [`discriminator`], [`views`] | the adversarial loss | PAPER.md §6, §10 |

pub mod adversary;
pub mod batch;
pub mod coupling;
pub mod curriculum;
pub mod discriminator;
pub mod distance;
pub mod flow;
pub mod guidance;
pub mod kdc;
pub mod lpips;
pub mod teacher;
pub mod views;
