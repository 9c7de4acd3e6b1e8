//! Streams: their chunks are the samples of the whole caption, bit for bit, however they are cut and whenever units arrive;
//! units once reported are never retracted; a dropped stream frees its slot; long lists of units are spoken in flat memory.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Random, golden};
use im2sp::backend::SmBudget;
use im2sp::backend::cpu::Cpu;
use im2sp::config::{DurationConfig, VocoderConfig};
use im2sp::generate::{Compat, EarlyStopping, GenerateOptions, Sampling, TokenEvent, generate};
use im2sp::model::captioner::Captioner;
use im2sp::model::loader::Loader;
use im2sp::model::vocoder::{Synthesis, Vocoder, Voice};
use im2sp::tensor::{DType, HostTensor};
use im2sp::units::{BOS, EOS, deduplicated};
use im2sp::weights::{ModelFiles, TensorStore, random};
use im2sp::{CaptionOptions, Device, Engine, Image};

/// Tests that count threads must not see those of the others.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bits(samples: &[f32]) -> Vec<u32> {
    samples.iter().map(|sample| sample.to_bits()).collect()
}

/// A number below `below`.
fn draw(random: &mut Random, below: usize) -> usize {
    let unit = (random.values(1)[0] + 1.0) / 2.0;
    ((unit * below as f32) as usize).min(below - 1)
}

fn image(random: &mut Random) -> Image {
    let (width, height) = (1 + draw(random, 60), 1 + draw(random, 60));
    let rgb = (0..width * height * 3).map(|_| draw(random, 256) as u8).collect();
    Image::from_rgb(width, height, rgb).unwrap()
}

/// The vocoder of a golden model.
fn vocoder_of(name: &str) -> Vocoder<Cpu> {
    vocoder_in(&golden(&format!("models/{name}")))
}

/// The vocoder of a model directory.
fn vocoder_in(directory: &Path) -> Vocoder<Cpu> {
    let files = ModelFiles::open(directory).unwrap();
    let config = files.config.vocoder.unwrap();
    let mut store = files.vocoder.unwrap();
    Vocoder::load(&mut Loader { backend: &Cpu, store: &mut store, dtype: None }, &config).unwrap()
}

/// A vocoder of random weights, whose units last one to a few frames.
fn random_vocoder(change: impl FnOnce(&mut VocoderConfig)) -> Vocoder<Cpu> {
    let mut config = random::published();
    let vocoder = config.vocoder.as_mut().unwrap();
    (vocoder.upsample_initial_channel, vocoder.embedding_dim, vocoder.model_in_dim) = (32, 8, 8);
    change(vocoder);
    config.vision = im2sp::config::VisionConfig {
        patch: 112,
        width: 4,
        layers: 1,
        heads: 1,
        mlp: 4,
        eps: 1e-5,
        units: None,
        efficient_net: None,
    };
    (config.decoder.width, config.decoder.layers, config.decoder.mlp, config.decoder.heads) = (4, 1, 4, 1);
    config.check().unwrap();
    let config_of_vocoder = config.vocoder.clone().unwrap();
    let files = random::files(config, DType::F32).unwrap();
    let mut tensors: BTreeMap<String, HostTensor> =
        files.vocoder.unwrap().iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    if let Some(projection) = tensors.get_mut("dur_predictor.proj.weight") {
        let louder = projection.to_f32().iter().map(|v| v * 1.5).collect();
        *projection = HostTensor::from_f32(projection.shape(), louder).unwrap();
    }
    if let Some(speakers) = config_of_vocoder.num_speakers {
        let shape = [speakers, config_of_vocoder.embedding_dim];
        let table = HostTensor::from_f32(&shape, Random::new(8).values(shape[0] * shape[1])).unwrap();
        tensors.insert("spkr.weight".into(), table);
    }
    let mut store = TensorStore::new(Path::new("<random>"), tensors);
    let loader = &mut Loader { backend: &Cpu, store: &mut store, dtype: None };
    let vocoder = Vocoder::load(loader, &config_of_vocoder).unwrap();
    store.finish().unwrap();
    vocoder
}

/// Winograd's form and the direct one, odd strides, dilations whose runs begin seldom, predictors of every reach and none.
fn vocoders() -> Vec<(&'static str, Vocoder<Cpu>)> {
    vec![
        ("small", vocoder_of("small")),
        ("scenes", vocoder_in(&common::scenes::directory())),
        ("as published, narrow", random_vocoder(|config| config.upsample_initial_channel = 128)),
        (
            "odd strides",
            random_vocoder(|config| {
                (config.upsample_rates, config.upsample_kernel_sizes) = (vec![3, 7], vec![9, 7]);
                config.upsample_initial_channel = 132;
                config.resblock_kernel_sizes = vec![11, 5];
                config.resblock_dilation_sizes = vec![vec![2, 7], vec![1]];
                config.duration = Some(DurationConfig { hidden: 40, kernel: 7 });
            }),
        ),
        (
            "one stage, one speaker of three, one frame each",
            random_vocoder(|config| {
                (config.upsample_rates, config.upsample_kernel_sizes) = (vec![1], vec![1]);
                config.upsample_initial_channel = 64;
                config.resblock_kernel_sizes = vec![7];
                config.resblock_dilation_sizes = vec![vec![255]];
                config.duration = None;
                (config.num_speakers, config.model_in_dim) = (Some(3), 16);
            }),
        ),
    ]
}

#[test]
fn any_chunks_of_any_units_are_those_of_the_whole() {
    let _one = alone();
    let mut random = Random::new(11);
    for (name, vocoder) in vocoders() {
        let speaker = vocoder.config().num_speakers.map(|speakers| speakers as u32 - 1);
        for round in 0..20 {
            let count = 1 + draw(&mut random, [1, 4, 30, 120][round % 4]);
            // Few different ones, so that there are repetitions.
            let units: Vec<u32> = (0..count).map(|_| (draw(&mut random, 12) * 9) as u32).collect();
            let whole = {
                // Where a unit lasts a frame, each of its repeats lasts another.
                let predicts = vocoder.config().duration.is_some();
                let units = if predicts { deduplicated(&units) } else { units.clone() };
                let durations = vocoder.durations(&Cpu, &units).unwrap();
                vocoder.synthesize(&Cpu, &units, &durations, Voice { speaker, pitch: None }).unwrap()
            };
            let mut synthesis = Synthesis::in_chunks(vocoder.config(), speaker);
            let (mut arrived, mut sound, mut chunks) = (0, Vec::new(), 0);
            loop {
                if round % 5 > 0 {
                    synthesis.limit_chunk([1, 2, 7, 12, 40][draw(&mut random, 5)]);
                }
                if let Some(samples) = vocoder.next_chunk(&Cpu, &mut synthesis).unwrap() {
                    assert!(!samples.is_empty() && samples.len().is_multiple_of(vocoder.config().hop()));
                    sound.extend(samples);
                    chunks += 1;
                } else if arrived > units.len() {
                    break;
                } else if arrived == units.len() {
                    synthesis.finish();
                    arrived += 1;
                } else {
                    let more = (1 + draw(&mut random, 3)).min(units.len() - arrived);
                    synthesis.extend(&units[arrived..arrived + more]);
                    arrived += more;
                }
            }
            assert!(synthesis.is_done());
            assert_eq!(sound.len(), whole.len(), "{name}: {count} units in {chunks} chunks");
            assert!(bits(&sound) == bits(&whole), "{name}: {count} units in {chunks} chunks");
        }
    }
}

/// Sound begins before all units are known.
#[test]
fn the_first_chunk_does_not_wait_for_the_last_unit() {
    let vocoder = vocoder_of("small");
    let mut synthesis = Synthesis::in_chunks(vocoder.config(), None);
    let mut pushed = 0;
    while vocoder.next_chunk(&Cpu, &mut synthesis).unwrap().is_none() {
        synthesis.extend(&[pushed % 200]);
        pushed += 1;
        assert!(pushed < 60, "nothing is said before {pushed} units");
    }
    assert!(pushed > 3, "the margin has to be known");
}

fn settings() -> Vec<GenerateOptions> {
    let base = GenerateOptions { max_length: 40, ..Default::default() };
    let sampling = |seed| Some(Sampling { temperature: 1.3, top_k: 20, top_p: 0.95, seed });
    let mut all = vec![
        base,
        GenerateOptions { compat: Compat::Reference, ..base },
        GenerateOptions { max_length: 2, ..base },
        GenerateOptions { max_length: 3, compat: Compat::Reference, ..base },
    ];
    for seed in 0..3 {
        all.push(GenerateOptions { sampling: sampling(seed), ..base });
        all.push(GenerateOptions { sampling: sampling(seed), compat: Compat::Reference, ..base });
    }
    for beams in [2, 3, 5] {
        for length_penalty in [-1.0, 0.0, 1.0, 2.0] {
            for early_stopping in [EarlyStopping::Yes, EarlyStopping::Heuristic, EarlyStopping::Never] {
                all.push(GenerateOptions { beams, length_penalty, early_stopping, ..base });
            }
            all.push(GenerateOptions { beams, length_penalty, compat: Compat::Reference, ..base });
        }
    }
    all
}

#[test]
fn a_stream_is_the_caption() {
    let _one = alone();
    let mut random = Random::new(12);
    for (name, engine) in
        [("small", Engine::load(golden("models/small"), Device::Cpu).unwrap()), ("scenes", common::scenes::engine())]
    {
        for generate in settings() {
            // The smallest model is quick.
            for image in [image(&mut random), image(&mut random)].iter().take(if name == "small" { 2 } else { 1 }) {
                let options = CaptionOptions { generate, ..Default::default() };
                let caption = engine.caption(image, &options).unwrap();
                let mut stream = engine.stream_with(image, &options, 1 + draw(&mut random, 20));
                assert_eq!(stream.sample_rate(), caption.sample_rate);
                let mut sound = Vec::new();
                for chunk in stream.by_ref() {
                    let chunk = chunk.unwrap();
                    assert_eq!(chunk.sample_rate, caption.sample_rate);
                    sound.extend(chunk.samples);
                }
                assert!(bits(&sound) == bits(&caption.samples), "{name} {generate:?}: {}", sound.len());
                assert_eq!(stream.tokens(), caption.tokens, "{name} {generate:?}");
                assert_eq!(stream.units(), caption.units, "{name} {generate:?}");
                assert!(stream.next().is_none());
            }
        }
    }
}

/// The stable prefix of a result never shrinks, and the result begins with it.
#[test]
fn a_stable_prefix_stays() {
    for name in ["small", "wide_vision", "wide_decoder"] {
        let mut files = ModelFiles::open(&golden(&format!("models/{name}"))).unwrap();
        let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype: None };
        let captioner = Captioner::load(&mut loader, &files.config).unwrap();
        let (decoder, side) = (&captioner.decoder, files.config.image.size);
        let images = 2;
        let mut early = 0;
        for (seed, options) in settings().into_iter().enumerate() {
            let pixels = Random::new(seed as u64).values(images * 3 * side * side);
            let tokens = captioner.encode(&Cpu, &pixels, images).unwrap();
            let cache = captioner.prefill(&Cpu, &tokens, images, options.limit(decoder)).unwrap();
            let mut prefixes: Vec<Vec<Vec<u32>>> = vec![Vec::new(); images];
            let mut on_token = |event: TokenEvent<'_>| {
                let before = &mut prefixes[event.image];
                assert!(event.length >= event.stable_prefix.len());
                assert!(before.last().is_none_or(|before| event.stable_prefix.starts_with(before)), "{options:?}");
                before.push(event.stable_prefix.to_vec());
                ControlFlow::Continue(())
            };
            let results = generate(&Cpu, decoder, cache, images, &options, SmBudget::All, &mut on_token).unwrap();
            for (prefixes, result) in prefixes.iter().zip(&results) {
                assert!(!prefixes.is_empty());
                for prefix in prefixes {
                    assert!(result.tokens.starts_with(prefix), "{options:?}: {prefix:?} of {:?}", result.tokens);
                }
                if options.beams == 1 {
                    assert_eq!(prefixes.last(), Some(&result.tokens), "all of a single sequence is certain");
                } else {
                    early += usize::from(prefixes[prefixes.len() / 2].len() > 1);
                }
            }
        }
        assert!(early > 10, "{name}: beams agree on something half way: {early} times");
    }
}

/// A sequence ends where its listener says so, and its neighbour does not notice.
#[test]
fn a_break_ends_one_sequence() {
    let mut files = ModelFiles::open(&golden("models/small")).unwrap();
    let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype: None };
    let captioner = Captioner::load(&mut loader, &files.config).unwrap();
    let side = files.config.image.size;
    let tokens = captioner.encode(&Cpu, &Random::new(4).values(2 * 3 * side * side), 2).unwrap();
    for options in settings() {
        let results = [usize::MAX, 4].map(|max| {
            let cache = captioner.prefill(&Cpu, &tokens, 2, options.limit(&captioner.decoder)).unwrap();
            let mut on_token = |event: TokenEvent<'_>| match event.image {
                1 if event.length >= max => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
            generate(&Cpu, &captioner.decoder, cache, 2, &options, SmBudget::All, &mut on_token).unwrap()
        });
        assert_eq!(results[0][0], results[1][0], "{options:?}");
        if options.beams == 1 && results[0][1].tokens.len() > 4 {
            assert_eq!(results[1][1].tokens, results[0][1].tokens[..4], "{options:?}");
        }
    }
}

/// Threads of this process that belong to engines.
fn engine_threads() -> usize {
    common::running_threads("im2sp-captioner") + common::running_threads("im2sp-vocoder")
}

#[cfg(target_os = "linux")]
#[test]
fn a_thread_counts_until_it_has_been_joined() {
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::Builder::new().name("counted".into()).spawn(move || ended.recv()).unwrap();
    while common::running_threads("counted") == 0 {
        // It names itself once it runs.
        std::thread::yield_now();
    }
    assert_eq!(common::running_threads("counted"), 1);
    drop(end);
    assert!(thread.join().unwrap().is_err());
    assert_eq!(common::running_threads("counted"), 0);
}

/// An engine has two threads, whatever becomes of its streams; they end with it, or with the last stream.
#[cfg(target_os = "linux")]
#[test]
fn a_dropped_stream_leaves_no_thread() {
    let _one = alone();
    let engine = common::scenes::engine();
    let image = Image::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/scene.png")).unwrap();
    let whole = engine.caption(&image, &CaptionOptions::default()).unwrap();
    for beams in [1, 3] {
        let generate = GenerateOptions { beams, ..Default::default() };
        let options = CaptionOptions { generate, ..Default::default() };
        // After so many chunks, or so many microseconds into the work.
        for chunks in 0..12 {
            let mut stream = engine.stream_with(&image, &options, 1);
            for chunk in stream.by_ref().take(chunks) {
                chunk.unwrap();
            }
            drop(stream);
            assert_eq!(engine_threads(), 2, "after {chunks} chunks");
        }
        for pause in (0..30).map(|n| std::time::Duration::from_micros(n * 700)) {
            let stream = engine.stream(&image, &options);
            std::thread::sleep(pause);
            drop(stream);
            assert_eq!(engine_threads(), 2, "after {pause:?}");
        }
    }
    // What was dropped is in nobody's way.
    let after = engine.caption(&image, &CaptionOptions::default()).unwrap();
    assert!(bits(&after.samples) == bits(&whole.samples));
    let stream = engine.stream(&image, &CaptionOptions::default());
    drop(engine);
    assert_eq!(engine_threads(), 2, "a stream may outlive its engine");
    assert!(stream.map(|chunk| chunk.unwrap().samples.len()).sum::<usize>() > 16_000);
    assert_eq!(engine_threads(), 0);
    let engine = common::scenes::engine();
    let stream = engine.stream(&image, &CaptionOptions::default());
    drop(stream);
    drop(engine);
    assert_eq!(engine_threads(), 0, "in the midst of a caption");
}

/// The small model with one tensor changed.
fn changed(name: &str, change: impl Fn(&mut Vec<f32>)) -> Engine {
    let files = ModelFiles::open(&golden("models/small")).unwrap();
    let tensors = |store: &TensorStore| -> BTreeMap<String, HostTensor> {
        let change = |(key, tensor): (&str, &HostTensor)| {
            let mut values = tensor.to_f32().into_owned();
            if key == name {
                change(&mut values);
            }
            (key.to_string(), HostTensor::from_f32(tensor.shape(), values).unwrap())
        };
        store.iter().map(change).collect()
    };
    let directory = tempfile::TempDir::new().unwrap();
    let vocoder = files.vocoder.as_ref().map(tensors);
    ModelFiles::write(directory.path(), &files.config, &tensors(&files.captioner), vocoder.as_ref(), true).unwrap();
    Engine::load(directory.path(), Device::Cpu).unwrap()
}

#[test]
fn a_caption_without_units_has_no_sound() {
    let _one = alone();
    let engine = changed("decoder.output_bias", |bias| bias[EOS as usize] = 1e4);
    let image = image(&mut Random::new(3));
    for beams in [1, 4] {
        let options =
            CaptionOptions { generate: GenerateOptions { beams, ..Default::default() }, ..Default::default() };
        let caption = engine.caption(&image, &options).unwrap();
        assert_eq!((&caption.tokens[..], caption.samples.len()), (&[BOS, EOS][..], 0));
        let mut stream = engine.stream(&image, &options);
        assert!(stream.next().is_none());
        assert_eq!(stream.tokens(), caption.tokens);
    }
}

#[test]
fn errors_come_once_and_end_the_stream() {
    let _one = alone();
    let load = |name: &str| Engine::load(golden(&format!("models/{name}")), Device::Cpu).unwrap();
    let plain = CaptionOptions::default();
    let no_beams = CaptionOptions { generate: GenerateOptions { beams: 0, ..plain.generate }, ..plain };
    for (engine, options, word) in [
        (changed("decoder.layers.0.fc1.weight", |values| values[17] = f32::NAN), plain, "NaN"),
        (changed("conv_post.bias", |values| values[0] = f32::NAN), plain, "NaN"),
        (changed("dur_predictor.proj.bias", |values| values[0] = f32::NAN), plain, "NaN"),
        (changed("dur_predictor.proj.bias", |values| values[0] = 50.0), plain, "frames"),
        (load("wide_decoder"), plain, "f0"),
        (load("wide_vision"), plain, "no vocoder"),
        (load("small"), no_beams, "beam"),
        (load("small"), CaptionOptions { speaker: Some(1), ..plain }, "speaker"),
        (load("small"), CaptionOptions { no_audio: true, ..plain }, "no-audio"),
    ] {
        // One that has something to say.
        let silent = CaptionOptions { no_audio: true, ..plain };
        let speaks = |image: &Image| !engine.caption(image, &silent).is_ok_and(|caption| caption.units.is_empty());
        let image = (0..20).map(|seed| image(&mut Random::new(seed))).find(speaks).unwrap();
        let mut stream = engine.stream(&image, &options);
        let error = stream.find_map(|chunk| chunk.err()).unwrap_or_else(|| panic!("no error: {word}")).to_string();
        assert!(error.contains(word), "{error}");
        assert!(stream.next().is_none(), "{word}");
        if !options.no_audio {
            assert_eq!(engine.caption(&image, &options).unwrap_err().to_string(), error);
        }
    }
}

/// Bytes of this process in memory, the most there have been.
#[cfg(target_os = "linux")]
fn most_resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) << 10
}

/// Lists of any length: the same samples whole, in chunks and all in one convolution.
#[test]
fn long_lists_of_units_are_spoken_in_chunks() {
    let _one = alone();
    let engine = Engine::load(golden("models/small"), Device::Cpu).unwrap();
    let vocoder = vocoder_of("small");
    let mut random = Random::new(21);
    for count in [1, 40, 1023, 1024, 1025, 5000] {
        let units: Vec<u32> = (0..count).map(|_| draw(&mut random, 200) as u32).collect();
        let once = deduplicated(&units);
        let durations = vocoder.durations(&Cpu, &once).unwrap();
        let expected = bits(&vocoder.synthesize(&Cpu, &once, &durations, Voice::default()).unwrap());
        assert!(bits(&engine.speak(&units, None).unwrap().samples) == expected, "{count} units");
        let chunks: Vec<Vec<f32>> =
            engine.speak_in_chunks(&units, None).unwrap().map(|chunk| chunk.unwrap().samples).collect();
        assert!(bits(&chunks.concat()) == expected, "{count} units in {} chunks", chunks.len());
        let max = 2048 * vocoder.config().hop();
        assert!(chunks.iter().all(|chunk| chunk.len() < max), "{count} units");
    }
}

/// Without predicted durations a unit lasts a frame and each of its repeats another; with them, repeats are one unit.
#[test]
fn repeats_are_dropped_where_durations_are_predicted() {
    let _one = alone();
    let mut files = ModelFiles::open(&golden("models/small")).unwrap();
    let tensors = |store: &TensorStore| -> BTreeMap<String, HostTensor> {
        let kept = store.iter().filter(|(name, _)| !name.starts_with("dur_predictor."));
        kept.map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
    };
    let (captioner, vocoder) = (tensors(&files.captioner), files.vocoder.as_ref().map(tensors));
    files.config.vocoder.as_mut().unwrap().duration = None;
    let directory = tempfile::TempDir::new().unwrap();
    ModelFiles::write(directory.path(), &files.config, &captioner, vocoder.as_ref(), true).unwrap();
    let units = [50, 50, 50, 7, 7, 99, 5, 5];
    let spoken = Engine::load(directory.path(), Device::Cpu).unwrap().speak(&units, None).unwrap().samples;
    let vocoder = vocoder_in(directory.path());
    assert_eq!(spoken.len(), units.len() * vocoder.config().hop());
    let expected = vocoder.synthesize(&Cpu, &units, &[1; 8], Voice::default()).unwrap();
    assert!(bits(&spoken) == bits(&expected));
    let predicting = Engine::load(golden("models/small"), Device::Cpu).unwrap();
    let speak = |units: &[u32]| bits(&predicting.speak(units, None).unwrap().samples);
    assert!(speak(&units) == speak(&deduplicated(&units)));
}

/// Ten times as many units take no more memory while they are spoken in chunks, and the samples alone when whole.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_units() {
    let _one = alone();
    let engine = common::scenes::engine();
    let units = |count: u32| -> Vec<u32> { (0..count).map(|n| n * 7 % 100).collect() };
    let samples = |count: u32| -> usize {
        let stream = engine.speak_in_chunks(&units(count), None).unwrap();
        stream.map(|chunk| chunk.unwrap().samples.len()).sum()
    };
    assert!(samples(2000) > 30 * 16_000);
    let before = most_resident();
    let spoken = samples(8000);
    assert!(spoken > 120 * 16_000);
    let grown = most_resident() - before;
    assert!(grown < 8 << 20, "{grown} bytes more for four times the units");
    let whole = engine.speak(&units(8000), None).unwrap();
    assert_eq!(whole.samples.len(), spoken);
    let grown = most_resident() - before;
    // A vector that grows holds its old and its new memory for a moment.
    assert!(grown < 4 * spoken * size_of::<f32>(), "{grown} bytes more for {spoken} samples");
}

/// A listener who stops taking chunks stops the work, and is in nobody's way.
#[test]
fn chunks_are_made_as_they_are_taken() {
    let _one = alone();
    let engine = Engine::load(golden("models/small"), Device::Cpu).unwrap();
    let units: Vec<u32> = (0..20_000).map(|n| n % 200).collect();
    let mut waiting = engine.speak_in_chunks(&units, None).unwrap();
    let first = waiting.next().unwrap().unwrap();
    let others = engine.speak(&units[..100], None).unwrap();
    assert!(!others.samples.is_empty());
    let rest: usize = waiting.map(|chunk| chunk.unwrap().samples.len()).sum();
    assert!(rest > 2 * first.samples.len());
    for wrong in [vec![], vec![1, 999_999]] {
        let error = engine.speak_in_chunks(&wrong, None).and_then(|stream| stream.collect::<im2sp::Result<Vec<_>>>());
        let (error, expected) = (error.unwrap_err().to_string(), engine.speak(&wrong, None).unwrap_err().to_string());
        assert_eq!(error, expected);
    }
}
