//! Weights are data.
pub mod directory;
pub mod embedded;
pub mod store;
