//! Training of captioners: gradients by the backward operations of [`crate::backend`], the recipe of the reference, checkpoints
//! that a run resumes from exactly.

pub mod decoder;
pub mod model;
pub mod parameters;
pub mod schedule;
pub mod vision;
