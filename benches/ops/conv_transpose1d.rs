//! conv_transpose1d: operations a second of every upsampling of the published vocoder, at one second of speech.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{done, host, tensor};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conv_transpose1d");
    for (inputs, frames, stride, taps) in [(512, 50, 5, 11), (256, 250, 4, 8), (128, 1000, 4, 8), (32, 8000, 2, 4)] {
        let outputs = inputs / 2;
        let kernel = done(Cpu.conv_transpose_weights(&host(&[inputs, outputs, taps]), &host(&[outputs]), stride));
        let x = tensor(inputs, frames);
        group.throughput(Throughput::Elements((2 * inputs * outputs * taps * frames) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{inputs}x{frames}_s{stride}")), |b| {
            b.iter(|| done(Cpu.conv_transpose1d(&x, &kernel, 0.1)))
        });
    }
}
