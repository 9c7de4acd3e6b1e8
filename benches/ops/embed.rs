//! embed: the decoder's word and position rows, and the vocoder's columns; bytes a second.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::tensor::DType;

use crate::{done, matrix};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("embed");
    let (words, positions) = (matrix(203, 768, DType::F32), matrix(1024, 768, DType::F32));
    let (ids, places) = ([17u32; 5], [40u32; 5]);
    group.throughput(Throughput::Bytes((12 * 5 * 768) as u64));
    group.bench_function(BenchmarkId::new("rows", "5x768"), |b| {
        b.iter(|| done(Cpu.embed(&words, &positions, &ids, &places)))
    });
    let (units, frames) = (matrix(200, 128, DType::F32), [3u32; 200]);
    group.throughput(Throughput::Bytes((8 * 128 * 200) as u64));
    group.bench_function(BenchmarkId::new("columns", "128x200"), |b| {
        b.iter(|| done(Cpu.embed_frames(&[(&units, &frames)])))
    });
}
