//! Weights are data.
pub mod store;
pub mod directory; pub mod embedded;
