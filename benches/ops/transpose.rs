//! transpose: bytes a second at the duration predictor's size.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{done, tensor};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transpose");
    let x = tensor(128, 200);
    group.throughput(Throughput::Bytes(8 * 128 * 200));
    group.bench_function(BenchmarkId::from_parameter("128x200"), |b| b.iter(|| done(Cpu.transpose(&x))));
}
