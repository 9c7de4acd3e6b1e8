//! top_k: bytes a second over a batch of logits.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{done, tensor};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("top_k");
    let x = tensor(64, 203);
    group.throughput(Throughput::Bytes(4 * 64 * 203));
    group.bench_function(BenchmarkId::from_parameter("50 of 64x203"), |b| b.iter(|| done(Cpu.top_k(&x, 50))));
}
