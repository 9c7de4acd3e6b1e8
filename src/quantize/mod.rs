//! Rounding of weights to eight bits for given inputs: GPTQ over the Hessian of each matrix, and the
//! calibration that takes these inputs from the captions of a folder of images.

pub mod calibrate;
mod cholesky;
pub mod gptq;
