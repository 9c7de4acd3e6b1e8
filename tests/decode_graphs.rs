//! Decode steps as graphs: recorded when their kind comes again, replayed to the bits of plain steps, and waiting with
//! their memory for the next cache of the same shape.
#![cfg(feature = "emulator")]

use std::ops::ControlFlow;
use std::sync::Arc;

use im2sp::backend::cuda::Cuda;
use im2sp::backend::cuda::driver::emulator::EmulatedDriver;
use im2sp::backend::prelude::*;
use im2sp::backend::{CacheRow, Device as _, SmBudget};
use im2sp::config::DecoderConfig;
use im2sp::model::decoder::Decoder;
use im2sp::model::loader::Loader;
use im2sp::random::Random;
use im2sp::tensor::DType;
use im2sp::weights::random;

/// Image tokens of an image.
const PREFIX: usize = 5;
/// Steps of a kind before it is recorded.
const BEFORE: u64 = 2;

/// A small decoder on a device of its own.
struct Device {
    emulator: Arc<EmulatedDriver>,
    cuda: Cuda,
    decoder: Decoder<Cuda>,
}

/// The live rows of every step.
type Scenario = Vec<Vec<CacheRow>>;

impl Device {
    fn new(dtype: DType) -> Device {
        Device::with(dtype, EmulatedDriver::new(1 << 30), [64, 2])
    }

    /// A decoder of a width and so many heads.
    fn with(dtype: DType, driver: EmulatedDriver, [width, heads]: [usize; 2]) -> Device {
        let emulator = Arc::new(driver);
        let cuda = Cuda::new(emulator.clone(), dtype).expect("a backend");
        let mut config = random::published();
        (config.vision.layers, config.vocoder) = (0, None);
        config.decoder = DecoderConfig { width, layers: 2, heads, mlp: 96, max_positions: 200, ..config.decoder };
        let mut files = random::files(config.clone(), dtype).expect("weights");
        let mut loader = Loader { backend: &cuda, store: &mut files.captioner, dtype: Some(dtype) };
        let decoder = Decoder::load(&mut loader, &config.decoder).expect("a decoder");
        Device { emulator, cuda, decoder }
    }

    /// The logits of every step, in a cache of its own. A sequence that begins in the midst of others has a new image.
    fn run(&self, images: usize, scenario: &Scenario) -> im2sp::Result<Vec<Vec<f32>>> {
        let (cuda, decoder, width) = (&self.cuda, &self.decoder, self.decoder.config().width);
        let mut random = Random::new(5);
        let mut prefixes =
            |count: usize| cuda.sequence([count * PREFIX, width], &random.values(count * PREFIX * width));
        let mut cache = decoder.prefill(cuda, &prefixes(images)?, images, scenario.len())?;
        let mut logits = Vec::new();
        let mut before = 0;
        for (step, rows) in scenario.iter().enumerate() {
            for begun in rows.iter().filter(|row| step > 0 && row.parent.is_none()) {
                decoder.prefill_into(cuda, &mut cache, &[begun.image], &prefixes(1)?)?;
            }
            if rows.len() != before || rows.iter().enumerate().any(|(r, row)| row.parent != Some(r)) {
                cuda.kv_reorder(&mut cache, rows)?;
            }
            before = rows.len();
            let ids: Vec<u32> = (0..rows.len()).map(|r| (step * 7 + r * 31) as u32 % 203).collect();
            logits.push(cuda.download(&decoder.step(cuda, &mut cache, &ids)?)?);
        }
        Ok(logits)
    }
}

/// The same row for each image, `steps` times.
fn steady(images: usize, steps: usize) -> Scenario {
    let rows = |step: usize| move |image| CacheRow { image, parent: (step > 0).then_some(image) };
    (0..steps).map(|step| (0..images).map(rows(step)).collect()).collect()
}

/// Beams that change places in every step.
fn beams(images: usize, beams: usize, steps: usize) -> Scenario {
    let mut random = Random::new(beams as u64);
    let mut scenario = steady(images, 1);
    for step in 1..steps {
        let siblings = if step == 1 { 1 } else { beams };
        let mut row = |r: usize| {
            let image = r / beams;
            CacheRow { image, parent: Some(image * siblings + random.below(siblings)) }
        };
        scenario.push((0..images * beams).map(&mut row).collect());
    }
    scenario
}

/// Sequences that end, one every eight steps; where `refill`, another takes their slot in the next step.
fn ending(images: usize, steps: usize, refill: bool) -> Scenario {
    let mut scenario = steady(images, 1);
    for step in 1..steps {
        let ends = step % 8 == 0;
        let last = &scenario[step - 1];
        let gone = if ends { step * 5 % last.len() } else { last.len() };
        let begun = last.get(gone).filter(|_| refill).map(|row| CacheRow { image: row.image, parent: None });
        let others = (0..last.len()).filter(|&r| r != gone);
        let rows = others.map(|r| CacheRow { image: last[r].image, parent: Some(r) }).chain(begun).collect();
        scenario.push(rows);
    }
    scenario
}

/// Runs a scenario plain, recorded, and twice more: the same bits, `recorded` graphs, and nothing new in the end.
fn check(name: &str, images: usize, scenario: &Scenario, recorded: u64) {
    for dtype in [DType::F32, DType::BF16] {
        let plain = Device::new(dtype);
        plain.emulator.refuse_captures(true);
        let expected = plain.run(images, scenario).expect("steps need no graphs");
        assert_eq!(plain.emulator.graphs(), [0, 0]);
        let device = Device::new(dtype);
        assert!(device.run(images, scenario).expect("steps") == expected, "{name} in {dtype:?} while recording");
        let [made, replayed] = device.emulator.graphs();
        assert_eq!(made, recorded, "{name}: graphs");
        assert!(device.run(images, scenario).expect("steps") == expected, "{name} in {dtype:?} from the records");
        let [again, replays] = device.emulator.graphs();
        assert_eq!(again, made, "{name}: the second time records nothing");
        // What the cache keeps may have been others' before, who are missing it by now.
        let memory = device.cuda.memory_stats();
        assert!(device.run(images, scenario).expect("steps") == expected);
        assert_eq!(device.cuda.memory_stats(), memory, "{name}: the third time allocates nothing");
        assert_eq!(replays - replayed, replayed + (BEFORE + 1) * recorded, "{name}: all that was recorded is replayed");
    }
}

#[test]
fn beams_of_an_image_are_one_graph() {
    // The first step has one row, and comes but once.
    check("2 beams", 1, &beams(1, 2, 20), 1);
    check("5 beams", 1, &beams(1, 5, 60), 1);
    check("5 beams of 3 images", 3, &beams(3, 5, 20), 1);
}

#[test]
fn many_rows_are_one_graph() {
    check("11 rows", 11, &steady(11, 30), 1);
}

#[test]
fn long_texts_are_a_graph_for_each_doubling() {
    // Splits of 64 tokens: one, two, and all that there is room for.
    check("150 tokens", 2, &steady(2, 150), 3);
}

#[test]
fn texts_that_end_are_a_graph_for_each_number_of_rows() {
    check("ends", 5, &ending(5, 40, false), 5);
}

#[test]
fn texts_that_begin_in_place_of_others_change_no_graph() {
    check("places taken again", 4, &ending(4, 64, true), 1);
}

/// However many kinds of steps there are, and caches of however many shapes.
#[test]
fn what_is_kept_is_bounded() {
    let device = Device::new(DType::F32);
    let scenarios: Vec<Scenario> = [3, 5, 9].map(|steps| steady(2, steps)).into();
    let mut level = 0;
    for round in 0..3 {
        for rows in 1..20 {
            device.run(rows, &steady(rows, 6)).expect("steps");
        }
        for scenario in &scenarios {
            device.run(2, scenario).expect("steps");
        }
        // One cache, in which 24 numbers of rows take turns.
        device.run(24, &ending(24, 200, false)).expect("steps");
        let in_use = device.emulator.in_use();
        assert!(round == 0 || in_use <= level, "{in_use} bytes after {level}");
        level = in_use;
    }
    let emulator = device.emulator.clone();
    drop(device);
    assert_eq!(emulator.in_use(), 0);
}

/// Steps go on without graphs, and with them as soon as they can.
#[test]
fn steps_that_cannot_be_recorded_are_done_plainly() {
    let (device, scenario) = (Device::new(DType::F32), steady(3, 12));
    device.emulator.refuse_captures(true);
    let expected = device.run(3, &scenario).expect("steps");
    device.emulator.refuse_captures(false);
    assert!(device.run(3, &scenario).expect("steps") == expected);
    assert_eq!(device.emulator.graphs(), [1, 12 - BEFORE - 1]);
}

/// Memory that waits for another cache goes to whoever needs it first.
#[test]
fn memory_that_waits_is_no_obstacle() {
    let device = Device::new(DType::F32);
    let before = device.emulator.in_use();
    device.run(40, &steady(40, 100)).expect("steps");
    let kept = device.emulator.in_use() - before;
    let (free, _) = im2sp::backend::cuda::driver::Driver::memory(&*device.emulator).expect("a device");
    // More than is free, but not with what waits; of just this size.
    let words = (free + kept / 2) / size_of::<f32>();
    device.cuda.poison(true);
    device.cuda.upload([1, words], &vec![0.0; words]).expect("memory");
    device.cuda.poison(false);
    device.run(2, &steady(2, 5)).expect("steps");
}

/// Rows of tokens, BOS first.
type Tokens = Vec<Vec<u32>>;

impl Device {
    /// The caches of `images` images, before the first token.
    fn prefilled(&self, images: usize, limit: usize) -> <Cuda as Decode>::KvCache {
        let width = self.decoder.config().width;
        let tokens = Random::new(9).values(images * PREFIX * width);
        let tokens = self.cuda.sequence([images * PREFIX, width], &tokens).expect("image tokens");
        self.decoder.prefill(&self.cuda, &tokens, images, limit).expect("a cache")
    }

    /// The greedy loop in one launch, where the device takes it.
    fn greedy_loop(&self, images: usize, limit: usize) -> Option<Tokens> {
        let cache = self.prefilled(images, limit);
        let on_token = &mut |_: usize, _: &[u32]| ControlFlow::Continue(());
        let tokens = self.cuda.decode_greedy(&self.decoder.weights(), &cache, limit, SmBudget::All, on_token);
        tokens.map(|tokens| tokens.expect("tokens"))
    }

    /// The same by steps, past the ends of rows.
    fn greedy_steps(&self, images: usize, limit: usize, bos: u32) -> Tokens {
        let mut cache = self.prefilled(images, limit);
        let start: Vec<_> = (0..images).map(|image| CacheRow { image, parent: None }).collect();
        self.cuda.kv_reorder(&mut cache, &start).expect("rows");
        let mut rows = vec![vec![bos]; images];
        let mut ids = vec![bos; images];
        for _ in 1..limit {
            let logits = self.decoder.step(&self.cuda, &mut cache, &ids).expect("logits");
            self.cuda.argmax(&logits, &mut ids).expect("ids");
            rows.iter_mut().zip(&ids).for_each(|(row, &id)| row.push(id));
        }
        rows
    }
}

/// Where shared memory is short, the greedy loop refuses before it launches anything, and steps choose the same tokens.
#[test]
fn the_greedy_loop_gives_way_to_steps_where_shared_memory_is_short() {
    let (images, limit) = (8, 6);
    for (dtype, short) in [(DType::F32, 64 << 10), (DType::BF16, 56 << 10)] {
        let roomy = Device::with(dtype, EmulatedDriver::new(1 << 30), [128, 2]);
        let tokens = roomy.greedy_loop(images, limit).expect("a loop that fits");
        let driver = EmulatedDriver::with_properties(1 << 30, |properties| properties.shared_per_block = short);
        let small = Device::with(dtype, driver, [128, 2]);
        let before = small.emulator.launches();
        drop(small.prefilled(images, limit));
        let prefill = small.emulator.launches() - before;
        assert_eq!(small.greedy_loop(images, limit), None, "{dtype:?}");
        assert_eq!(small.emulator.launches(), before + 2 * prefill, "{dtype:?}: the loop was launched");
        let steps = small.greedy_steps(images, limit, tokens[0][0]);
        for (row, (looped, stepped)) in tokens.iter().zip(&steps).enumerate() {
            assert!(looped.len() > 1, "{dtype:?}, row {row}");
            assert_eq!(looped[..], stepped[..looped.len()], "{dtype:?}, row {row}");
        }
    }
}
