//! Tests of the engine that need the emulator, whatever device the others run on: they look into its memory, its launches and
//! its graphs, or give it other properties.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use im2sp::backend::SmBudget;
use im2sp::backend::cuda::Cuda;
use im2sp::backend::cuda::driver::Driver;
use im2sp::backend::cuda::driver::emulator::EmulatedDriver;
use im2sp::generate::{GenerateOptions, Sampling, generate};
use im2sp::model::captioner::Captioner;
use im2sp::model::loader::Loader;
use im2sp::tensor::DType;
use im2sp::{CaptionOptions, Engine, Error};

use super::spy::Spy;
use super::{captions, images, scenes, units_only};

fn engine_on(driver: Arc<dyn Driver>, dtype: DType) -> Engine {
    Engine::on_driver(driver, scenes::files(), dtype).expect("an engine")
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
    let engines = [&with, &without].map(|driver| engine_on(driver.clone(), DType::BF16));
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
    let engine = engine_on(emulator.clone(), DType::BF16);
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
        let engine = engine_on(emulator.clone(), DType::BF16);
        engine.caption(image, &units_only()).expect("a caption");
        assert!(emulator.in_use() > 10 << 20, "the weights are there");
    }
    assert_eq!(emulator.in_use(), 0);
    // Room for half of the weights; then for the weights and a little more.
    for (room, what) in [(6 << 20, "while loading"), (13 << 20, "while captioning")] {
        let small: Arc<dyn Driver> = Arc::new(EmulatedDriver::new(room));
        let result = Engine::on_driver(small, scenes::files(), DType::BF16)
            .and_then(|engine| engine.caption(image, &units_only()));
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
        let engine = engine_on(emulator.clone(), DType::BF16);
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
            let mut files = scenes::files();
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

/// Captions and their sound are the same bits where pairs of blocks take the products, plainly and in graphs.
#[test]
fn pairs_of_blocks_change_no_caption() {
    let images = images(2);
    let options =
        CaptionOptions { generate: GenerateOptions { max_length: 8, ..Default::default() }, ..Default::default() };
    let [(single, none), (pairs, some)] = [false, true].map(|pairs| {
        let driver = EmulatedDriver::with_properties(1 << 30, |properties| {
            (properties.multiprocessors, properties.pairs) = (2, pairs);
        });
        let spy = Spy::new(Arc::new(driver));
        let engine = engine_on(spy.clone(), DType::BF16);
        let said = [(); 3].map(|()| captions(&engine, &images, &options));
        (said, spy.tensor_maps.load(Ordering::Relaxed))
    });
    assert!(none == 0 && some > 0, "{none} and {some} maps");
    for (single, pairs) in single.iter().flatten().zip(pairs.iter().flatten()) {
        assert_eq!((&single.tokens, &single.samples), (&pairs.tokens, &pairs.samples));
    }
}

/// Two engines with streams of work of their own on one device, each used by two threads that caption and stream.
#[test]
fn threads_and_engines_beside_each_other_say_what_each_alone_would() {
    let emulator = Arc::new(EmulatedDriver::new(1 << 30));
    let images = images(2);
    let options =
        CaptionOptions { generate: GenerateOptions { max_length: 16, ..Default::default() }, ..Default::default() };
    {
        let engines = [emulator.clone(), emulator.clone()].map(|driver| engine_on(driver, DType::BF16));
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

/// Tokens come by way of the same host memory, caption after caption, however long they are.
#[test]
fn greedy_loops_pin_memory_once() {
    let spy = Spy::new(Arc::new(EmulatedDriver::with_multiprocessors(1 << 30, 12)));
    let engine = engine_on(spy.clone(), DType::BF16);
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
    let engine = engine_on(emulator.clone(), DType::BF16);
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
    let engine = engine_on(spy.clone(), DType::F32);
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

/// The same while work is captured: the stream is as it was, and the next caption captures the work.
#[test]
fn a_panic_in_a_capture_costs_one_caption() {
    let image = &images(1)[0];
    // Too short for steps to be captured: only the vision encoder is.
    let generate = GenerateOptions { max_length: 2, ..Default::default() };
    let (emulator, caption) = (Arc::new(EmulatedDriver::new(1 << 30)), CaptionOptions { generate, ..units_only() });
    let spy = Spy::new(emulator.clone());
    let engine = engine_on(spy.clone(), DType::BF16);
    let units = engine.caption(image, &caption).expect("a caption").units;
    spy.capture_fuse.store(3, Ordering::Relaxed);
    let error = engine.caption(image, &caption).map(|caption| caption.units).expect_err("a planted panic");
    assert!(error.to_string().contains("planted"), "{error}");
    assert_eq!(emulator.graphs(), [1, 0], "the capture was ended");
    for graphs in [[1, 0], [2, 0], [2, 1]] {
        assert_eq!(engine.caption(image, &caption).expect("the engine works on").units, units);
        assert_eq!(emulator.graphs(), graphs);
    }
}
