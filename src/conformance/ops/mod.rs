//! Cases of every operation, one file each: `check` runs them in a harness, `cost` counts an operation.

mod adamw;
mod argmax;
mod attention;
mod attention_decode;
mod beam_candidates;
mod concat;
mod conv1d;
mod conv2d;
mod conv_transpose1d;
mod cross_entropy;
mod decode_greedy;
mod depthwise_conv2d;
mod dropout;
mod embed;
mod frame_conv;
mod gelu;
mod gradient_norm;
mod instance_norm;
mod layer_norm;
mod linear;
mod patch_embed;
mod top_k;
mod transpose;

use super::{Harness, TestBackend};
use crate::backend::cpu::Cpu;
use crate::backend::parameters::{ALIGNMENT, Parameter, TrainedParameters};
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// A function that runs all cases of one operation.
pub type OpCheck<B> = fn(&mut Harness<'_, B>) -> Result<()>;

/// Every operation and its cases.
pub fn table<B: TestBackend>() -> [(&'static str, OpCheck<B>); 24] {
    [
        ("adamw", adamw::check),
        ("argmax", argmax::check),
        ("attention", attention::check),
        ("attention_decode", attention_decode::check),
        ("beam_candidates", beam_candidates::check),
        ("concat", concat::check),
        ("conv1d", conv1d::check),
        ("conv2d", conv2d::check),
        ("conv_transpose1d", conv_transpose1d::check),
        ("cross_entropy", cross_entropy::check),
        ("decode_greedy", decode_greedy::check),
        ("depthwise_conv2d", depthwise_conv2d::check),
        ("dropout", dropout::check),
        ("embed", embed::check),
        ("frame_conv", frame_conv::check),
        ("gelu", gelu::check),
        ("gradient_norm", gradient_norm::check),
        ("instance_norm", instance_norm::check),
        ("layer_norm", layer_norm::check),
        ("linear", linear::check),
        ("linear_decode", linear::check_decode),
        ("patch_embed", patch_embed::check),
        ("top_k", top_k::check),
        ("transpose", transpose::check),
    ]
}

/// Names of all operations.
pub fn operations() -> [&'static str; 24] {
    table::<Cpu>().map(|(op, _)| op)
}

/// Weights on the host.
fn host(shape: &[usize], values: Vec<f32>) -> Result<HostTensor> {
    HostTensor::from_f32(shape, values).ok_or_else(|| Error::shape("weights", format!("no values of shape {shape:?}")))
}

/// Parameters of these shapes, one after the other, and the length of their block.
fn parameters<const N: usize>(shapes: [[usize; 2]; N]) -> ([Parameter; N], usize) {
    let mut len = 0;
    let parameters = shapes.map(|[rows, columns]| {
        let parameter = Parameter { start: len, rows, columns };
        len = parameter.range().end.next_multiple_of(ALIGNMENT);
        parameter
    });
    (parameters, len)
}

/// Gradients with these values, or, where there are none, of zero.
fn gradients<B: TrainedParameters>(backend: &B, len: usize, values: &[f32]) -> Result<B::Gradients> {
    let mut gradients = backend.gradients(len)?;
    if !values.is_empty() {
        backend.write_gradients(&mut gradients, values)?;
    }
    Ok(gradients)
}
