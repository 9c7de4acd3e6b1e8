//! crop: bytes a second at a size of the vocoder's first stage.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::Backend;
use im2sp::backend::cpu::Cpu;

use crate::{done, tensor};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crop");
    let x = tensor(256, 250);
    group.throughput(Throughput::Bytes(8 * 256 * 180));
    group.bench_function(BenchmarkId::from_parameter("256x180 of 250"), |b| b.iter(|| done(Cpu.crop(&x, 60..240))));
}
