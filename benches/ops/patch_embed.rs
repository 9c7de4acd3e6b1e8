//! patch_embed: operations a second at 224 pixels and patches of 14.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::tensor::DType;

use crate::{done, matrix, tensor};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("patch_embed");
    let (weight, class, position) = (matrix(1024, 588, DType::F32), tensor(1, 1024), matrix(257, 1024, DType::F32));
    let pixels = tensor(1, 3 * 224 * 224);
    group.throughput(Throughput::Elements(2 * 256 * 1024 * 588));
    group.bench_function(BenchmarkId::from_parameter("1x224"), |b| {
        b.iter(|| done(Cpu.patch_embed(&pixels, &weight, &class, &position, 14)))
    });
}
