//! The model of drawn scenes on a device: the GPU that IM2SP_TEST_DEVICE names ("cuda:0"), else the emulator. Its captions are
//! the CPU's, whatever else is in the batch; it allocates nothing once warm, gives everything back, and reports what fails.
#![cfg(feature = "emulator")]

mod emulated;
#[path = "../common/scenes.rs"]
mod scenes;
mod spy;

use std::ops::ControlFlow;

use im2sp::generate::{GenerateOptions, Sampling};
use im2sp::random::Random;
use im2sp::tensor::DType;
use im2sp::{Caption, CaptionOptions, Delivery, Device, Engine, Event, Image, LoadOptions, Request};

fn device() -> Device {
    let name = std::env::var("IM2SP_TEST_DEVICE").unwrap_or("emulator".into());
    name.parse().unwrap_or_else(|problem| panic!("IM2SP_TEST_DEVICE: {name}: {problem}"))
}

fn engine(device: Device, dtype: DType) -> Engine {
    scenes::engine_with(LoadOptions { device, dtype: Some(dtype), ..LoadOptions::default() })
}

/// Drawings in the spirit of the model's scenes: a noisy ground, and one to three discs and boxes.
fn images(count: usize) -> Vec<Image> {
    let mut random = Random::new(2026);
    (0..count)
        .map(|_| {
            let side = 96 + random.below(64);
            let ground: [usize; 3] = std::array::from_fn(|_| 60 + random.below(150));
            let mut shapes = Vec::new();
            for _ in 0..1 + random.below(3) {
                let colour: [usize; 3] = std::array::from_fn(|_| random.below(2) * 220 + 15);
                shapes.push((
                    random.below(side),
                    random.below(side),
                    8 + random.below(20),
                    random.below(2) == 0,
                    colour,
                ));
            }
            let mut pixels = Vec::with_capacity(3 * side * side);
            for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
                let mut colour = ground;
                for &(cx, cy, size, disc, paint) in &shapes {
                    let (dx, dy) = (x.abs_diff(cx), y.abs_diff(cy));
                    if if disc { dx * dx + dy * dy < size * size } else { dx < size && dy < size } {
                        colour = paint;
                    }
                }
                pixels.extend(colour.map(|c| (c + random.below(13)).min(255) as u8));
            }
            Image::from_rgb(side, side, pixels).expect("as many bytes as pixels")
        })
        .collect()
}

fn captions(engine: &Engine, images: &[Image], options: &CaptionOptions) -> Vec<Caption> {
    let images: Vec<&Image> = images.iter().collect();
    engine.caption_batch(&images, options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

fn units_only() -> CaptionOptions {
    CaptionOptions { no_audio: true, ..Default::default() }
}

#[test]
fn f32_speaks_as_the_cpu_does() {
    let images = images(2);
    let options = CaptionOptions::default();
    let expected = captions(&engine(Device::Cpu, DType::F32), &images, &options);
    let actual = captions(&engine(device(), DType::F32), &images, &options);
    for (expected, actual) in expected.iter().zip(&actual) {
        assert_eq!(actual.tokens, expected.tokens);
        assert_eq!(actual.samples.len(), expected.samples.len());
        // A stack of some fifty convolutions; 1 / 32768 is the last bit of a WAV file.
        let worst = im2sp::conformance::difference(&actual.samples, &expected.samples);
        assert!(worst < 4.0 / 32768.0, "samples differ by {worst}");
    }
}

#[test]
fn bf16_says_the_same_nearly_always() {
    let images = images(20);
    let expected = captions(&engine(Device::Cpu, DType::F32), &images, &units_only());
    let actual = captions(&engine(device(), DType::BF16), &images, &units_only());
    let same = expected.iter().zip(&actual).filter(|(e, a)| e.units == a.units).count();
    assert!(same >= 19, "{same} of 20 captions have the same units");
}

/// The same for a directory of images, say the 200 test scenes that recipes/demo draws.
#[test]
#[ignore = "needs IM2SP_TEST_IMAGES, a directory of images, and minutes on the emulator"]
fn bf16_says_the_same_of_a_test_set() {
    let directory = std::env::var("IM2SP_TEST_IMAGES").expect("IM2SP_TEST_IMAGES names a directory");
    let files = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let images: Vec<Image> = files.filter_map(|file| Image::open(file).ok()).collect();
    assert!(!images.is_empty(), "no images in {directory}");
    let (cpu, device) = (engine(Device::Cpu, DType::F32), engine(device(), DType::BF16));
    let mut same = 0;
    for images in images.chunks(8) {
        let [expected, actual] = [&cpu, &device].map(|engine| captions(engine, images, &units_only()));
        same += expected.iter().zip(&actual).filter(|(e, a)| e.units == a.units).count();
    }
    println!("{same} of {} captions have the same units", images.len());
    assert!(same * 100 >= images.len() * 95);
}

/// The dimensions of the published models, from pixels to sound, with random weights: what they say means nothing, but all of
/// the path's real shapes run, and the CPU, with f32 activations, says what comes of them.
#[test]
#[ignore = "takes minutes on the emulator"]
fn the_published_size_speaks_as_on_the_cpu() {
    // Few: a random model's likeliest two units are close, and what bf16 rounds would decide between them.
    let generate = GenerateOptions { max_length: 12, ..Default::default() };
    let options = CaptionOptions { generate, ..Default::default() };
    let image = images(1).remove(0);
    let [expected, actual] = [Device::Cpu, device()].map(|device| {
        let engine = Engine::random_with(LoadOptions { device, dtype: Some(DType::BF16), ..LoadOptions::default() })
            .expect("an engine");
        let caption = engine.caption(&image, &options).expect("a caption");
        let spoken = engine.speak(&(0..50).collect::<Vec<u32>>(), None).expect("a second of sound");
        (caption, spoken.samples)
    });
    assert_eq!(actual.0.units, expected.0.units);
    let rms = |values: &[f32]| (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
    for (actual, expected) in [(&actual.0.samples, &expected.0.samples), (&actual.1, &expected.1)] {
        assert_eq!(actual.len(), expected.len());
        let difference: Vec<f32> = actual.iter().zip(expected).map(|(a, b)| a - b).collect();
        // Some fifty convolutions whose every input is rounded to eight bits.
        let (off, of) = (rms(&difference), rms(expected));
        assert!(off < 0.04 * of, "samples are off by {off} rms of {of}");
    }
}

/// The model in the binary, whose encoder is a convolutional one.
#[test]
#[cfg(feature = "embedded-model")]
#[ignore = "takes minutes on the emulator"]
fn the_embedded_model_speaks_as_on_the_cpu() {
    let image = images(1).remove(0);
    let [expected, actual] = [Device::Cpu, device()].map(|device| {
        let load = LoadOptions { device, dtype: Some(DType::F32), ..LoadOptions::default() };
        let engine = Engine::embedded_with(load).expect("an engine");
        engine.caption(&image, &CaptionOptions::default()).expect("a caption")
    });
    assert_eq!(actual.tokens, expected.tokens);
    let worst = im2sp::conformance::difference(&actual.samples, &expected.samples);
    assert!(worst < 4.0 / 32768.0, "samples differ by {worst}");
}

#[test]
fn neighbours_in_a_batch_change_nothing() {
    let images = images(4);
    for dtype in [DType::BF16, DType::F32] {
        let engine = engine(device(), dtype);
        let together = captions(&engine, &images, &units_only());
        for (image, expected) in images.iter().zip(&together).skip(3) {
            let alone = engine.caption(image, &units_only()).expect("a caption");
            assert_eq!(alone.tokens, expected.tokens);
        }
    }
}

/// Slots that are refilled immediately change nothing, and a callback may use the device.
#[test]
fn many_images_are_captioned_as_each_alone() {
    let engine = engine(device(), DType::BF16);
    let images = images(4);
    let sampling = Some(Sampling { temperature: 2.0, top_k: 0, top_p: 1.0, seed: 3 });
    let options = CaptionOptions {
        generate: GenerateOptions { sampling, max_length: 12, ..Default::default() },
        ..Default::default()
    };
    let alone: Vec<Caption> = images.iter().map(|image| engine.caption(image, &options).unwrap()).collect();
    let mut ended = 0;
    let read = |n: usize| images.get(n).cloned().map(Ok);
    let done = engine.caption_many(&read, &options, 2, &mut |index, caption| {
        let caption = caption.unwrap();
        assert_eq!(caption.tokens, alone[index].tokens, "image {index}");
        assert_eq!(caption.samples, alone[index].samples, "image {index}");
        if index == 0 {
            assert_eq!(engine.speak(&caption.units, None).unwrap().samples, caption.samples);
        }
        ended += 1;
        ControlFlow::Continue(())
    });
    done.unwrap();
    assert_eq!(ended, images.len());
}

#[test]
fn beams_are_those_of_the_cpu() {
    let images = images(2);
    let options = CaptionOptions {
        generate: GenerateOptions { beams: 3, ..Default::default() },
        no_audio: true,
        ..Default::default()
    };
    let expected = captions(&engine(Device::Cpu, DType::F32), &images, &options);
    let actual = captions(&engine(device(), DType::F32), &images, &options);
    for (expected, actual) in expected.iter().zip(&actual) {
        assert_eq!(actual.tokens, expected.tokens);
    }
}

#[test]
fn a_warm_engine_allocates_nothing_and_repeats_itself() {
    let images = images(9);
    let engine = engine(device(), DType::BF16);
    let generate = |beams, max_length| GenerateOptions { beams, max_length, ..Default::default() };
    let kinds = [
        (1, CaptionOptions::default()),
        (1, CaptionOptions { generate: generate(5, 20), ..units_only() }),
        // More rows than are decoded in one launch.
        (9, CaptionOptions { generate: generate(1, 12), ..units_only() }),
    ];
    for (count, options) in kinds {
        let [first, again] = [(); 2].map(|()| captions(&engine, &images[..count], &options));
        // By now, what a cache keeps is nobody else's.
        let warm = engine.memory().expect("a device");
        let last = captions(&engine, &images[..count], &options);
        assert_eq!(engine.memory().expect("a device"), warm, "{count} images, {:?}", options.generate);
        for (later, first) in [again, last].iter().flat_map(|later| later.iter().zip(&first)) {
            assert_eq!(later.tokens, first.tokens);
            assert_eq!(later.samples, first.samples, "the recorded graphs give the same bits");
        }
    }
}

/// The captioner's thread holds nothing that the vocoder needs.
#[test]
fn units_are_spoken_while_others_are_chosen() {
    let engine = engine(device(), DType::BF16);
    let image = &images(1)[0];
    let units = [3, 1, 4];
    let expected = engine.speak(&units, None).expect("speech");
    let sampling = Some(Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 1 });
    let generate = GenerateOptions { sampling, ..Default::default() };
    let options = CaptionOptions { generate, ..units_only() };
    let delivery = Delivery::Streamed { first_chunk: 8 };
    let mut events = engine.submit(Request { delivery, ..Request::new(image.clone(), options) });
    assert!(matches!(events.next(), Some(Event::Units(_))));
    assert_eq!(engine.speak(&units, None).expect("speech").samples, expected.samples);
    let since = std::iter::from_fn(|| events.next_within(std::time::Duration::ZERO));
    assert!(since.into_iter().all(|event| matches!(event, Event::Units(_))), "its units are still being chosen");
}

/// Stages of a caption, each by the device's own clock, in no more than the whole took.
#[test]
fn every_stage_has_its_own_time() {
    let engine = engine(device(), DType::BF16);
    let (image, options) = (&images(1)[0], CaptionOptions::default());
    let clock = std::time::Instant::now();
    let timings = engine.caption(image, &options).expect("a caption").timings;
    let whole = clock.elapsed().as_secs_f64() * 1e3;
    let stages = [timings.vision, timings.prefill, timings.decode, timings.vocoder];
    assert!(stages.iter().all(|&stage| stage > 0.0), "{timings:?}");
    assert!(stages.iter().sum::<f64>() <= whole, "{timings:?} of {whole} ms");
}

#[test]
fn a_device_index_that_does_not_exist_is_an_error() {
    let options = LoadOptions { device: Device::Cuda(99), ..LoadOptions::default() };
    let error = Engine::new(scenes::files(), options).map(|_| ()).expect_err("there are no hundred GPUs").to_string();
    assert!(error.contains("cuda:99"), "{error}");
}
