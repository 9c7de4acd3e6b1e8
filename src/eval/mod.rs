//! Evaluation: what a model says of images, scored against what people said of them.

pub mod score;
