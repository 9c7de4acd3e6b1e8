//! The embedded model on a device: the GPU that IM2SP_TEST_DEVICE names ("cuda:0"), else the emulator. Its captions are the
//! CPU's, whatever else is in the batch; it allocates nothing once warm, gives everything back, and reports what fails.
#![cfg(feature = "emulator")]

#[path = "common/spy.rs"]
mod spy;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use im2sp::backend::SmBudget;
use im2sp::backend::cuda::Cuda;
use im2sp::backend::cuda::driver::Driver;
use im2sp::backend::cuda::driver::emulator::EmulatedDriver;
use im2sp::generate::{GenerateOptions, Sampling, generate};
use im2sp::model::captioner::Captioner;
use im2sp::model::loader::Loader;
use im2sp::random::Random;
use im2sp::tensor::DType;
use im2sp::weights::ModelFiles;
use im2sp::{Caption, CaptionOptions, Delivery, Device, Engine, Error, Event, Image, LoadOptions, Request};
use spy::Spy;

fn device() -> Device {
    let name = std::env::var("IM2SP_TEST_DEVICE").unwrap_or("emulator".into());
    name.parse().unwrap_or_else(|problem| panic!("IM2SP_TEST_DEVICE: {name}: {problem}"))
}

fn engine(device: Device, dtype: DType) -> Engine {
    Engine::embedded_with(LoadOptions { device, dtype: Some(dtype), ..LoadOptions::default() })
        .unwrap_or_else(|error| panic!("{error}"))
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

/// Beams, sampling and more rows than one launch takes, against an engine that has to do without graphs.
#[test]
fn captions_from_recorded_steps_are_those_of_plain_ones() {
    let images = images(9);
    let sampling = Some(Sampling { temperature: 2.0, top_k: 20, top_p: 1.0, seed: 3 });
    let kinds = [
        (1, GenerateOptions { beams: 2, max_length: 30, ..Default::default() }),
        (1, GenerateOptions { beams: 5, max_length: 60, ..Default::default() }),
        (2, GenerateOptions { sampling, max_length: 70, ..Default::default() }),
        (9, GenerateOptions { max_length: 16, ..Default::default() }),
    ];
    let (with, without) = (Arc::new(EmulatedDriver::new(1 << 30)), Arc::new(EmulatedDriver::new(1 << 30)));
    let engines = [&with, &without].map(|driver| Engine::embedded_on(driver.clone(), DType::BF16).expect("an engine"));
    for (count, generate) in kinds {
        let options = CaptionOptions { generate, ..units_only() };
        // The vision encoder's graph, which is captured the second time.
        let short = CaptionOptions { generate: GenerateOptions { max_length: 2, ..generate }, ..options };
        engines.iter().for_each(|engine| (0..2).for_each(|_| drop(captions(engine, &images[..count], &short))));
        let ([recorded, replayed], [made, _]) = (with.graphs(), without.graphs());
        without.refuse_captures(true);
        let [actual, expected] = engines.each_ref().map(|engine| captions(engine, &images[..count], &options));
        without.refuse_captures(false);
        for (actual, expected) in actual.iter().zip(&expected) {
            assert_eq!(actual.tokens, expected.tokens, "{generate:?}");
        }
        let steps = actual.iter().map(|caption| caption.tokens.len() as u64).max().unwrap_or(0) - 1;
        let [recorded, replayed] = [with.graphs()[0] - recorded, with.graphs()[1] - replayed];
        assert!(recorded <= 2 + count as u64, "{recorded} graphs of {steps} steps, {generate:?}");
        assert!(replayed * 2 > steps, "{replayed} replays in {steps} steps, {generate:?}");
        assert_eq!(without.graphs()[0], made);
    }
}

/// Pixels go up and samples come down. In between the host sees units and how long each lasts, which decide how much work
/// there is, and no activation.
#[test]
fn what_passes_between_the_stages_stays_on_the_device() {
    let emulator = Arc::new(EmulatedDriver::new(1 << 30));
    let engine = Engine::embedded_on(emulator.clone(), DType::BF16).expect("an engine");
    let (image, beams) = (&images(1)[0], GenerateOptions { beams: 3, max_length: 20, ..Default::default() });
    let side = engine.config().image.size as u64;
    for (generate, tables) in [(GenerateOptions::default(), 8 << 10), (beams, 32 << 10)] {
        let before = emulator.crossed();
        let caption = engine.caption(image, &CaptionOptions { generate, ..Default::default() }).expect("a caption");
        let [up, down] = [0, 1].map(|way| emulator.crossed()[way] - before[way]);
        assert!(up - 4 * 3 * side * side < tables, "{up} bytes went up");
        assert!(down - 4 * (caption.samples.len() as u64) < tables, "{down} bytes came down");
    }
}

#[test]
fn memory_goes_back_to_its_level_and_its_end_is_said() {
    let emulator = Arc::new(EmulatedDriver::new(1 << 30));
    let image = &images(1)[0];
    {
        let engine = Engine::embedded_on(emulator.clone(), DType::BF16).expect("an engine");
        engine.caption(image, &units_only()).expect("a caption");
        assert!(emulator.in_use() > 10 << 20, "the weights are there");
    }
    assert_eq!(emulator.in_use(), 0);
    // Room for half of the weights; then for the weights and a little more.
    for (room, what) in [(6 << 20, "while loading"), (13 << 20, "while captioning")] {
        let small: Arc<dyn Driver> = Arc::new(EmulatedDriver::new(room));
        let result = Engine::embedded_on(small, DType::BF16).and_then(|engine| engine.caption(image, &units_only()));
        let error = result.map(|_| ()).expect_err(what).to_string();
        assert!(error.contains("out of memory"), "{what}: {error}");
    }
}

/// Whenever a listener or a caller goes away, the device is free for the next, and so is its memory in the end.
#[test]
fn an_end_at_any_point_frees_everything() {
    let emulator = Arc::new(EmulatedDriver::new(1 << 30));
    let image = &images(1)[0];
    let generate = GenerateOptions { max_length: 60, ..Default::default() };
    {
        let engine = Engine::embedded_on(emulator.clone(), DType::BF16).expect("an engine");
        let options = CaptionOptions { generate, ..Default::default() };
        let whole = engine.caption(image, &options).expect("a caption");
        for (chunks, pause) in [(0, 0), (0, 30), (0, 300), (1, 0), (2, 0)] {
            let mut stream = engine.stream_with(image, &options, 4);
            std::thread::sleep(std::time::Duration::from_millis(pause));
            for chunk in stream.by_ref().take(chunks) {
                chunk.expect("sound");
            }
        }
        let mut ended = 0;
        let read = |_| Some(Ok(image.clone()));
        let done = engine.caption_many(&read, &CaptionOptions { no_audio: true, ..options }, 2, &mut |_, caption| {
            assert_eq!(caption.expect("a caption").tokens, whole.tokens);
            ended += 1;
            ControlFlow::Break(())
        });
        done.expect("an end");
        assert_eq!(ended, 1);
        let sound: Vec<f32> = engine.stream(image, &options).flat_map(|chunk| chunk.expect("sound").samples).collect();
        assert_eq!(sound, whole.samples, "the device does what it did");
    }
    assert_eq!(emulator.in_use(), 0);
}

/// However many blocks the decoding loop has, and whatever it leaves to others.
#[test]
fn tokens_do_not_depend_on_the_multiprocessors() {
    let images = images(2);
    let options = GenerateOptions { max_length: 10, ..Default::default() };
    for dtype in [DType::BF16, DType::F32] {
        let mut expected = None;
        // 12, 11 and 14 blocks. Shares of too few would not fit, and the loop would be stepped through.
        let devices = [(12, SmBudget::All), (12, SmBudget::LeaveRoom), (16, SmBudget::LeaveRoom)];
        for (multiprocessors, budget) in devices {
            let driver = Arc::new(EmulatedDriver::with_multiprocessors(1 << 30, multiprocessors));
            let cuda = Cuda::new(driver.clone(), dtype).unwrap();
            let mut files = ModelFiles::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo")).unwrap();
            let mut loader = Loader { backend: &cuda, store: &mut files.captioner, dtype: Some(dtype) };
            let captioner = Captioner::load(&mut loader, &files.config).unwrap();
            let decoder = &captioner.decoder;
            let pixels: Vec<f32> = images.iter().flat_map(|image| image.preprocess(&files.config.image)).collect();
            let tokens = captioner.encode(&cuda, &pixels, 2).unwrap();
            let cache = captioner.prefill(&cuda, &tokens, 2, options.limit(decoder)).unwrap();
            let before = driver.launches();
            let said = generate(&cuda, decoder, cache, 2, &options, budget, &mut |_| ControlFlow::Continue(()));
            assert_eq!(driver.launches() - before, 1, "the whole loop is one launch");
            let said = said.unwrap();
            assert_eq!(expected.get_or_insert(said.clone()), &said, "{multiprocessors} {budget:?} {dtype:?}");
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

/// Two engines with streams of work of their own on one device, each used by two threads that caption and stream.
#[test]
fn threads_and_engines_beside_each_other_say_what_each_alone_would() {
    let emulator = Arc::new(EmulatedDriver::new(1 << 30));
    let images = images(2);
    let options =
        CaptionOptions { generate: GenerateOptions { max_length: 16, ..Default::default() }, ..Default::default() };
    {
        let engines =
            [emulator.clone(), emulator.clone()].map(|driver| Engine::embedded_on(driver, DType::BF16).unwrap());
        let alone = captions(&engines[0], &images, &options);
        std::thread::scope(|scope| {
            for engine in &engines {
                for turn in 0..2 {
                    let (images, alone, options) = (&images, &alone, &options);
                    scope.spawn(move || {
                        let mut stream = engine.stream_with(&images[turn], options, 3);
                        let chunks = stream.by_ref().map(|chunk| chunk.expect("sound").samples);
                        assert_eq!(chunks.collect::<Vec<_>>().concat(), alone[turn].samples);
                        assert_eq!(stream.tokens(), alone[turn].tokens);
                        let caption = engine.caption(&images[1 - turn], options).expect("a caption");
                        assert_eq!(caption.samples, alone[1 - turn].samples);
                    });
                }
            }
        });
    }
    assert_eq!(emulator.in_use(), 0);
}

#[test]
fn a_device_index_that_does_not_exist_is_an_error() {
    let options = LoadOptions { device: Device::Cuda(99), ..LoadOptions::default() };
    let error = Engine::embedded_with(options).map(|_| ()).expect_err("there are no hundred GPUs").to_string();
    assert!(error.contains("cuda:99"), "{error}");
}

/// Tokens come by way of the same host memory, caption after caption, however long they are.
#[test]
fn greedy_loops_pin_memory_once() {
    let spy = Spy::new(Arc::new(EmulatedDriver::with_multiprocessors(1 << 30, 12)));
    let engine = Engine::embedded_on(spy.clone(), DType::BF16).expect("an engine");
    let image = &images(1)[0];
    let caption = |max_length: usize| {
        let generate = GenerateOptions { max_length, ..Default::default() };
        engine.caption(image, &CaptionOptions { generate, ..units_only() }).expect("a caption").tokens
    };
    let first = caption(10);
    assert_eq!(spy.mapped.load(Ordering::Relaxed), 1, "the loop is one launch");
    for _ in 0..3 {
        assert_eq!(caption(10), first);
        assert_eq!(caption(5), first[..5]);
    }
    assert_eq!(spy.mapped.load(Ordering::Relaxed), 1);
}

/// A sequence is captured when its shape comes again: of sounds, most do not.
#[test]
fn sounds_are_captured_at_their_second_length() {
    let emulator = Arc::new(EmulatedDriver::new(1 << 30));
    let engine = Engine::embedded_on(emulator.clone(), DType::BF16).expect("an engine");
    let speak = |count: u32| engine.speak(&(0..count).collect::<Vec<_>>(), None).expect("speech").samples;
    let once = [1, 3, 6].map(speak);
    assert!(once[0].len() < once[1].len() && once[1].len() < once[2].len());
    assert_eq!(emulator.graphs(), [0, 0], "no length came twice");
    for graphs in [[1, 0], [1, 1], [1, 2]] {
        assert_eq!(speak(3), once[1]);
        assert_eq!(emulator.graphs(), graphs);
    }
}

/// A panic in a thread of the engine, wherever it happens: an error of the requests concerned, and the next are served.
#[test]
fn a_panic_is_an_error_of_the_requests_concerned() {
    let emulator: Arc<dyn Driver> = Arc::new(EmulatedDriver::new(1 << 30));
    let spy = Spy::new(emulator);
    let engine = Engine::embedded_on(spy.clone(), DType::F32).expect("an engine");
    let image = &images(1)[0];
    let sampling = Some(Sampling { temperature: 2.0, top_k: 0, top_p: 1.0, seed: 3 });
    let generate = GenerateOptions { sampling, max_length: 8, ..Default::default() };
    let options = CaptionOptions { generate, ..Default::default() };
    let expected = engine.caption(image, &options).expect("a caption");
    // Everything is recorded at its second sight; from then on every run starts as much.
    engine.caption(image, &options).expect("a caption");
    spy.fuse.store(1 << 30, Ordering::Relaxed);
    assert_eq!(engine.caption(image, &options).expect("a caption").samples, expected.samples);
    let launches = (1 << 30) - spy.fuse.load(Ordering::Relaxed);
    for part in 0..12 {
        spy.fuse.store(launches * part / 12, Ordering::Relaxed);
        match engine.caption(image, &options) {
            Err(error @ Error::Internal { .. }) => assert!(error.to_string().contains("planted"), "{error}"),
            other => panic!("{:?} is no error", other.map(|caption| caption.units)),
        }
        spy.fuse.store(i64::MAX, Ordering::Relaxed);
        let after = engine.caption(image, &options).expect("the engine works on");
        assert_eq!(after.samples, expected.samples);
    }
}
