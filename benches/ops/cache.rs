//! attention_decode: one decode step's attention in one layer, by the bytes of the keys and values it reads.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::backend::{CacheRow, CacheShape, LinearWeights};
use im2sp::tensor::DType;

use crate::{done, matrix, tensor};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention_decode");
    let (heads, prefix, position) = (12, 257, 100);
    for rows in [1, 5] {
        let shape = CacheShape { layers: 1, heads, head_size: 64, images: 1, prefix, max_new_tokens: 512 };
        let mut cache = done(Cpu.kv_cache(shape));
        let qkv = LinearWeights { weight: matrix(3 * heads * 64, 64, DType::F32), bias: tensor(1, 3 * heads * 64) };
        done(Cpu.prefill_qkv(&mut cache, &[0], 0, &tensor(prefix, 64), &qkv));
        done(Cpu.kv_reorder(&mut cache, &vec![CacheRow { image: 0, parent: None }; rows]));
        let qkv = tensor(rows, 3 * heads * 64);
        for _ in 0..=position {
            done(Cpu.kv_append(&mut cache));
            done(Cpu.attention_decode(&qkv, &mut cache, 0));
        }
        group.throughput(Throughput::Bytes((rows * 8 * heads * 64 * (prefix + position + 1)) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{rows}x{}", prefix + position)), |b| {
            b.iter(|| done(Cpu.attention_decode(&qkv, &mut cache, 0)))
        });
    }
}
