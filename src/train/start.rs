//! A session from a configuration: the run directory, the model, the samples and the features of a frozen encoder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::buckets::BUCKET_BYTES;
use super::checkpoint;
use super::config::{CONFIG, DataConfig, TrainConfig};
use super::estimate::{Size, estimate};
use super::lock;
use super::model::TrainedCaptioner;
use super::ranks::{Place, Ranks};
use super::session::{Batches, Ending, Event, Session, Source, VocoderTensors};
use super::trainer::{Batch, ImageValues, Trainer};
use super::unit_images::{self, StoredUnits, UnitImages};
use super::validation::{ValidationSample, ValidationSet};
use crate::backend::cpu::Cpu;
#[cfg(any(feature = "cuda", feature = "emulator"))]
use crate::backend::cuda::Cuda;
use crate::backend::{Communicator, Train};
use crate::config::ModelConfig;
use crate::data::features::{FeatureCache, FeatureShape};
use crate::data::loader::{Ahead, LeftOut, LoadedBatch, Loader, OnBad, ReadImage};
use crate::data::order::{epoch_order, rank_batches};
use crate::data::{Listing, Sample, Split, UnitSource, coco, flickr, manifest};
use crate::engine::Device;
use crate::image::Image;
use crate::tensor::DType;
use crate::units::SPECIAL;
use crate::weights::convert::{initial_captioner, random_captioner};
use crate::weights::directory::{CAPTIONER, CONFIG as MODEL_CONFIG, ModelFiles, parse_config, read_small};
use crate::weights::store::TensorStore;
use crate::weights::stored::read_file;
use crate::{Error, Result};

/// Units of the published models, where no model says how many there are.
const UNITS: usize = 200;
/// Most threads that read images, unless more are asked of it.
const MAX_THREADS: usize = 16;
/// Images that go through a frozen encoder together.
const FEATURE_BATCH: usize = 8;
/// Features of the frozen part, in the run directory.
const FEATURES: &str = "features.bin";

/// Everything about a session that decides nothing about its results.
pub struct Options<'a> {
    /// Run directory.
    pub run: PathBuf,
    /// Continue the run that is there.
    pub resume: bool,
    /// Where to compute.
    pub device: Device,
    /// Sum gradients of several processes on the host, although their GPUs could: a difference of rounding.
    pub sum_on_host: bool,
    /// Threads that read images; none: as many as the processor has.
    pub threads: Option<usize>,
    /// Do a few updates, say what a run takes, and write nothing.
    pub dry_run: bool,
    /// Ends the run after the current update when set.
    pub stop: &'a AtomicBool,
    /// Called with every damaged sample.
    pub on_bad: OnBad,
    /// Called with lines for people: what was left out of a listing, what is being computed.
    pub note: &'a dyn Fn(&str),
}

/// Trains, or continues to train, by a configuration.
///
/// # Errors
/// If the configuration, the run directory, the model or the samples cannot be used, or the session fails.
pub fn train(
    config: TrainConfig,
    options: &Options<'_>,
    place: Option<&Place>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Ending> {
    let config = open_run(with_absolute_paths(config)?, options, place)?;
    let device = match (options.device, place) {
        (Device::Auto, _) if Device::usable().is_err() => Device::Cpu,
        (Device::Auto, Some(place)) => Device::Cuda(own_gpu(place.local, &Device::gpus())),
        (device, _) => device,
    };
    match device {
        Device::Cpu => on(Cpu, None, &|_| Ok(Cpu.peak_operations()), &config, options, place, on_event),
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        device => {
            let dtype = if config.f32 { DType::F32 } else { DType::BF16 };
            let backend = Cuda::new(device.driver()?, dtype)?;
            on(backend, Some(dtype), &Cuda::peak_operations, &config, options, place, on_event)
        }
        #[cfg(not(any(feature = "cuda", feature = "emulator")))]
        device => Err(Error::Device {
            device: device.to_string(),
            problem:
                "this im2sp was built without kernels for GPUs: build it with --features cuda, or use --device cpu"
                    .into(),
        }),
    }
}

/// The GPU of a process, each of which has one of its own: that of its number on its machine, or the only one if its launcher lets
/// it see no other (`srun --gpus-per-task`).
fn own_gpu(local: usize, gpus: &[usize]) -> usize {
    match *gpus {
        [only] => only,
        _ => local,
    }
}

/// The configuration, checked against the run directory: that of the run to be resumed, or none yet.
fn open_run(config: TrainConfig, options: &Options<'_>, place: Option<&Place>) -> Result<TrainConfig> {
    let (run, path) = (&options.run, options.run.join(CONFIG));
    config.check()?;
    if !options.resume {
        // Rank 0 may have begun to fill it before another looks.
        let decides = place.is_none_or(|place| place.rank == 0);
        if decides && std::fs::read_dir(run).is_ok_and(|mut entries| entries.next().is_some()) {
            let problem = "exists and is not empty: continue its run with --resume, or choose another";
            return Err(Error::weights(run, "run", problem));
        }
        return Ok(config);
    }
    if !path.exists() {
        return Err(Error::weights(&path, "file", "is not there: a run begins without --resume"));
    }
    let own = TrainConfig::read(&path)?;
    let conflicts = own.conflicts(&config);
    if conflicts.is_empty() {
        return Ok(TrainConfig { init: own.init, vocoder: config.vocoder.clone().or(own.vocoder), ..config });
    }
    let problem = "differ from those that the run began with: leave them out, or begin another run";
    Err(Error::weights(&path, conflicts.join(", "), problem))
}

/// The configuration with paths that hold in any working directory, for a run that is resumed from another.
fn with_absolute_paths(mut config: TrainConfig) -> Result<TrainConfig> {
    for path in paths(&mut config) {
        *path = std::path::absolute(&path).map_err(Error::io("find", path))?;
    }
    Ok(config)
}

/// All files and folders that a configuration names.
fn paths(config: &mut TrainConfig) -> impl Iterator<Item = &mut PathBuf> {
    let data = &mut config.data;
    let paths = [&mut data.manifest, &mut data.coco, &mut data.spoken_coco, &mut data.flickr, &mut data.flickr_audio];
    let others = [&mut data.splits, &mut data.image_units, &mut data.tokenizer, &mut config.init, &mut config.vocoder];
    paths.into_iter().chain(others).flatten()
}

/// Makes the directory of a new run, or clears what a killed process left in that of an old one; its lock. Rank 0 does it for
/// all.
fn make_run(config: &TrainConfig, options: &Options<'_>, place: Option<&Place>) -> Result<Option<File>> {
    let run = &options.run;
    std::fs::create_dir_all(run).map_err(Error::io("create", run))?;
    if place.is_some_and(|place| place.rank > 0) {
        return Ok(None);
    }
    let lock = lock::take(run)?;
    if options.resume {
        checkpoint::remove_unfinished(run)?
    } else {
        config.write(&run.join(CONFIG))?
    }
    Ok(lock)
}

/// The session on a backend.
fn on<B: Train>(
    backend: B,
    dtype: Option<DType>,
    peak: &dyn Fn(&B) -> Result<f64>,
    config: &TrainConfig,
    options: &Options<'_>,
    place: Option<&Place>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Ending> {
    let last = if options.resume { checkpoint::last(&options.run)? } else { None };
    let (mut model, store) = initial(config, last.as_deref(), options.note)?;
    let vocoder = vocoder(config, &mut model)?;
    let unit_images = UnitImages::open(config, &model, &store, options.note)?;
    let captioner = TrainedCaptioner::load(backend, &model, store, config.freeze, dtype)?;
    let max_length = config.max_length.min(model.decoder.max_positions);
    let known = model.decoder.vocabulary - SPECIAL;
    let [train, validation] = [Split::Train, Split::Validation].map(|split| list(&config.data, split, known));
    let (mut train, mut validation) = (train?, validation?);
    if validation.samples.is_empty() {
        validation.samples = hold_out(&mut train.samples, config.data.hold_out)?;
    }
    train.notes.iter().chain(&validation.notes).for_each(|line| (options.note)(line));
    // Held until the end of the run.
    let _lock = if options.dry_run { None } else { make_run(config, options, place)? };

    let digest = place.map_or(0, |_| digest(config, &train.samples, last.as_deref()));
    let mut ranks = place.map_or(Ok(Ranks::alone()), |place| Ranks::connect(place, digest))?;
    let features = match options.dry_run {
        true => None,
        false => features(config, options, &mut ranks, &captioner, &train.samples)?,
    };
    let epoch = Arc::new(AtomicU64::new(0));
    let loader = |samples: Vec<Sample>, read_image| Loader {
        samples,
        known,
        max_length,
        max_bad: config.data.max_bad,
        read_image,
        on_bad: options.on_bad.clone(),
        left_out: LeftOut::default(),
    };
    let read_image = match &features {
        Some(features) => features.reader(),
        None => images(config, &model, &unit_images, epoch.clone()),
    };
    let validation = if ranks.rank() > 0 {
        None
    } else {
        let samples: Vec<Sample> = validation.samples.into_iter().take(config.validation_images).collect();
        let plain = TrainConfig { data: DataConfig::default(), ..config.clone() };
        let read_image = images(&plain, &model, &unit_images, Arc::default());
        validation_set(&loader(samples, read_image), unit_images.as_deref(), config.batch)?
    };
    // Processes of one machine share its processor; each thread holds two batches.
    let threads = options.threads.unwrap_or((rayon::current_num_threads() / ranks.count()).clamp(1, MAX_THREADS));
    let source = DataSource {
        loader: Arc::new(loader(train.samples, read_image)),
        seed: config.seed,
        batch: config.batch,
        place: [ranks.rank(), ranks.count()],
        threads,
        epoch,
        cached: features.is_some(),
    };
    let communicator = communicator(captioner.backend(), &mut ranks, options.sum_on_host)?;
    let mut trainer = Trainer::new(captioner, config.clone(), ranks);
    if let Some(communicator) = communicator {
        trainer.communicate(communicator, BUCKET_BYTES);
    }
    if let Some(last) = last {
        let resumed = checkpoint::resume(&last, trainer.captioner().layout())?;
        trainer.resume(resumed)?;
    }
    if options.dry_run {
        let images: BTreeSet<&PathBuf> = source.loader.samples.iter().map(|sample| &sample.image).collect();
        let size = Size { samples: source.loader.samples.len(), images: images.len(), ranks: source.place[1] };
        estimate(&mut trainer, source.batches(0, 0)?, config, size)?.iter().for_each(|line| (options.note)(line));
        return Ok(Ending::Complete);
    }
    let peak = peak(trainer.captioner().backend())?;
    trainer.compare_with(peak);
    let mut session = Session {
        trainer,
        config: config.clone(),
        source: &source,
        validation,
        vocoder,
        device: options.device,
        run: options.run.clone(),
        stop: options.stop,
    };
    let ending = session.run(on_event)?;
    let long = source.loader.left_out.long();
    if let Some(longest) = long.values().max() {
        let line =
            format!("{} samples of up to {longest} tokens were longer than {max_length} and left out", long.len());
        (options.note)(&line);
    }
    Ok(ending)
}

/// The communicator of several ranks; `None` where one of them has none or wants the host.
fn communicator<B: Train>(
    backend: &B,
    ranks: &mut Ranks,
    on_host: bool,
) -> Result<Option<Box<dyn Communicator<B::Gradients>>>> {
    let mut without = [f32::from(u8::from(on_host || !backend.communicates()))];
    ranks.sum(&mut without)?;
    if ranks.count() == 1 || without[0] > 0.0 {
        return Ok(None);
    }
    backend.communicator(ranks).map(Some)
}

/// Number that is the same for ranks which compute the same: of the configuration, the samples and the checkpoint.
fn digest(config: &TrainConfig, samples: &[Sample], last: Option<&Path>) -> u64 {
    let (mut hash, mut config) = (Sha256::new(), config.clone());
    // Ranks on other machines have the files elsewhere.
    for path in paths(&mut config) {
        *path = path.file_name().unwrap_or_default().into();
    }
    hash.update(toml::to_string(&config).unwrap_or_default());
    for Sample { image, units } in samples {
        let length = |path| std::fs::metadata(path).map_or(0, |about| about.len());
        let units = match units {
            UnitSource::File(path) => format!("{:?} {}", path.file_name(), length(path)),
            UnitSource::List(units) => format!("{units:?}"),
        };
        hash.update(format!("{:?} {} {units}\n", image.file_name(), length(image)));
    }
    hash.update(format!("{:?}", last.and_then(Path::file_name)));
    let digest = hash.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// Takes the last `count` samples away, and all others of their images.
fn hold_out(samples: &mut Vec<Sample>, count: usize) -> Result<Vec<Sample>> {
    let kept = samples.len().saturating_sub(count);
    let images: BTreeSet<PathBuf> = samples[kept..].iter().map(|sample| sample.image.clone()).collect();
    let (held, rest): (Vec<_>, Vec<_>) = samples.drain(..).partition(|sample| images.contains(&sample.image));
    if rest.is_empty() {
        let problem = format!("is {count}, which leaves nothing of {} samples to learn from", held.len());
        return Err(Error::Option { option: "hold-out", problem });
    }
    *samples = rest;
    Ok(held)
}

/// The model to begin with, or that of the last checkpoint.
fn initial(config: &TrainConfig, last: Option<&Path>, note: &dyn Fn(&str)) -> Result<(ModelConfig, TensorStore)> {
    if let Some(last) = last {
        let (path, captioner) = (last.join(MODEL_CONFIG), last.join(CAPTIONER));
        // In memory: the folder goes when the next checkpoint is complete.
        let store = TensorStore::from_bytes(&captioner, read_file(&captioner)?)?;
        return Ok((parse_config(&path, &read_small(&path)?)?, store));
    }
    let path = config.init.as_deref().ok_or_else(|| Error::Option {
        option: "init",
        problem: "is needed: a model directory, a checkpoint, or the config.json of a model of random weights".into(),
    })?;
    let own = if path.is_dir() { path.join(MODEL_CONFIG) } else { path.to_owned() };
    let is_model = path.join(CAPTIONER).exists() || path.extension().is_some_and(|extension| extension == "json");
    let units = match &config.vocoder {
        _ if is_model => parse_config(&own, &read_small(&own)?)?.decoder.vocabulary.saturating_sub(SPECIAL),
        Some(vocoder) => ModelFiles::open(vocoder)?.config.vocoder.map_or(UNITS, |vocoder| vocoder.num_embeddings),
        None => UNITS,
    };
    let mut initial = initial_captioner(path, units, config.seed)?;
    unit_images::prepare(config, &mut initial)?;
    if let Some(first) = initial.fresh.first() {
        note(&format!("begins with random weights in {} tensors, {first} first", initial.fresh.len()));
    }
    if let Some(first) = initial.left_aside.first() {
        note(&format!("leaves {} tensors of the checkpoint aside, {first} first", initial.left_aside.len()));
    }
    if config.fresh_decoder {
        let random = random_captioner(&initial.config, config.seed)?;
        initial.tensors.extend(random.into_iter().filter(|(name, _)| name.starts_with("decoder.")));
    }
    Ok((initial.config, TensorStore::new(path, initial.tensors)))
}

/// The vocoder's tensors; its dimensions become part of `model`.
fn vocoder(config: &TrainConfig, model: &mut ModelConfig) -> Result<Option<VocoderTensors>> {
    model.vocoder = None;
    let Some(path) = &config.vocoder else { return Ok(None) };
    let files = ModelFiles::open(path)?;
    let (Some(dimensions), Some(store)) = (files.config.vocoder, files.vocoder) else {
        return Err(Error::weights(path, "vocoder", "is not part of this model: name a directory with one"));
    };
    let units = model.decoder.vocabulary - SPECIAL;
    if dimensions.num_embeddings != units {
        let problem = format!("speaks {} units, but the captioner has {units}", dimensions.num_embeddings);
        return Err(Error::weights(path, "vocoder.num_embeddings", problem));
    }
    model.vocoder = Some(dimensions);
    Ok(Some(store.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()))
}

/// All samples of a split. There may be none to validate with.
fn list(data: &DataConfig, split: Split, known: usize) -> Result<Listing> {
    let mut listing = Listing::default();
    if let Some(path) = &data.manifest {
        listing.extend(manifest::list(path, split, known)?);
    }
    let needs = |option: &'static str, path: &Option<PathBuf>| {
        path.clone().ok_or_else(|| Error::Option { option, problem: "is needed with this data set".into() })
    };
    if let Some(images) = &data.coco {
        let (spoken, splits) = (needs("spoken-coco", &data.spoken_coco)?, needs("splits", &data.splits)?);
        listing.extend(coco::list(images, &spoken, &splits, split)?);
    }
    // As in the reference, COCO's validation images are enough where there are both.
    if let Some(images) = data.flickr.as_ref().filter(|_| data.coco.is_none() || split == Split::Train) {
        let (audio, splits) = (needs("flickr-audio", &data.flickr_audio)?, needs("splits", &data.splits)?);
        listing.extend(flickr::list(images, &audio, &splits, split)?);
    }
    if listing.samples.is_empty() && split == Split::Train {
        let problem = "there are none: name a --manifest, --coco or --flickr".into();
        return Err(Error::Option { option: "manifest", problem });
    }
    Ok(listing)
}

/// Reads images to pixels, or their units to code vectors.
fn images(config: &TrainConfig, model: &ModelConfig, units: &StoredUnits, epoch: Arc<AtomicU64>) -> ReadImage {
    if let Some(units) = units {
        return units.reader(config.data.augment_units, config.seed, epoch);
    }
    let (augment, seed, image_config) = (config.data.augment, config.seed, model.image.clone());
    Box::new(move |number, sample, values| {
        let image = augment.apply(Image::open(&sample.image)?, seed, epoch.load(Ordering::Relaxed), number)?;
        values.extend(image.preprocess(&image_config));
        Ok(())
    })
}

/// The same for validation, in memory.
fn validation_set(loader: &Loader, images: Option<&UnitImages>, batch: usize) -> Result<Option<ValidationSet>> {
    let mut set = ValidationSet::default();
    let numbers: Vec<usize> = (0..loader.samples.len()).collect();
    for numbers in numbers.chunks(batch) {
        let loaded = loader.load(numbers)?;
        for &number in &loaded.samples {
            let sample = &loader.samples[number];
            let units = sample.read_units(loader.known)?;
            let image_units = images.map(|images| images.units(&sample.image)).transpose()?;
            set.samples.push(ValidationSample { image: sample.image.clone(), image_units, units });
        }
        set.batches.push(batch_of(&loader.samples, loaded, false));
    }
    Ok((!set.samples.is_empty()).then_some(set))
}

fn batch_of(samples: &[Sample], loaded: LoadedBatch, cached: bool) -> Batch {
    let LoadedBatch { samples: numbers, images, ids } = loaded;
    Batch {
        images: if cached { ImageValues::Features(images) } else { ImageValues::Pixels(images) },
        ids,
        size: numbers.len(),
        names: numbers.iter().map(|&number| samples[number].image.display().to_string()).collect(),
    }
}

/// Batches of a rank.
struct DataSource {
    loader: Arc<Loader>,
    seed: u64,
    batch: usize,
    /// Rank and number of ranks.
    place: [usize; 2],
    threads: usize,
    epoch: Arc<AtomicU64>,
    cached: bool,
}

impl Source for DataSource {
    fn batches(&self, epoch: u64, done: u64) -> Result<Batches<'_>> {
        // The threads of the epoch before have ended with its batches.
        self.epoch.store(epoch, Ordering::Relaxed);
        let order = epoch_order(self.loader.samples.len(), self.seed, epoch, self.place[1]);
        let ahead = Ahead::start(&self.loader, rank_batches(&order, done, self.batch, self.place), self.threads)?;
        Ok(Box::new(ahead.map(|loaded| Ok(batch_of(&self.loader.samples, loaded?, self.cached)))))
    }
}

/// Features of the images of all samples.
struct Features {
    cache: Arc<FeatureCache>,
    /// Item of each sample.
    items: Arc<Vec<usize>>,
}

impl Features {
    fn reader(&self) -> ReadImage {
        let (cache, items) = (self.cache.clone(), self.items.clone());
        Box::new(move |number, sample, values| {
            let item = items.get(number).copied().unwrap_or(usize::MAX);
            cache.append(item, values).map_err(|error| match Image::open(&sample.image) {
                // The image is the reason that it is missing.
                Err(reason) => reason,
                Ok(_) => error,
            })
        })
    }
}

/// The frozen part's output for every image, from disk or computed now; `None` where it is not to be kept.
fn features<B: Train>(
    config: &TrainConfig,
    options: &Options<'_>,
    ranks: &mut Ranks,
    captioner: &TrainedCaptioner<B>,
    samples: &[Sample],
) -> Result<Option<Features>> {
    let Some(columns) = captioner.feature_width().filter(|_| config.data.cache_features) else { return Ok(None) };
    let model = captioner.config();
    let mut images: BTreeMap<&Path, usize> = BTreeMap::new();
    for sample in samples {
        images.entry(&sample.image).or_insert(0);
    }
    images.values_mut().enumerate().for_each(|(item, place)| *place = item);
    let items = samples.iter().map(|sample| images.get(&*sample.image).copied().unwrap_or(usize::MAX)).collect();
    let mut key = Sha256::new();
    key.update(serde_json::to_vec(&(&model.image, &model.vision, config.freeze)).unwrap_or_default());
    for (name, bytes) in captioner.frozen_bytes() {
        key.update(name.as_bytes());
        key.update(bytes);
    }
    for path in images.keys() {
        key.update(path.as_os_str().as_encoded_bytes());
        key.update(format!("\0{}\n", std::fs::metadata(path).map_or(0, |about| about.len())));
    }
    let shape = FeatureShape { items: images.len(), rows: model.image_tokens(), columns };
    let (path, key) = (options.run.join(FEATURES), key.finalize().into());
    if ranks.rank() == 0 {
        fill(&FeatureCache::open(&path, &key, shape)?, &images, options, ranks, captioner)?;
    } else {
        // Rank 0 fills the file for all, and says how far it is.
        let mut left = [1.0f32];
        while left[0] > 0.0 {
            left = [0.0];
            ranks.sum(&mut left)?;
        }
    }
    let cache = FeatureCache::existing(&path, &key, shape)?;
    Ok(Some(Features { cache: Arc::new(cache), items: Arc::new(items) }))
}

/// Computes the features that are missing.
fn fill<B: Train>(
    cache: &FeatureCache,
    images: &BTreeMap<&Path, usize>,
    options: &Options<'_>,
    ranks: &mut Ranks,
    captioner: &TrainedCaptioner<B>,
) -> Result<()> {
    let (missing, config) = (cache.missing(), &captioner.config().image);
    if !missing.is_empty() {
        (options.note)(&format!("computing the features of {} images once", missing.len()));
    }
    let paths: Vec<&Path> = images.keys().copied().collect();
    for items in missing.chunks(FEATURE_BATCH) {
        ranks.sum(&mut [1.0f32])?;
        if options.stop.load(Ordering::Relaxed) {
            cache.flush()?;
            return Err(Error::Cancelled);
        }
        let open = |&item: &usize| Some((item, Image::open(paths[item]).ok()?.preprocess(config)));
        let read: Vec<_> = items.par_iter().filter_map(open).collect();
        let pixels: Vec<f32> = read.iter().flat_map(|(_, pixels)| pixels.iter().copied()).collect();
        let values = if read.is_empty() { Vec::new() } else { captioner.features(&pixels, read.len())? };
        for ((item, _), values) in read.iter().zip(values.chunks_exact((values.len() / read.len().max(1)).max(1))) {
            cache.put(*item, values)?;
        }
    }
    cache.flush()?;
    ranks.sum(&mut [0.0f32])
}

#[cfg(test)]
mod tests {
    use super::{Path, TrainConfig, digest, own_gpu};

    #[test]
    fn ranks_may_have_their_files_elsewhere() {
        let of = |manifest: &str| {
            let mut config = TrainConfig::default();
            config.data.manifest = Some(manifest.into());
            digest(&config, &[], Some(Path::new("run/step-00000010")))
        };
        assert_eq!(of("/data/a/all.jsonl"), of("/scratch/all.jsonl"));
        assert_ne!(of("/data/all.jsonl"), of("/data/other.jsonl"));
    }

    #[test]
    fn every_process_has_a_gpu_of_its_own() {
        assert_eq!([0, 1, 3].map(|local| own_gpu(local, &[0, 1, 2, 3])), [0, 1, 3]);
        // Each sees one; and a number that is too large is for opening the device to refuse.
        assert_eq!([own_gpu(0, &[0]), own_gpu(3, &[0]), own_gpu(2, &[0, 1])], [0, 0, 2]);
    }
}
