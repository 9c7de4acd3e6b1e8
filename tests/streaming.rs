//! The promise of a stream: its chunks are the samples of the caption made at once, bit for bit, however they are cut and
//! whenever units arrive; what was told of a caption stays true; and a stream that is dropped leaves nothing behind.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Random, golden};
use im2sp::backend::Occupancy;
use im2sp::backend::cpu::Cpu;
use im2sp::config::{DurationConfig, VocoderConfig};
use im2sp::generate::{Compat, EarlyStopping, GenerateOptions, Sampling, generate};
use im2sp::model::decoder::Decoder;
use im2sp::model::loader::Loader;
use im2sp::model::vision::Vision;
use im2sp::model::vocoder::{Utterance, Vocoder, Voice};
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

fn picture(random: &mut Random) -> Image {
    let (width, height) = (1 + draw(random, 60), 1 + draw(random, 60));
    let rgb = (0..width * height * 3).map(|_| draw(random, 256) as u8).collect();
    Image::from_rgb(width, height, rgb).unwrap()
}

/// The vocoder of a model directory.
fn vocoder_of(name: &str) -> Vocoder<Cpu> {
    let files = ModelFiles::open(&golden(&format!("models/{name}"))).unwrap();
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
    config.vision = im2sp::config::VisionConfig { patch: 112, width: 4, layers: 1, heads: 1, mlp: 4, eps: 1e-5 };
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
    let embedded = {
        let files = ModelFiles::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo")).unwrap();
        let mut store = files.vocoder.unwrap();
        let loader = &mut Loader { backend: &Cpu, store: &mut store, dtype: None };
        Vocoder::load(loader, &files.config.vocoder.unwrap()).unwrap()
    };
    vec![
        ("small", vocoder_of("small")),
        ("embedded", embedded),
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
                let units = deduplicated(&units);
                let durations = vocoder.durations(&Cpu, &units).unwrap();
                vocoder.synthesize(&Cpu, &units, &durations, Voice { speaker, pitch: None }).unwrap()
            };
            let mut utterance = Utterance::in_chunks(speaker);
            let (mut arrived, mut sound, mut chunks) = (0, Vec::new(), 0);
            loop {
                if round % 5 > 0 {
                    utterance.next_chunk([1, 2, 7, 12, 40][draw(&mut random, 5)]);
                }
                if let Some(samples) = vocoder.advance(&Cpu, &mut utterance).unwrap() {
                    assert!(!samples.is_empty() && samples.len().is_multiple_of(vocoder.config().hop()));
                    sound.extend(samples);
                    chunks += 1;
                } else if arrived > units.len() {
                    break;
                } else if arrived == units.len() {
                    utterance.finish();
                    arrived += 1;
                } else {
                    let more = (1 + draw(&mut random, 3)).min(units.len() - arrived);
                    units[arrived..arrived + more].iter().for_each(|&unit| utterance.push(unit));
                    arrived += more;
                }
            }
            assert_eq!(sound.len(), whole.len(), "{name}: {count} units in {chunks} chunks");
            assert!(bits(&sound) == bits(&whole), "{name}: {count} units in {chunks} chunks");
        }
    }
}

/// Sound begins before all units are known.
#[test]
fn the_first_chunk_does_not_wait_for_the_last_unit() {
    let vocoder = vocoder_of("small");
    let mut utterance = Utterance::in_chunks(None);
    let mut pushed = 0;
    while vocoder.advance(&Cpu, &mut utterance).unwrap().is_none() {
        utterance.push(pushed % 200);
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
    for (name, engine) in [
        ("small", Engine::load(golden("models/small"), Device::Cpu).unwrap()),
        ("embedded", Engine::embedded().unwrap()),
    ] {
        for generate in settings() {
            // The smallest model is quick.
            for image in [picture(&mut random), picture(&mut random)].iter().take(if name == "small" { 2 } else { 1 }) {
                let options = CaptionOptions { generate, ..Default::default() };
                let caption = engine.caption(image, &options).unwrap();
                let mut stream = engine.stream(image, &options).first_chunk(1 + draw(&mut random, 20));
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

/// What is told of a result never shrinks, and the result begins with it.
#[test]
fn what_is_settled_stays() {
    for name in ["small", "wide_vision", "wide_decoder"] {
        let mut files = ModelFiles::open(&golden(&format!("models/{name}"))).unwrap();
        let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype: None };
        let vision = Vision::load(&mut loader, &files.config).unwrap();
        let decoder = Decoder::load(&mut loader, &files.config.decoder).unwrap();
        let side = files.config.image.size;
        let images = 2;
        let mut early = 0;
        for (seed, options) in settings().into_iter().enumerate() {
            let pixels = Random::new(seed as u64).values(images * 3 * side * side);
            let tokens = vision.tokens(&Cpu, &pixels, images).unwrap();
            let cache = decoder.prefill(&Cpu, &tokens, images, options.limit(&decoder)).unwrap();
            let mut heard = vec![Vec::new(); images];
            let mut told = |told: im2sp::generate::Told<'_>| {
                let before: &mut Vec<Vec<u32>> = &mut heard[told.image];
                assert!(told.length >= told.settled.len());
                assert!(before.last().is_none_or(|before| told.settled.starts_with(before)), "{options:?}");
                before.push(told.settled.to_vec());
                ControlFlow::Continue(())
            };
            let results = generate(&Cpu, &decoder, cache, images, &options, Occupancy::Whole, &mut told).unwrap();
            for (heard, result) in heard.iter().zip(&results) {
                assert!(!heard.is_empty());
                for settled in heard {
                    assert!(result.tokens.starts_with(settled), "{options:?}: {settled:?} of {:?}", result.tokens);
                }
                if options.beams == 1 {
                    assert_eq!(heard.last(), Some(&result.tokens), "all of a single sequence is certain");
                } else {
                    early += usize::from(heard[heard.len() / 2].len() > 1);
                }
            }
        }
        assert!(early > 10, "{name}: beams agree on something half way: {early} times");
    }
}

/// Threads of this process that decode a stream.
fn decoding_threads() -> usize {
    common::running_threads("im2sp-decode")
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

#[test]
fn a_dropped_stream_leaves_no_thread() {
    let _one = alone();
    let engine = Engine::embedded().unwrap();
    let picture = Image::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/scene.png")).unwrap();
    for beams in [1, 3] {
        let generate = GenerateOptions { beams, ..Default::default() };
        let options = CaptionOptions { generate, ..Default::default() };
        // After so many chunks, or so many microseconds into the work.
        for chunks in 0..12 {
            let mut stream = engine.stream(&picture, &options).first_chunk(1);
            for chunk in stream.by_ref().take(chunks) {
                chunk.unwrap();
            }
            drop(stream);
            assert_eq!(decoding_threads(), 0, "after {chunks} chunks");
        }
        for pause in (0..30).map(|n| std::time::Duration::from_micros(n * 700)) {
            let stream = engine.stream(&picture, &options);
            std::thread::sleep(pause);
            drop(stream);
            assert_eq!(decoding_threads(), 0, "after {pause:?}");
        }
    }
    // A stream may outlive its engine.
    let stream = engine.stream(&picture, &CaptionOptions::default());
    drop(engine);
    assert!(stream.map(|chunk| chunk.unwrap().samples.len()).sum::<usize>() > 16_000);
    assert_eq!(decoding_threads(), 0);
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
    let picture = picture(&mut Random::new(3));
    for beams in [1, 4] {
        let options =
            CaptionOptions { generate: GenerateOptions { beams, ..Default::default() }, ..Default::default() };
        let caption = engine.caption(&picture, &options).unwrap();
        assert_eq!((&caption.tokens[..], caption.samples.len()), (&[BOS, EOS][..], 0));
        let mut stream = engine.stream(&picture, &options);
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
        let speaks = |picture: &Image| !engine.caption(picture, &silent).is_ok_and(|caption| caption.units.is_empty());
        let picture = (0..20).map(|seed| picture(&mut Random::new(seed))).find(speaks).unwrap();
        let mut stream = engine.stream(&picture, &options);
        let error = stream.find_map(|chunk| chunk.err()).unwrap_or_else(|| panic!("no error: {word}")).to_string();
        assert!(error.contains(word), "{error}");
        assert!(stream.next().is_none(), "{word}");
        if !options.no_audio {
            assert_eq!(engine.caption(&picture, &options).unwrap_err().to_string(), error);
        }
    }
    assert_eq!(decoding_threads(), 0);
}
