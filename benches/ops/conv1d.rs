//! conv1d: operations a second in every stage of the published vocoder, at one second of speech. Operations are
//! those of the direct form; Winograd's does fewer.

use criterion::{BenchmarkId, Criterion, Throughput};
use im2sp::backend::ConvEpilogue;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{done, host, tensor};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conv1d");
    for (channels, frames) in [(256, 250), (128, 1000), (64, 4000), (32, 8000), (16, 16000)] {
        for (taps, dilation) in [(3, 1), (7, 3), (11, 5)] {
            let kernel = done(Cpu.conv_weights(&host(&[channels, channels, taps]), &host(&[channels])));
            let x = tensor(channels, frames);
            group.throughput(Throughput::Elements((2 * channels * channels * taps * frames) as u64));
            let name = format!("{channels}x{frames}_k{taps}_d{dilation}");
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter(|| {
                    let epilogue = ConvEpilogue { slope: 0.1, residual: Some((&x, 0)), ..Default::default() };
                    done(Cpu.conv1d(&x, &kernel, dilation, 0..frames, epilogue))
                })
            });
        }
    }
}
