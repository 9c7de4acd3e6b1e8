//! `im2sp train`: a captioner learns to speak of images.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use im2sp::train::config::TrainConfig;
use im2sp::train::journal::Update;
use im2sp::train::model::Freeze;
use im2sp::train::ranks::Place;
use im2sp::train::schedule::Decay;
use im2sp::train::session::{Ending, Event};
use im2sp::train::start::{self, Options};
use im2sp::{Device, Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::interrupt;
use super::print::note;

/// Train a captioner on images and speech units
///
/// Options override the configuration file, and that the paper's defaults. The run directory gets config.toml, log.jsonl, event
/// files for TensorBoard, samples spoken at each validation, and checkpoints that `im2sp caption --weights` takes;
/// checkpoints.json names the best and the last. Ctrl-C saves and ends; --resume continues exactly where the last checkpoint was.
/// Started by torchrun, SLURM or mpirun, the processes train one model together.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp train runs/a --init models/git-large-coco --manifest data/train.jsonl --freeze vision --cache-features
  im2sp train runs/b --config paper.toml --coco coco --spoken-coco SpokenCOCO --splits karpathy
  im2sp train runs/a --resume
  im2sp plot runs/a -o loss.svg")]
pub struct Train {
    /// Run directory: new or empty, or with --resume that of the run
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Continue the run in RUN from its last checkpoint
    #[arg(long)]
    resume: bool,
    /// Do a few updates, print what a run takes in memory and time, and write nothing
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: Device,
    /// Sum the gradients of several processes on the host, not through NCCL
    #[arg(long)]
    sum_on_host: bool,
    /// Threads that read images [default: all of the processor]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    data: DataFlags,
    #[command(flatten)]
    recipe: RecipeFlags,
}

#[derive(Args)]
#[command(next_help_heading = "Model")]
struct ModelFlags {
    /// Weights to begin with: a model directory, a checkpoint, a Hugging Face GIT directory; or a config.json, for random ones
    #[arg(long, value_name = "PATH")]
    init: Option<PathBuf>,
    /// Begin with random weights in the decoder, whatever --init has there
    #[arg(long)]
    fresh_decoder: bool,
    /// Model directory whose vocoder speaks samples and becomes part of the checkpoints
    #[arg(long, value_name = "DIR")]
    vocoder: Option<PathBuf>,
    /// Part that is not trained [default: vision]
    #[arg(long, value_name = "PART")]
    freeze: Option<Frozen>,
    /// Compute in f32 on a GPU too, instead of bf16 with f32 master weights
    #[arg(long)]
    f32: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Frozen {
    /// Nothing
    None,
    /// The image encoder
    Encoder,
    /// The image encoder and the projection
    Vision,
}

#[derive(Args)]
#[command(next_help_heading = "Data")]
struct DataFlags {
    /// JSON lines {"image": "a.jpg", "units": [71, 12], "split": "train"}
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Use this many samples at the end of a manifest for validation, where it has none
    #[arg(long, value_name = "N")]
    hold_out: Option<usize>,
    /// COCO 2014, with train2014/ and val2014/
    #[arg(long, value_name = "DIR", requires = "spoken_coco")]
    coco: Option<PathBuf>,
    /// SpokenCOCO, with its JSON files and Hubert_units/
    #[arg(long, value_name = "DIR")]
    spoken_coco: Option<PathBuf>,
    /// Flickr8k, with Images/
    #[arg(long, value_name = "DIR", requires = "flickr_audio")]
    flickr: Option<PathBuf>,
    /// Flickr8k audio, with Hubert_units/
    #[arg(long, value_name = "DIR")]
    flickr_audio: Option<PathBuf>,
    /// Folder of Karpathy's split files, or of Flickr8k's lists
    #[arg(long, value_name = "DIR")]
    splits: Option<PathBuf>,
    /// Compute the frozen part's output once, and keep it in the run directory
    #[arg(long)]
    cache_features: bool,
    /// Stored units of the images (im2sp tokenize), for a captioner that sees image units
    #[arg(long, value_name = "FILE")]
    image_units: Option<PathBuf>,
    /// Directory of the units' tokenizer, for a captioner without a codebook of its own
    #[arg(long, value_name = "DIR", requires = "image_units")]
    tokenizer: Option<PathBuf>,
    /// Mirror every other image at random, or its grid of image units
    #[arg(long)]
    flip: bool,
    /// See a random part of the grid of image units instead of its centre
    #[arg(long, requires = "image_units")]
    unit_shift: bool,
    /// Replace this share of the image units by near ones
    #[arg(long, value_name = "X", requires = "image_units")]
    unit_synonyms: Option<f32>,
    /// Add normal noise of this deviation to the code vectors of image units
    #[arg(long, value_name = "X", requires = "image_units")]
    unit_noise: Option<f32>,
    /// Change brightness, contrast and saturation by up to this share
    #[arg(long, value_name = "X")]
    colour_jitter: Option<f32>,
    /// Cut off up to this share of each side
    #[arg(long, value_name = "X")]
    crop_jitter: Option<f32>,
    /// Longest sequence, BOS and EOS included
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
}

#[derive(Args)]
#[command(next_help_heading = "Recipe")]
struct RecipeFlags {
    /// Updates of the whole run [default: 100000]
    #[arg(long, value_name = "N")]
    iterations: Option<u64>,
    /// Images of a batch, on each process [default: 16]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Batches of an update [default: 1]
    #[arg(long, value_name = "N")]
    accumulation: Option<usize>,
    /// Largest learning rate [default: 5e-5]
    #[arg(long, value_name = "X")]
    rate: Option<f64>,
    /// Updates of the warm-up [default: 10000]
    #[arg(long, value_name = "N")]
    warmup: Option<u64>,
    /// Keep the learning rate after the warm-up, instead of half a cosine to zero
    #[arg(long)]
    constant_rate: bool,
    /// AdamW's weight decay [default: 1e-5]
    #[arg(long, value_name = "X")]
    weight_decay: Option<f32>,
    /// Scale gradients down to this norm
    #[arg(long, value_name = "X")]
    clip: Option<f64>,
    /// Dropout of the decoder, of hidden values and of attention [default: 0.1]
    #[arg(long, value_name = "P")]
    dropout: Option<f32>,
    /// Replace this share of the decoder's input units by random ones
    #[arg(long, value_name = "P")]
    token_noise: Option<f32>,
    /// Seed of order, dropout and fresh weights [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Updates between validations [default: 5000]
    #[arg(long, value_name = "N")]
    validate_every: Option<u64>,
    /// Updates between checkpoints [default: 1000]
    #[arg(long, value_name = "N")]
    save_every: Option<u64>,
}

impl Train {
    /// Trains to the end, or until it is interrupted.
    pub fn run(self) -> Result<ExitCode> {
        let stop = interrupt::stop_flag();
        let place = Place::of(|name| std::env::var(name).ok())?;
        let is_first = place.as_ref().is_none_or(|place| place.rank == 0);
        let config = self.resolve()?;
        let options = Options {
            run: self.run.clone(),
            resume: self.resume,
            dry_run: self.dry_run,
            device: self.device,
            sum_on_host: self.sum_on_host,
            threads: self.threads,
            stop: &stop,
            on_bad: Arc::new(|_, error: &Error| note(format_args!("left out: {error}"))),
            note: &|line| note(format_args!("{line}")),
        };
        let mut display = Display::new(config.iterations, is_first);
        let ending = start::train(config, &options, place.as_ref(), &mut |event| display.show(&event))?;
        drop(display);
        if self.dry_run {
            return Ok(ExitCode::SUCCESS);
        }
        let run = self.run.display();
        match ending {
            Ending::Complete => {
                note(format_args!("done: {run}/checkpoints.json names the best checkpoint and the last"))
            }
            Ending::Stopped => note(format_args!("stopped and saved: continue with im2sp train {run} --resume")),
        }
        Ok(if stop.load(std::sync::atomic::Ordering::Relaxed) && ending == Ending::Stopped {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }

    /// Defaults, or those of the run that is resumed; the file over them, the options over that.
    fn resolve(&self) -> Result<TrainConfig> {
        let own = self.run.join(im2sp::train::config::CONFIG);
        let mut config = match &self.config {
            Some(path) => TrainConfig::read(path)?,
            None if self.resume && own.exists() => TrainConfig::read(&own)?,
            None => TrainConfig::default(),
        };
        let ModelFlags { init, fresh_decoder, vocoder, freeze, f32 } = &self.model;
        config.f32 |= *f32;
        config.fresh_decoder |= *fresh_decoder;
        set(&mut config.init, init.clone().map(Some));
        set(&mut config.vocoder, vocoder.clone().map(Some));
        let freeze = freeze.map(|part| match part {
            Frozen::None => Freeze::None,
            Frozen::Encoder => Freeze::Encoder,
            Frozen::Vision => Freeze::Vision,
        });
        set(&mut config.freeze, freeze);
        self.data.apply(&mut config);
        self.recipe.apply(&mut config);
        Ok(config)
    }
}

/// Replaces a value by an option that was given.
fn set<T>(value: &mut T, option: Option<T>) {
    if let Some(option) = option {
        *value = option;
    }
}

impl DataFlags {
    fn apply(&self, config: &mut TrainConfig) {
        set(&mut config.max_length, self.max_length);
        let data = &mut config.data;
        for (value, option) in [
            (&mut data.manifest, &self.manifest),
            (&mut data.coco, &self.coco),
            (&mut data.spoken_coco, &self.spoken_coco),
            (&mut data.flickr, &self.flickr),
            (&mut data.flickr_audio, &self.flickr_audio),
            (&mut data.splits, &self.splits),
            (&mut data.image_units, &self.image_units),
            (&mut data.tokenizer, &self.tokenizer),
        ] {
            set(value, option.clone().map(Some));
        }
        set(&mut data.hold_out, self.hold_out);
        data.cache_features |= self.cache_features;
        let units = &mut data.augment_units;
        units.shift |= self.unit_shift;
        set(&mut units.synonyms, self.unit_synonyms);
        set(&mut units.noise, self.unit_noise);
        let flip = if data.image_units.is_some() { &mut units.flip } else { &mut data.augment.flip };
        *flip |= self.flip;
        set(&mut data.augment.colour_jitter, self.colour_jitter);
        set(&mut data.augment.crop_jitter, self.crop_jitter);
    }
}

impl RecipeFlags {
    fn apply(&self, config: &mut TrainConfig) {
        set(&mut config.iterations, self.iterations);
        set(&mut config.batch, self.batch);
        set(&mut config.accumulation, self.accumulation);
        set(&mut config.schedule.rate, self.rate);
        set(&mut config.schedule.warmup, self.warmup);
        set(&mut config.schedule.decay, self.constant_rate.then_some(Decay::Constant));
        set(&mut config.weight_decay, self.weight_decay);
        set(&mut config.clip, self.clip.map(Some));
        set(&mut config.dropout, self.dropout);
        set(&mut config.attention_dropout, self.dropout);
        set(&mut config.token_noise, self.token_noise);
        set(&mut config.seed, self.seed);
        set(&mut config.validate_every, self.validate_every);
        set(&mut config.save_every, self.save_every);
    }
}

/// A progress bar on a terminal, lines in a pipe; of rank 0 only.
struct Display {
    bar: Option<ProgressBar>,
    shows: bool,
    lines_every: u64,
}

impl Display {
    fn new(iterations: u64, shows: bool) -> Display {
        use std::io::IsTerminal;
        let bar = (shows && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(iterations);
            if let Ok(style) = ProgressStyle::with_template("[{bar:24}] {pos}/{len} {msg} {eta} left") {
                bar.set_style(style);
            }
            bar
        });
        Display { bar, shows, lines_every: iterations.div_ceil(100).max(1) }
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Updated(update) => self.update(update),
            Event::Validated(v) => self.line(format!(
                "update {}: validation loss {:.4}, unit error rate {:.1} %, {} images in {:.1} s",
                v.update,
                v.loss,
                100.0 * v.unit_error_rate,
                v.images,
                v.seconds
            )),
            Event::Saved(_) => {}
        }
    }

    fn update(&self, u: &Update) {
        let share = u.share_of_peak.map_or(String::new(), |share| format!(", {:.0} % of peak", 100.0 * share));
        let text = format!(
            "loss {:.4}, {:.1} % of tokens wrong, rate {:.2e}, {:.1} images/s{share}",
            u.loss,
            100.0 * u.error,
            u.rate,
            u.images as f64 / u.seconds.max(1e-9)
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(u.update);
                bar.set_message(text);
            }
            None if u.update.is_multiple_of(self.lines_every) => self.line(format!("update {}: {text}", u.update)),
            None => {}
        }
    }

    fn line(&self, text: String) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None if self.shows => note(format_args!("{text}")),
            None => {}
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
