//! One question per operation: how long does it take at the sizes of the real models, and how many operations or bytes a
//! second is that? Run `cargo bench --bench ops -- linear` for one of them.

mod argmax;
mod attention;
mod beam_candidates;
mod cache;
mod conv1d;
mod conv_transpose1d;
mod embed;
mod layer_norm;
mod linear;
mod patch_embed;
mod top_k;
mod transpose;

use criterion::{Criterion, criterion_group, criterion_main};
use im2sp::Result;
use im2sp::backend::cpu::{Cpu, Matrix, Tensor};
use im2sp::backend::prelude::*;
use im2sp::tensor::int8;
use im2sp::tensor::{DType, HostTensor, Quantized};

/// Reproducible values in -1..1.
fn values(len: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tensor(rows: usize, columns: usize) -> Tensor {
    Cpu.upload([rows, columns], &values(rows * columns)).expect("the shape fits")
}

fn host(shape: &[usize]) -> HostTensor {
    HostTensor::from_f32(shape, values(shape.iter().product())).expect("the shape fits")
}

fn matrix(rows: usize, columns: usize, dtype: DType) -> Matrix {
    let weight = host(&[rows, columns]);
    let weight = match dtype {
        DType::I8 => {
            let (codes, scales) = int8::quantize(&weight).expect("a matrix");
            HostTensor::from_quantized(Quantized { codes, scales }).expect("codes with scales")
        }
        _ => weight.to_dtype(dtype),
    };
    Cpu.matrix(weight).expect("a matrix")
}

/// Ends a bench that does not measure what it should.
fn done<T>(result: Result<T>) -> T {
    result.expect("the operation accepts its own shapes")
}

fn all(criterion: &mut Criterion) {
    linear::bench(criterion);
    layer_norm::bench(criterion);
    attention::bench(criterion);
    cache::bench(criterion);
    embed::bench(criterion);
    patch_embed::bench(criterion);
    conv1d::bench(criterion);
    conv_transpose1d::bench(criterion);
    transpose::bench(criterion);
    argmax::bench(criterion);
    top_k::bench(criterion);
    beam_candidates::bench(criterion);
}

criterion_group! {
    name = ops;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(2));
    targets = all
}
criterion_main!(ops);
