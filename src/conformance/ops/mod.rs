//! Cases of every operation, one file each: `check` runs them in a harness, `cost` counts an operation.

mod argmax;
mod attention;
mod attention_decode;
mod beam_candidates;
mod conv1d;
mod conv_transpose1d;
mod decode_greedy;
mod dropout;
mod embed;
mod layer_norm;
mod linear;
mod patch_embed;
mod top_k;
mod transpose;

use super::{Harness, TestBackend};
use crate::backend::cpu::Cpu;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// A function that runs all cases of one operation.
pub type OpCheck<B> = fn(&mut Harness<'_, B>) -> Result<()>;

/// Every operation and its cases.
pub fn table<B: TestBackend>() -> [(&'static str, OpCheck<B>); 15] {
    [
        ("argmax", argmax::check),
        ("attention", attention::check),
        ("attention_decode", attention_decode::check),
        ("beam_candidates", beam_candidates::check),
        ("conv1d", conv1d::check),
        ("conv_transpose1d", conv_transpose1d::check),
        ("decode_greedy", decode_greedy::check),
        ("dropout", dropout::check),
        ("embed", embed::check),
        ("layer_norm", layer_norm::check),
        ("linear", linear::check),
        ("linear_decode", linear::check_decode),
        ("patch_embed", patch_embed::check),
        ("top_k", top_k::check),
        ("transpose", transpose::check),
    ]
}

/// Names of all operations.
pub fn operations() -> [&'static str; 15] {
    table::<Cpu>().map(|(op, _)| op)
}

/// Weights on the host.
fn host(shape: &[usize], values: Vec<f32>) -> Result<HostTensor> {
    HostTensor::from_f32(shape, values).ok_or_else(|| Error::shape("weights", format!("no values of shape {shape:?}")))
}
