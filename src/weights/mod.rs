//! Weights are data.
