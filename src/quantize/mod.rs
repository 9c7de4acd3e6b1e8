//! Rounding of weights to eight bits for given inputs: GPTQ over the Hessian of each matrix.

mod cholesky;
pub mod gptq;
