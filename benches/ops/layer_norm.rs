//! layer_norm: bytes read and written a second.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::LayerNormWeights;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{done, tensor};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("layer_norm");
    for (rows, columns) in [(1, 768), (257, 1024), (8 * 257, 1024)] {
        let x = tensor(rows, columns);
        let norm = LayerNormWeights::<Cpu> { weight: tensor(1, columns), bias: tensor(1, columns), eps: 1e-5 };
        group.throughput(Throughput::Bytes((8 * rows * columns) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{rows}x{columns}")), |b| {
            b.iter(|| done(Cpu.layer_norm(&x, &norm)))
        });
    }
}
