//! Training on the CPU: gradients and loss curves of transformers and PyTorch, N ranks against one, and runs that are killed and
//! resumed, bit for bit.

mod common;

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use common::{Golden, assert_close, golden, tolerance};
use im2sp::backend::cpu::Cpu;
use im2sp::backend::{AdamWStep, BlockPart, Communicator, Peers};
use im2sp::config::ModelConfig;
use im2sp::random::Philox;
use im2sp::train::buckets;
use im2sp::train::checkpoint;
use im2sp::train::config::TrainConfig;
use im2sp::train::decoder::{Dropout, Sequences};
use im2sp::train::journal::{self, Record};
use im2sp::train::model::{Freeze, Images, TrainedCaptioner};
use im2sp::train::ranks::{Place, Ranks};
use im2sp::train::session::{Batches, Ending, Event, Session, Source};
use im2sp::train::trainer::{Batch, ImageValues, Trainer};
use im2sp::units::{BOS, EOS, PAD, to_token};
use im2sp::weights::ModelFiles;
use im2sp::{Device, Result};

const MODELS: [&str; 3] = ["small", "wide_vision", "wide_decoder"];
/// Rough total length of all sums of these shallow models, forwards and backwards: for the tolerance policy.
const DEPTH: usize = 8000;

fn captioner(name: &str, freeze: Freeze) -> TrainedCaptioner<Cpu> {
    let files = ModelFiles::open(&golden(&format!("models/{name}"))).expect("a golden model");
    let config = ModelConfig { vocoder: None, ..files.config };
    TrainedCaptioner::load(Cpu, &config, files.captioner, freeze, None).expect("its parameters")
}

/// The golden batch: pixels, inputs, targets, rows.
struct Example {
    pixels: Vec<f32>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    rows: usize,
}

impl Example {
    fn new(golden: &Golden, ids: &str) -> Example {
        let ([rows, length], tokens) = (golden.get(ids).0[..].try_into().expect("two dimensions"), golden.u32(ids));
        let part =
            |from: usize, to: usize| tokens.chunks_exact(length).flat_map(|row| row[from..to].to_vec()).collect();
        Example { pixels: golden.f32("pixels"), inputs: part(0, length - 1), targets: part(1, length), rows }
    }

    fn sequences(&self) -> Sequences<'_> {
        let valid = self.targets.iter().filter(|&&target| target != PAD).count();
        Sequences { batch: self.rows, inputs: &self.inputs, targets: &self.targets, scale: 1.0 / valid as f32 }
    }

    fn images(&self, captioner: &TrainedCaptioner<Cpu>) -> Vec<f32> {
        match captioner.feature_width() {
            None => self.pixels.clone(),
            Some(_) => captioner.features(&self.pixels, self.rows).expect("features"),
        }
    }
}

fn as_images<'a>(captioner: &TrainedCaptioner<Cpu>, values: &'a [f32]) -> Images<'a> {
    if captioner.feature_width().is_some() { Images::Features(values) } else { Images::Pixels(values) }
}

/// Loss of a token, after which the gradients are in place.
fn pass(captioner: &mut TrainedCaptioner<Cpu>, example: &Example, images: &[f32]) -> f64 {
    let images = as_images(captioner, images);
    let losses = captioner.pass(images, &example.sequences(), Dropout::NONE).expect("a pass");
    losses.loss / losses.tokens as f64
}

#[test]
fn gradients_are_those_of_pytorch() {
    for name in MODELS {
        let golden = Golden::open(&format!("models/{name}/gradients.safetensors"));
        let (mut captioner, example) = (captioner(name, Freeze::None), Example::new(&golden, "ids"));
        let loss = pass(&mut captioner, &example, &example.pixels);
        assert_close(&format!("{name}: loss"), &[loss as f32], &golden.f32("loss"), DEPTH);
        let gradients = captioner.read_gradients().expect("gradients");
        for entry in captioner.layout().entries() {
            let (what, own) = (format!("{name}: {}", entry.name), &gradients[entry.place.range()]);
            if golden.has(&format!("gradient.{}", entry.name)) {
                assert_close(&what, own, &golden.f32(&format!("gradient.{}", entry.name)), DEPTH);
                continue;
            }
            let columns = entry.place.columns;
            let rows: Vec<Vec<f32>> = own.chunks_exact(columns).map(<[f32]>::to_vec).collect();
            assert_sums(&what, &rows, &golden.f32(&format!("rows.{}", entry.name)));
            let columns: Vec<Vec<f32>> =
                (0..columns).map(|column| own.iter().skip(column).step_by(columns).copied().collect()).collect();
            assert_sums(&what, &columns, &golden.f32(&format!("columns.{}", entry.name)));
        }
    }
}

/// Fails unless the sum of every line is the expected one. Behind a norm they cancel out: the tolerance is that of the sums of
/// absolute values.
#[track_caller]
fn assert_sums(what: &str, lines: &[Vec<f32>], expected: &[f32]) {
    assert_eq!(lines.len(), expected.len(), "{what}");
    let size = lines.iter().map(|line| line.iter().map(|v| v.abs()).sum::<f32>()).fold(0.0, f32::max);
    for (n, (line, expected)) in lines.iter().zip(expected).enumerate() {
        let sum: f32 = line.iter().sum();
        let max = tolerance(DEPTH, size);
        assert!((sum - expected).abs() <= max, "{what}: sum {n} is {sum}, expected {expected}, tolerance {max:e}");
    }
}

#[test]
fn lookups_of_padding_give_no_gradient() {
    let golden = Golden::open("models/small/gradients.safetensors");
    let (mut captioner, example) = (captioner("small", Freeze::None), Example::new(&golden, "pad_inside.ids"));
    let loss = pass(&mut captioner, &example, &example.pixels);
    assert_close("loss", &[loss as f32], &golden.f32("pad_inside.loss"), DEPTH);
    let gradients = captioner.read_gradients().expect("gradients");
    let entry = captioner.layout().entries().iter().find(|entry| entry.name == "decoder.word_embedding");
    let own = &gradients[entry.expect("the embedding").place.range()];
    assert_close("embedding", own, &golden.f32("pad_inside.gradient.decoder.word_embedding"), DEPTH);
}

/// Tokens behind the end of a row change neither loss nor gradients.
#[test]
fn padding_changes_nothing() {
    let golden = Golden::open("models/small/gradients.safetensors");
    let example = Example::new(&golden, "ids");
    let longer = |tokens: &[u32]| -> Vec<u32> {
        let length = tokens.len() / example.rows;
        tokens.chunks_exact(length).flat_map(|row| [row, &[PAD; 5]].concat()).collect()
    };
    let padded = Example {
        pixels: example.pixels.clone(),
        inputs: longer(&example.inputs),
        targets: longer(&example.targets),
        rows: example.rows,
    };
    let [own, other] = [&example, &padded].map(|example| {
        let mut captioner = captioner("small", Freeze::None);
        let loss = pass(&mut captioner, example, &example.pixels);
        (loss, captioner.read_gradients().expect("gradients"))
    });
    assert!((own.0 - other.0).abs() < 1e-6, "{} {}", own.0, other.0);
    assert_close("gradients", &own.1, &other.1, DEPTH);
}

#[test]
fn fifty_steps_follow_pytorch() {
    let golden = Golden::open("models/small/gradients.safetensors");
    let curves = Golden::open("models/small/training.safetensors");
    let (example, rates) = (Example::new(&golden, "ids"), curves.f32("learning_rates"));
    for (freeze, name) in [(Freeze::None, "losses.full"), (Freeze::Vision, "losses.frozen")] {
        let mut captioner = captioner("small", freeze);
        let images = example.images(&captioner);
        for (n, (rate, expected)) in rates.iter().zip(curves.f32(name)).enumerate() {
            let loss = pass(&mut captioner, &example, &images);
            assert!((loss / f64::from(expected) - 1.0).abs() < 1e-3, "{name}, step {n}: {loss}, expected {expected}");
            captioner.update(step(*rate, n as u64 + 1)).expect("an update");
        }
    }
}

fn step(rate: f32, step: u64) -> AdamWStep {
    AdamWStep { rate, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-5, step, gradient_scale: 1.0 }
}

/// With dropout, by central differences: the same masks forwards and backwards.
#[test]
fn gradients_with_dropout_are_slopes() {
    let golden = Golden::open("models/small/gradients.safetensors");
    let example = Example::new(&golden, "ids");
    let mut captioner = captioner("small", Freeze::Vision);
    let images = example.images(&captioner);
    let dropout = Dropout { hidden: 0.3, attention: 0.3, seed: 11, pass: 5 };
    let loss = |captioner: &mut TrainedCaptioner<Cpu>| {
        let losses = captioner.pass(Images::Features(&images), &example.sequences(), dropout).expect("a pass");
        losses.loss / losses.tokens as f64
    };
    loss(&mut captioner);
    let gradients = captioner.read_gradients().expect("gradients");
    let values = captioner.read(BlockPart::Values).expect("values");
    // The direction of the gradient itself, where the slope is largest: its norm.
    let norm = gradients.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let mut at = |step: f64| {
        let moved: Vec<f32> =
            values.iter().zip(&gradients).map(|(v, g)| (f64::from(*v) + step * f64::from(*g) / norm) as f32).collect();
        captioner.write(BlockPart::Values, &moved).expect("as many values");
        loss(&mut captioner)
    };
    const STEP: f64 = 2e-3;
    let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
    assert!((slope / norm - 1.0).abs() < 1e-2, "slope {slope}, norm {norm}");
}

/// Made samples of the small model: random images and units, in batches of a rank.
struct Made {
    samples: Vec<(Vec<f32>, Vec<u32>)>,
    batch: usize,
    rank: usize,
    ranks: usize,
}

impl Made {
    fn new(count: usize, batch: usize, rank: usize, ranks: usize) -> Made {
        let config = ModelFiles::open(&golden("models/small")).expect("a golden model").config;
        let (side, known) = (config.image.size, config.decoder.vocabulary - 3);
        let sample = |n: usize| {
            let units = Philox::new(3, n as u64).below(2 + n % 7, known);
            let ids = units.into_iter().map(|unit| to_token(unit as u32));
            let ids = std::iter::once(BOS).chain(ids).chain([EOS]).collect();
            (Philox::new(4, n as u64).values(3 * side * side), ids)
        };
        Made { samples: (0..count).map(sample).collect(), batch, rank, ranks }
    }

    fn batch(&self, samples: &[usize]) -> Batch {
        let rows: Vec<_> = samples.iter().map(|&n| &self.samples[n]).collect();
        let length = rows.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0);
        let padded = |ids: &[u32]| [ids, &vec![PAD; length - ids.len()]].concat();
        Batch {
            images: ImageValues::Pixels(rows.iter().flat_map(|(pixels, _)| pixels.clone()).collect()),
            ids: rows.iter().flat_map(|(_, ids)| padded(ids)).collect(),
            size: rows.len(),
            names: samples.iter().map(|n| format!("sample {n}")).collect(),
        }
    }
}

impl Source for Made {
    fn batches(&self, epoch: u64, done: u64) -> Result<Batches<'_>> {
        // Another order in every epoch.
        let count = self.samples.len();
        let order: Vec<usize> = (0..count).map(|n| (n * 7 + epoch as usize) % count).collect();
        let all = self.batch * self.ranks;
        let of_rank =
            move |step: &[usize]| step.iter().copied().skip(self.rank).step_by(self.ranks).collect::<Vec<_>>();
        let rest = order.get(done as usize..).unwrap_or_default();
        let steps: Vec<Vec<usize>> = rest.chunks(all).map(of_rank).collect();
        Ok(Box::new(steps.into_iter().map(|samples| Ok(self.batch(&samples)))))
    }
}

fn run_config() -> TrainConfig {
    let mut config = TrainConfig { batch: 4, accumulation: 2, iterations: 12, save_every: 5, ..TrainConfig::default() };
    (config.freeze, config.token_noise) = (Freeze::None, 0.1);
    (config.schedule.rate, config.schedule.warmup) = (1e-3, 2);
    config
}

/// Trains in `run` until the update after which `stop` says so.
fn train(run: &Path, config: &TrainConfig, source: &Made, ranks: Ranks, stop: impl Fn(u64) -> bool) -> Result<Ending> {
    let trainer = Trainer::new(captioner("small", config.freeze), config.clone(), ranks);
    train_with(trainer, run, config, source, stop)
}

fn train_with(
    mut trainer: Trainer<Cpu>,
    run: &Path,
    config: &TrainConfig,
    source: &Made,
    stop: impl Fn(u64) -> bool,
) -> Result<Ending> {
    let flag = AtomicBool::new(false);
    if let Some(last) = checkpoint::last(run)? {
        let resumed = checkpoint::resume(&last, trainer.captioner().layout())?;
        trainer.resume(resumed)?;
    }
    let mut session = Session {
        trainer,
        config: config.clone(),
        source,
        validation: None,
        vocoder: None,
        device: Device::Cpu,
        run: run.to_owned(),
        stop: &flag,
    };
    session.run(&mut |event| {
        if let Event::Updated(update) = event {
            flag.store(stop(update.update), std::sync::atomic::Ordering::Relaxed);
        }
    })
}

/// The files of the last checkpoint, but for the position, and the losses of all updates.
fn outcome(run: &Path) -> (Vec<Vec<u8>>, Vec<(u64, u64)>) {
    let last = checkpoint::last(run).expect("an index").expect("a checkpoint");
    let files = ["captioner.safetensors", "moments.safetensors", "state.json"];
    let files = files.map(|name| std::fs::read(last.join(name)).expect("a file of the checkpoint"));
    let losses = journal::read(run).expect("a journal").into_iter().filter_map(|record| match record {
        Record::Update(update) => Some((update.update, update.loss.to_bits())),
        Record::Validation(_) => None,
    });
    (files.into(), losses.collect())
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn a_stopped_run_resumes_to_the_bit() -> Result<()> {
    let (whole, parts, config, source) = (folder(), folder(), run_config(), Made::new(22, 4, 0, 1));
    assert_eq!(train(whole.path(), &config, &source, Ranks::alone(), |_| false)?, Ending::Complete);
    for stop in [1, 4, 5, 9] {
        assert_eq!(train(parts.path(), &config, &source, Ranks::alone(), |update| update == stop)?, Ending::Stopped);
    }
    assert_eq!(train(parts.path(), &config, &source, Ranks::alone(), |_| false)?, Ending::Complete);
    let (whole, parts) = (outcome(whole.path()), outcome(parts.path()));
    assert!(whole == parts, "{:?}\n{:?}", whole.1, parts.1);
    assert_eq!(whole.1.len(), 12);
    Ok(())
}

/// A communicator of the CPU: sums over connections of its own, one range at a time, and notes them.
struct Noted {
    ranks: Ranks,
    begun: Arc<Mutex<Vec<Range<usize>>>>,
}

impl Communicator<Vec<f32>> for Noted {
    fn start_sum(&mut self, gradients: &mut Vec<f32>, range: Range<usize>, peers: &dyn Peers) -> Result<()> {
        peers.check()?;
        self.begun.lock().expect("no panic").push(range.clone());
        self.ranks.sum(&mut gradients[range])
    }

    fn finish_sums(&mut self, peers: &dyn Peers) -> Result<()> {
        peers.check()
    }
}

fn free_address() -> String {
    let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    address.expect("a port").to_string()
}

/// Trains three ranks on `samples` samples: with sums on the host, or in buckets of so many bytes. The buckets of each rank.
fn train_together(
    run: &Path,
    config: &TrainConfig,
    samples: usize,
    bucket: Option<usize>,
) -> Result<Vec<Vec<Range<usize>>>> {
    const COUNT: usize = 3;
    let addresses = [free_address(), free_address()];
    let train_one = |rank: usize| {
        let connect =
            |address: &String| Ranks::connect(&Place { rank, count: COUNT, local: rank, address: address.clone() }, 1);
        let (source, begun) = (Made::new(samples, config.batch, rank, COUNT), Arc::<Mutex<Vec<_>>>::default());
        let mut trainer = Trainer::new(captioner("small", config.freeze), config.clone(), connect(&addresses[0])?);
        if let Some(bytes) = bucket {
            trainer.communicate(Box::new(Noted { ranks: connect(&addresses[1])?, begun: begun.clone() }), bytes);
        }
        assert_eq!(train_with(trainer, run, config, &source, |_| false)?, Ending::Complete);
        let begun = begun.lock().expect("no panic").clone();
        Ok(begun)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..COUNT).map(|rank| scope.spawn(move || train_one(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Sums that begin during the backward pass have the bits of those after it, in batches of which some are empty; and every rank
/// begins the buckets of the plan, in its order, once an update.
#[test]
fn sums_in_buckets_are_those_on_the_host() -> Result<()> {
    // The last batch of an epoch is empty on rank 2.
    let (config, samples) = (TrainConfig { batch: 2, iterations: 6, ..run_config() }, 22);
    for freeze in [Freeze::None, Freeze::Vision] {
        let (on_host, config) = (folder(), TrainConfig { freeze, ..config.clone() });
        train_together(on_host.path(), &config, samples, None)?;
        let layout = captioner("small", freeze).layout().clone();
        for bytes in [1, 64 << 10, buckets::BUCKET_BYTES] {
            let (run, plan) = (folder(), buckets::plan(&layout, bytes));
            for begun in train_together(run.path(), &config, samples, Some(bytes))? {
                assert_eq!(begun, vec![plan.clone(); 6].concat(), "{freeze:?}, {bytes}");
            }
            assert!(outcome(run.path()) == outcome(on_host.path()), "{freeze:?}, {bytes}");
        }
    }
    Ok(())
}

/// A backward pass reports gradients from the end of the block to its start, layer by layer, and changes none afterwards.
#[test]
fn gradients_that_are_reported_are_final() -> Result<()> {
    let golden = Golden::open("models/small/gradients.safetensors");
    for freeze in [Freeze::None, Freeze::Encoder, Freeze::Vision] {
        let (mut captioner, example) = (captioner("small", freeze), Example::new(&golden, "ids"));
        let (images, mut reports) = (example.images(&captioner), Vec::new());
        let inputs = as_images(&captioner, &images);
        let mut report = |gradients: &mut Vec<f32>, start: usize| {
            reports.push((start, gradients[start..].to_vec()));
            Ok(())
        };
        captioner.pass_reporting(inputs, &example.sequences(), Dropout::NONE, &mut report)?;
        let (gradients, layout) = (captioner.read_gradients()?, captioner.layout());
        assert!(reports.is_sorted_by(|a, b| a.0 > b.0) && reports.last().is_some_and(|last| last.0 == 0), "{freeze:?}");
        let layers = layout.entries().iter().filter(|entry| entry.name.ends_with("qkv.weight"));
        for start in layers.map(|entry| entry.place.start) {
            assert!(reports.iter().any(|report| report.0 == start), "{freeze:?}: no report at {start}");
        }
        for (start, reported) in &reports {
            assert!(gradients[*start..] == *reported, "{freeze:?}: changed after the report at {start}");
        }
    }
    Ok(())
}

/// Without dropout and noise, which draw other numbers on each rank, and with an epsilon that keeps AdamW from making much of
/// gradients that are nothing but rounding.
#[test]
fn ranks_are_one_large_batch() -> Result<()> {
    let config = TrainConfig {
        dropout: 0.0,
        attention_dropout: 0.0,
        token_noise: 0.0,
        iterations: 6,
        eps: 1e-3,
        ..run_config()
    };
    let alone = folder();
    let wide = TrainConfig { batch: 6, ..config.clone() };
    train(alone.path(), &wide, &Made::new(24, 6, 0, 1), Ranks::alone(), |_| false)?;
    let together = folder();
    train_together(together.path(), &TrainConfig { batch: 2, ..config }, 24, None)?;
    let read = |run: &Path| {
        let last = checkpoint::last(run)?.expect("a checkpoint");
        let layout = captioner("small", Freeze::None).layout().clone();
        layout.take(&mut checkpoint::resume(&last, &layout)?.captioner)
    };
    assert_close("parameters", &read(together.path())?, &read(alone.path())?, DEPTH);
    let losses =
        |run: &Path| outcome(run).1.into_iter().map(|(_, loss)| f64::from_bits(loss) as f32).collect::<Vec<_>>();
    assert_close("losses", &losses(together.path()), &losses(alone.path()), DEPTH);
    Ok(())
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint() -> Result<()> {
    let (run, mut config) = (folder(), run_config());
    train(run.path(), &config, &Made::new(22, 4, 0, 1), Ranks::alone(), |update| update == 3)?;
    let before = outcome(run.path());
    config.iterations = 20;
    let mut broken = Made::new(22, 4, 0, 1);
    broken.samples.iter_mut().skip(9).for_each(|(pixels, _)| pixels[0] = f32::NAN);
    let error = train(run.path(), &config, &broken, Ranks::alone(), |_| false).unwrap_err().to_string();
    assert!(error.contains("not a number") && error.contains("sample") && error.contains("epoch 1"), "{error}");
    assert_eq!(outcome(run.path()).0, before.0);
    Ok(())
}

#[test]
fn a_checkpoint_of_another_model_is_refused() -> Result<()> {
    let run = folder();
    train(run.path(), &run_config(), &Made::new(22, 4, 0, 1), Ranks::alone(), |update| update == 1)?;
    let last = checkpoint::last(run.path())?.expect("a checkpoint");
    let layout = captioner("wide_decoder", Freeze::None).layout().clone();
    let error = checkpoint::resume(&last, &layout).err().expect("another model").to_string();
    assert!(error.contains("moments.safetensors") && error.contains("shape"), "{error}");
    let frozen = captioner("small", Freeze::Vision).layout().clone();
    let error = checkpoint::resume(&last, &frozen).err().expect("more parameters").to_string();
    assert!(error.contains("not part"), "{error}");
    Ok(())
}

/// Updates of the small model on the emulated device give the losses of the CPU: in f32 to rounding, in bf16 to its own.
#[test]
#[cfg(feature = "emulator")]
fn updates_on_a_device_follow_the_cpu() -> Result<()> {
    use im2sp::backend::Train;
    use im2sp::backend::cuda::Cuda;
    use im2sp::tensor::DType;

    fn losses<B: Train>(backend: B, freeze: Freeze, dtype: Option<DType>) -> Result<Vec<f32>> {
        let files = ModelFiles::open(&golden("models/small"))?;
        let config = ModelConfig { vocoder: None, ..files.config };
        let captioner = TrainedCaptioner::load(backend, &config, files.captioner, freeze, dtype)?;
        let run = TrainConfig { accumulation: 1, eps: 1e-3, freeze, ..run_config() };
        let mut trainer = Trainer::new(captioner, run, Ranks::alone());
        let made = Made::new(4, 4, 0, 1);
        let updates = (0..4).map(|_| trainer.update(&[made.batch(&[0, 1, 2, 3])])).collect::<Result<Vec<_>>>()?;
        Ok(updates.into_iter().flatten().map(|update| update.loss as f32).collect())
    }

    for freeze in [Freeze::None, Freeze::Encoder, Freeze::Vision] {
        let expected = losses(Cpu, freeze, None)?;
        for (dtype, allowed) in [(DType::F32, 1e-4), (DType::BF16, 0.05)] {
            let device = Cuda::new(Device::Emulator.driver()?, dtype)?;
            for (update, (own, cpu)) in losses(device, freeze, Some(dtype))?.iter().zip(&expected).enumerate() {
                assert!((own / cpu - 1.0).abs() < allowed, "{freeze:?}, {dtype:?}, update {update}: {own}, CPU {cpu}");
            }
        }
    }
    Ok(())
}
