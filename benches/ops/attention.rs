//! attention: operations a second at the encoder's and the decoder's sizes.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::AttentionShape;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{done, tensor};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    for (batch, tokens, heads) in [(1, 257, 16), (1, 257, 12), (4, 257, 16)] {
        let qkv = tensor(batch * tokens, 3 * heads * 64);
        let shape = AttentionShape { batch, tokens, heads, prefix: tokens };
        group.throughput(Throughput::Elements((4 * batch * heads * tokens * tokens * 64) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{batch}x{tokens}x{heads}")), |b| {
            b.iter(|| done(Cpu.attention(&qkv, shape)))
        });
    }
}
