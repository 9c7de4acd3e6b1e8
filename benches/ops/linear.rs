//! linear: the encoder's and the decoder's products by their operations, the decode step's by the bytes of its weights.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::backend::{Activation, LinearWeights};
use im2sp::tensor::DType;

use crate::{done, matrix, tensor};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear");
    let layer = |n, k, dtype| LinearWeights::<Cpu> { weight: matrix(n, k, dtype), bias: tensor(1, n) };
    for (m, n, k) in [(257, 3072, 1024), (257, 4096, 1024), (257, 1024, 4096), (257, 2304, 768)] {
        let (x, layer) = (tensor(m, k), layer(n, k, DType::F32));
        group.throughput(Throughput::Elements((2 * m * n * k) as u64));
        group.bench_function(BenchmarkId::new("flop", format!("{m}x{n}x{k}")), |b| {
            b.iter(|| done(Cpu.linear(&x, &layer, Activation::QuickGelu, None)))
        });
    }
    for (m, n, k) in [(1, 2304, 768), (1, 3072, 768), (1, 768, 3072), (5, 3072, 768)] {
        for dtype in [DType::F32, DType::BF16, DType::I8] {
            // As many layers as the decoder has, so that the weights do not stay in a core's caches.
            let layers: Vec<_> = (0..24).map(|_| layer(n, k, dtype)).collect();
            let x = tensor(m, k);
            let bytes = layers.len() * n * k * dtype.size();
            group.throughput(Throughput::Bytes(bytes as u64));
            let name = format!("{m}x{n}x{k}_{}", dtype.name());
            group.bench_function(BenchmarkId::new("decode", name), |b| {
                b.iter(|| layers.iter().for_each(|l| drop(done(Cpu.linear_decode(&x, l, Activation::None, None)))))
            });
        }
    }
}
