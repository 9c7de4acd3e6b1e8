//! How long one listener waits: from an image to the first sound and to the last, inside a process and from its start. The
//! device is the CPU, or what IM2SP_BENCH_DEVICE names ("cuda:0").

use std::hint::black_box;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use im2sp::generate::GenerateOptions;
use im2sp::tensor::DType;
use im2sp::{CaptionOptions, Device, Engine, Image, LoadOptions};

const SCENE: &str = "assets/scene.png";
const SCENES: &str = "tests/scenes";

fn device() -> Device {
    let name = std::env::var("IM2SP_BENCH_DEVICE").unwrap_or("cpu".into());
    name.parse().expect("IM2SP_BENCH_DEVICE is a device")
}

/// The model in the binary, which a user hears, and the tests' model, whose figures reach back further.
fn small(criterion: &mut Criterion) {
    let load = LoadOptions { device: device(), ..LoadOptions::default() };
    whole_and_streamed(criterion, "embedded", &Engine::embedded_with(load).expect("the embedded model"));
    whole_and_streamed(criterion, "scenes", &Engine::load_with(SCENES, load).expect("the model of drawn scenes"));
}

/// Cost of a stream, and what it is for.
fn whole_and_streamed(criterion: &mut Criterion, name: &str, engine: &Engine) {
    let (image, options) = (Image::open(SCENE).expect("the image"), CaptionOptions::default());
    let mut group = criterion.benchmark_group(format!("latency/{name}"));
    group.bench_function("whole", |b| b.iter(|| engine.caption(&image, &options).expect("a caption")));
    group.bench_function("streamed", |b| {
        b.iter(|| engine.stream(&image, &options).for_each(|chunk| drop(black_box(chunk.expect("sound")))))
    });
    group.bench_function("first_sound", |b| {
        b.iter_custom(|times| {
            let mut total = Duration::ZERO;
            for _ in 0..times {
                let clock = Instant::now();
                let mut stream = engine.stream(&image, &options);
                black_box(stream.next().expect("a chunk").expect("sound"));
                total += clock.elapsed();
            }
            total
        })
    });
    group.finish();
}

/// The program, from its start to its first samples in a pipe and to its end.
fn process(criterion: &mut Criterion) {
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_im2sp"));
        command.args(["caption", SCENE, "-o", "-", "--format", "pcm", "--device", &device().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    let timed = |more: &'static [&'static str], first: bool| {
        move |times: u64| {
            let mut total = Duration::ZERO;
            for _ in 0..times {
                let clock = Instant::now();
                let mut child = command().args(more).spawn().expect("im2sp starts");
                let mut sound = child.stdout.take().expect("a pipe");
                sound.read_exact(&mut [0; 2]).expect("a sample");
                let since = clock.elapsed();
                sound.read_to_end(&mut Vec::new()).expect("all of the sound");
                assert!(child.wait().expect("im2sp ends").success());
                total += if first { since } else { clock.elapsed() };
            }
            total
        }
    };
    let mut group = criterion.benchmark_group("latency/process");
    group.bench_function("whole", |b| b.iter_custom(timed(&[], false)));
    group.bench_function("streamed", |b| b.iter_custom(timed(&["--stream"], false)));
    group.bench_function("first_sound", |b| b.iter_custom(timed(&["--stream"], true)));
    group.finish();
}

/// The published size with random weights: an image to 100 units, and those to sound.
fn published(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("latency/published");
    for dtype in [DType::F32, DType::BF16] {
        let load = LoadOptions { device: device(), dtype: Some(dtype), ..LoadOptions::default() };
        let engine = Engine::random_with(load).expect("random weights");
        let side = engine.config().image.size;
        let rgb = (0..side * side * 3).map(|i| (i * 7919 % 251) as u8).collect();
        let image = Image::from_rgb(side, side, rgb).expect("an image");
        let generate = GenerateOptions { max_length: 101, ..Default::default() };
        let options = CaptionOptions { generate, no_audio: true, ..Default::default() };
        let units: Vec<u32> = (0..100).collect();
        group.bench_function(format!("to_100_units/{}", engine.dtype()), |b| {
            b.iter(|| assert_eq!(engine.caption(&image, &options).expect("a caption").tokens.len(), 101))
        });
        group.bench_function(format!("100_units_to_sound/{}", engine.dtype()), |b| {
            b.iter(|| engine.speak(&units, None).expect("sound"))
        });
    }
    group.finish();
}

criterion_group! {
    name = latency;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    targets = small, process, published
}
criterion_main!(latency);
