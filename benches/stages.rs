//! One question per stage: how long does it take at the published size (24 x 1024 encoder at 224 pixels, 6 x 768 decoder,
//! 512-channel vocoder), with random weights in memory, and how many operations a second is that? The whole path of
//! the embedded model and of the tests' model of drawn scenes is a bench of its own. Each bench at full size holds about 1.5 GB.

#[path = "support/full_size.rs"]
mod full_size;

use std::ops::ControlFlow;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use full_size::Models;
use im2sp::backend::SmBudget;
use im2sp::backend::cpu::Cpu;
use im2sp::cost;
use im2sp::generate::{GenerateOptions, generate};
use im2sp::model::vocoder::Voice;
use im2sp::tensor::DType;
use im2sp::weights::random;
use im2sp::{CaptionOptions, Device, Engine, Image};

fn full(criterion: &mut Criterion) {
    let models = Models::random(DType::F32);
    let narrow = Models::random(DType::BF16);
    let config = models.config.clone();
    let mut group = criterion.benchmark_group("full_size");
    let pixels = random::values(3 * config.image.size * config.image.size);

    group.throughput(Throughput::Elements(cost::vision(&config, 4).flops as u64));
    group.bench_function("vision", |b| b.iter(|| models.image_tokens(&pixels)));

    let tokens = models.image_tokens(&pixels);
    group.throughput(Throughput::Elements(cost::prefill(&config, 4).flops as u64));
    group.bench_function("prefill", |b| b.iter(|| models.prefill(&tokens)));

    for (name, models, size) in [("decode_128_f32", &models, 4), ("decode_128_bf16", &narrow, 2)] {
        group.throughput(Throughput::Bytes(128 * cost::step(&config, [size, size, size_of::<f32>()]).bytes as u64));
        let tokens = models.image_tokens(&pixels);
        let options = GenerateOptions { max_length: 129, ..Default::default() };
        group.bench_function(name, |b| {
            b.iter_batched(
                || models.prefill(&tokens),
                |cache| {
                    generate(&Cpu, &models.captioner.decoder, cache, 1, &options, SmBudget::All, &mut |_| {
                        ControlFlow::Continue(())
                    })
                    .expect("tokens")
                },
                criterion::BatchSize::LargeInput,
            )
        });
    }

    let vocoder = config.vocoder.as_ref().expect("a vocoder");
    group.throughput(Throughput::Elements(cost::vocoder(vocoder, 200, 4).flops as u64));
    let units: Vec<u32> = (0..200).collect();
    let durations = vec![1; units.len()];
    group.bench_function("vocoder_4s", |b| {
        b.iter(|| models.vocoder.synthesize(&Cpu, &units, &durations, Voice::default()).expect("samples"))
    });
    group.finish();
}

fn small(criterion: &mut Criterion) {
    whole_path(criterion, "embedded", || Engine::embedded().expect("the embedded model"));
    let scenes = || Engine::load("tests/scenes", Device::default()).expect("the model of drawn scenes");
    whole_path(criterion, "scenes", scenes);
}

fn whole_path(criterion: &mut Criterion, name: &str, load: impl Fn() -> Engine) {
    let engine = load();
    let image = Image::open("assets/scene.png").expect("the image");
    let mut group = criterion.benchmark_group(name);
    group.bench_function("load", |b| b.iter(&load));
    group.bench_function("read_picture", |b| b.iter(|| Image::open("assets/scene.png").expect("the image")));
    group.bench_function("preprocess", |b| b.iter(|| image.preprocess(&engine.config().image)));
    group.bench_function("caption", |b| {
        b.iter(|| engine.caption(&image, &CaptionOptions::default()).expect("a caption"))
    });
    group.finish();
}

criterion_group! {
    name = stages;
    config = Criterion::default().sample_size(10).warm_up_time(std::time::Duration::from_secs(1))
        .measurement_time(std::time::Duration::from_secs(5));
    targets = small, full
}
criterion_main!(stages);
