//! `im2sp evaluate`: a data set's images to units, waveforms, transcripts and scores.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use im2sp::eval::listener::{Listener, Program};
use im2sp::eval::report::{self, Report, html, markdown};
use im2sp::eval::run::{Item, Notice, Run, locate};
use im2sp::eval::score::references::{ReferenceImage, References};
use im2sp::eval::score::unit_error_rate::{self, NamedUnits, Rate};
use im2sp::weights::directory::{CAPTIONER, CONFIG, TOKENIZER, TOKENIZER_CONFIG, VOCODER};
use im2sp::weights::speech::SPEECH;
use im2sp::{CaptionOptions, Error, Recognizer, Result, files};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::caption::{Decoding, IN_FLIGHT};
use super::print::{note, print_error, print_json, print_line, shown};
use super::progress::Bar;
use super::score::ExternalArgs;
use super::{ModelArgs, vocoder_of};

/// Maximum bytes of a list of images.
const MAX_LIST: u64 = 1 << 26;
/// Maximum bytes of a file of captions.
const MAX_CAPTIONS: u64 = 1 << 31;
/// This program, whose model is embedded.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("IM2SP_COMMIT"), ")");

/// Evaluate a model: images to units, waveforms, transcripts and scores
///
/// Every stage is kept in the directory: the same command continues a run that was ended, and tries again what failed. The text
/// of a waveform comes from a recogniser (--asr) or from any program (--asr-command): it is given the path of a WAV file as its
/// last argument and prints the text on the first line of its standard output; a shell runs it, once for each file. METEOR and SPICE come from an installed pycocoevalcap, as for `im2sp score`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp evaluate --weights models/flickr8k --dataset flickr8k --images Flickr8k/ --captions dataset_flickr8k.json \\
      --asr models/wav2vec2 -o eval/
  im2sp evaluate --weights models/git-large-coco --dataset coco --images coco/ --captions dataset_coco.json \\
      --asr-command 'whisper-cli --no-prints -nt -f' --asr-jobs 4 --compat reference -o eval-reference/")]
pub struct Evaluate {
    /// Data set that the captions are of
    #[arg(long, value_name = "NAME")]
    dataset: Dataset,
    /// Folder of the images: COCO's with train2014/ and val2014/, Flickr8k's with Images/, or one that holds them all
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Captions of people: Karpathy's dataset_*.json, COCO's captions_*.json or Flickr8k.token.txt
    #[arg(long, value_name = "FILE")]
    captions: PathBuf,
    /// Part of Karpathy's file [default: test]
    #[arg(long, value_name = "NAME", conflicts_with = "list")]
    split: Option<String>,
    /// Names of images to evaluate, one a line, such as Flickr_8k.testImages.txt
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Take this many images from the beginning
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Recogniser, a directory made by `im2sp convert`
    #[arg(long, value_name = "DIR", required_unless_present = "asr_command", conflicts_with = "asr_command")]
    asr: Option<PathBuf>,
    /// Program that listens
    #[arg(long, value_name = "COMMAND")]
    asr_command: Option<String>,
    /// Files that the program listens to at a time
    #[arg(long, default_value_t = 1, value_name = "N", requires = "asr_command")]
    asr_jobs: usize,
    /// Seconds that it may take for one file
    #[arg(long, default_value_t = 60, value_name = "S", requires = "asr_command")]
    asr_timeout: u64,
    /// True units, for the unit error rate: a folder of NAME.unit or NAME_0.unit, or lists of units with names
    #[arg(long, value_name = "DIR|FILE")]
    ref_units: Option<PathBuf>,
    /// Directory of all results
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Worst and best cases that the report shows, so many of each
    #[arg(long, default_value_t = 20, value_name = "N")]
    cases: usize,
    /// Decode this many images together [default: 8 on the CPU, 64 on a GPU]
    #[arg(long, value_name = "N")]
    in_flight: Option<usize>,
    /// Speaker of a multi-speaker vocoder
    #[arg(long, value_name = "N")]
    speaker: Option<u32>,
    /// Print the scores as a JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    external: ExternalArgs,
    #[command(flatten)]
    decoding: Decoding,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dataset {
    Coco,
    Flickr8k,
}

impl Evaluate {
    /// Runs the stages that are not done and writes the report. Images that fail are reported and left out.
    pub fn run(self) -> Result<ExitCode> {
        let config = self.config()?;
        let truths = self.ref_units.as_deref().map(unit_error_rate::read).transpose()?;
        let mut run = Run::open(&self.output, &config, self.items()?)?;
        let (mut bar, mut failed) = (Bar::new(), false);
        let mut notice = |notice: Notice| match notice {
            Notice::Progress(stage, done, total) => bar.show(stage, done as u64, total as u64),
            Notice::Failed(error) => {
                failed = true;
                print_error(error);
            }
        };
        let (uncaptioned, unspoken) = run.unspoken();
        let all_spoken = uncaptioned.is_empty() && unspoken.is_empty();
        // Opened first: nothing is made for a listener that cannot be.
        let listener = (!all_spoken || !run.unheard().is_empty()).then(|| self.listener()).transpose()?;
        if !all_spoken {
            let engine = self.model.load()?;
            vocoder_of(&engine)?;
            note(format_args!("device {}, weights {}", engine.device(), engine.dtype()));
            let options = CaptionOptions {
                generate: self.decoding.options(),
                speaker: self.speaker,
                ..CaptionOptions::default()
            };
            let in_flight = self.in_flight.unwrap_or(IN_FLIGHT[usize::from(engine.memory().is_some())]);
            run.speak(&engine, &options, in_flight, &mut notice)?;
        }
        if let Some(listener) = listener {
            run.listen(&listener, &mut notice)?;
        }
        drop(bar);
        let rate = truths.map(|truths| self.unit_error_rate(&run, truths, &mut failed));
        let report = Report::new(&run, config, rate, |scored| self.external.score(&scored.tokens))?;
        self.write(&run, &report)?;
        if !report.missing.is_empty() {
            let (missing, all) = (report.missing.len(), run.items.len());
            note(format_args!("{missing} of {all} images are not scored: the same command tries them again"));
        }
        Ok(if failed || !report.missing.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// The unit error rate of the images with true units. The others are reported.
    fn unit_error_rate(&self, run: &Run, truths: NamedUnits, failed: &mut bool) -> Rate {
        let units = run.items.iter().filter_map(|item| Some((item.name.clone(), run.units.get(&item.name)?.clone())));
        let path = self.ref_units.as_deref().unwrap_or(Path::new(""));
        let (mut rates, all) = (Vec::new(), unit_error_rate::rates(path, &units.collect(), truths));
        for rate in all {
            match rate {
                Ok(rate) => rates.push(rate),
                Err(error) => {
                    print_error(error);
                    *failed = true;
                }
            }
        }
        Rate::of(&rates)
    }

    /// Writes the report and prints the scores.
    fn write(&self, run: &Run, report: &Report) -> Result<()> {
        let json = report.json();
        run.write("report.json", &format!("{json:#}\n"))?;
        run.write("report.md", &markdown(report, self.cases))?;
        let page = html(report, self.cases);
        let path = run.write("report.html", &page)?;
        if self.json {
            print_json(&json["scores"])?;
        } else {
            for (name, value) in &report.scores {
                print_line(format_args!("{name:<20} {}", report::shown(value)))?;
            }
        }
        note(format_args!("report in {} ({:.1} MB)", shown(&path), page.len() as f64 / 1e6));
        Ok(())
    }

    /// The images with their captions.
    fn items(&self) -> Result<Vec<Item>> {
        let references = References::read(&self.captions)?;
        let wrong = |problem: String| Error::weights(&self.captions, "images", problem);
        let of_coco = references.images.iter().any(|image| image.id.is_some());
        if of_coco != matches!(self.dataset, Dataset::Coco) {
            return Err(wrong("are of another data set than --dataset says".into()));
        }
        let chosen: Vec<&ReferenceImage> = match &self.list {
            Some(path) => listed(path, &references)?,
            None => {
                let split = self.split.as_deref().unwrap_or("test");
                let fits = |image: &&ReferenceImage| match (&image.split, &self.split) {
                    (Some(own), _) => own == split,
                    (None, given) => given.is_none(),
                };
                references.images.iter().filter(fits).collect()
            }
        };
        let known = |image: &&&ReferenceImage| !image.captions.is_empty() && !image.name.is_empty();
        let item = |image: &&ReferenceImage| Item {
            name: image.name.clone(),
            file: locate(&self.images, image),
            references: image.captions.clone(),
        };
        let items: Vec<Item> = chosen.iter().filter(known).take(self.limit.unwrap_or(usize::MAX)).map(item).collect();
        if items.is_empty() {
            return Err(wrong("there is none of this split: see --split and --list".into()));
        }
        if !items.iter().any(|item| item.file.is_file()) {
            let (folder, file) = (shown(&self.images), shown(&items[0].file));
            return Err(Error::Option {
                option: "images",
                problem: format!("{folder} holds none of them, such as {file}"),
            });
        }
        Ok(items)
    }

    /// Everything that the results depend on.
    fn config(&self) -> Result<Map<String, Value>> {
        let absolute =
            |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
        let hash = |path: &PathBuf, max: u64| {
            let bytes = files::read_at_most(path, max)?;
            Ok::<_, Error>(hexadecimal(Sha256::new_with_prefix(bytes)))
        };
        let listener = match (&self.asr, &self.asr_command) {
            (Some(directory), _) => absolute(directory),
            (None, command) => command.clone().unwrap_or_default(),
        };
        let config = json!({
            "weights": self.model.weights.as_deref().map_or("embedded".into(), absolute),
            "weights_sha256": self.model.weights.as_deref().map(model_hash).transpose()?,
            "weights_version": self.model.weights.is_none().then_some(VERSION),
            "precision": self.model.options().dtype.map(|dtype| dtype.name()),
            "dataset": format!("{:?}", self.dataset).to_lowercase(),
            "images": absolute(&self.images),
            "captions": absolute(&self.captions),
            "captions_sha256": hash(&self.captions, MAX_CAPTIONS)?,
            "split": self.split,
            "list_sha256": self.list.as_ref().map(|list| hash(list, MAX_LIST)).transpose()?,
            "limit": self.limit,
            "decoding": format!("{:?}", self.decoding.options()),
            "speaker": self.speaker,
            "listener": listener,
            "listener_sha256": self.asr.as_deref().map(model_hash).transpose()?,
        });
        let Value::Object(mut config) = config else { return Ok(Map::new()) };
        config.retain(|_, value| !value.is_null());
        Ok(config)
    }

    fn listener(&self) -> Result<Listener> {
        Ok(match (&self.asr, &self.asr_command) {
            (Some(directory), _) => Listener::Recognizer(Box::new(Recognizer::load(directory, self.model.options())?)),
            (None, command) => Listener::Program(Program {
                command: command.clone().unwrap_or_default(),
                timeout: Duration::from_secs(self.asr_timeout),
                jobs: self.asr_jobs,
            }),
        })
    }
}

/// Hash of the files of a model, without those that a training run keeps next to them: another model at the same place is
/// another configuration.
fn model_hash(directory: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for name in [CONFIG, CAPTIONER, VOCODER, TOKENIZER_CONFIG, TOKENIZER, SPEECH] {
        let path = directory.join(name);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound && name != CONFIG => continue,
            file => file.map_err(Error::io("read", &path))?,
        };
        // The content of one file is not that of another.
        hash.update(format!("{name}\n{}\n", file.metadata().map_err(Error::io("read", &path))?.len()));
        io::copy(&mut file, &mut hash).map_err(Error::io("read", &path))?;
    }
    Ok(hexadecimal(hash))
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The images of a list, in its order.
fn listed<'a>(path: &Path, references: &'a References) -> Result<Vec<&'a ReferenceImage>> {
    let bytes = files::read_at_most(path, MAX_LIST)?;
    let text = String::from_utf8_lossy(&bytes);
    let names = text.lines().map(str::trim).enumerate().filter(|(_, name)| !name.is_empty());
    let mut seen = HashSet::new();
    let image = |(at, name): (usize, &str)| {
        let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
        let wrong = |problem: String| Error::weights(path, format!("line {}", at + 1), problem);
        let found = references.find(name).or_else(|| references.find(&stem));
        let found = found.ok_or_else(|| wrong(format!("{name:?} has no captions in --captions")))?;
        match seen.insert(&found.name) {
            true => Ok(found),
            false => Err(wrong(format!("{name:?} is there twice: leave one out"))),
        }
    };
    names.map(image).collect()
}
