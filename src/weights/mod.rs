//! Weights are data.
pub mod store;
