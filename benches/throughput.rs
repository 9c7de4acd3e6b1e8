//! Images a second: the pipeline at several batch sizes, and one image after the other.
//! The device is the CPU, or what IM2SP_BENCH_DEVICE names ("cuda:0").

use std::ops::ControlFlow;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use im2sp::generate::GenerateOptions;
use im2sp::{CaptionOptions, Device, Engine, Image, LoadOptions};

fn device() -> Device {
    let name = std::env::var("IM2SP_BENCH_DEVICE").unwrap_or("cpu".into());
    name.parse().expect("IM2SP_BENCH_DEVICE is a device")
}

/// `count` images by each of `widths` at a time; width 0 is one after the other, without a pipeline.
fn measure(
    criterion: &mut Criterion,
    name: &str,
    engine: &Engine,
    options: &CaptionOptions,
    (count, widths): (usize, &[usize]),
) {
    let mut group = criterion.benchmark_group(format!("throughput/{name}"));
    group.throughput(Throughput::Elements(count as u64));
    for &width in widths {
        let read = |n: usize| (n < count).then(|| Image::open("assets/scene.png"));
        group.bench_function(BenchmarkId::from_parameter(width), |b| {
            b.iter(|| {
                if width == 0 {
                    for image in (0..).map_while(read) {
                        engine.caption(&image.expect("the image"), options).expect("a caption");
                    }
                    return;
                }
                let mut ended = 0;
                let done = engine.caption_many(&read, options, width, &mut |_, caption| {
                    ended += usize::from(caption.is_ok());
                    ControlFlow::Continue(())
                });
                done.expect("captions");
                assert_eq!(ended, count);
            })
        });
    }
    group.finish();
}

fn all(criterion: &mut Criterion) {
    let load = LoadOptions { device: device(), ..LoadOptions::default() };
    let embedded = Engine::embedded_with(load).expect("the embedded model");
    // The tests' model, whose figures reach back further.
    let scenes = Engine::load_with("tests/scenes", load).expect("the model of drawn scenes");
    let widths = [0, 1, 4, 8, 16, 64];
    let units = CaptionOptions { no_audio: true, ..Default::default() };
    measure(criterion, "embedded/units", &embedded, &units, (64, &widths));
    measure(criterion, "embedded/sound", &embedded, &CaptionOptions::default(), (64, &widths));
    measure(criterion, "scenes/units", &scenes, &units, (64, &widths));
    measure(criterion, "scenes/sound", &scenes, &CaptionOptions::default(), (64, &widths));
    let published = Engine::random_with(load).expect("random weights");
    let generate = GenerateOptions { max_length: 101, ..Default::default() };
    let units = CaptionOptions { generate, ..units };
    measure(criterion, "published/100_units", &published, &units, (16, &[0, 8, 16]));
}

criterion_group! {
    name = throughput;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    targets = all
}
criterion_main!(throughput);
