//! beam_candidates: bytes a second over the logits of eight pictures with five beams each.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{done, tensor, values};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("beam_candidates");
    let (x, scores) = (tensor(40, 203), values(40));
    group.throughput(Throughput::Bytes(4 * 40 * 203));
    group.bench_function(BenchmarkId::from_parameter("10 of 8x5x203"), |b| {
        b.iter(|| done(Cpu.beam_candidates(&x, &scores, &[5; 8], 10)))
    });
}
