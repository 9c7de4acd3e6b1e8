//! Training of captioners: gradients by the backward operations of [`crate::backend`], the recipe of the reference, checkpoints
//! that a run resumes from exactly.

pub mod buckets;
pub mod checkpoint;
pub mod config;
pub mod cost;
pub mod decoder;
pub mod estimate;
pub mod journal;
pub mod kmeans;
pub mod lock;
pub mod model;
pub mod parameters;
pub mod plot;
pub mod ranks;
pub mod schedule;
pub mod session;
pub mod start;
pub mod tensorboard;
pub mod trainer;
pub mod unit_images;
pub mod validation;
pub mod vision;
