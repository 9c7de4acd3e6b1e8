//! `im2sp units`: recordings to speech units.

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use im2sp::data::unit_file;
use im2sp::files::{append_whole, write_atomically};
use im2sp::weights::centres;
use im2sp::weights::torch::IntegerLayout;
use im2sp::{Error, OnRecordings, Recorded, Result};
use serde_json::{Value, json};

use super::output;
use super::print::{note, offer_json, offer_line, print_json, shown};
use super::recordings::{self, FeatureArgs, Recording};

/// Turn recordings into speech units
///
/// A speech encoder (HuBERT) makes features of every 20 ms, and each becomes the number of the nearest centre of k-means. WAV
/// and FLAC are read at any rate, of as many channels as there are. Units are not deduplicated. Long recordings are taken in
/// chunks of 100 s, as fairseq does.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp units speech.wav --weights models/hubert --kmeans km.bin
  im2sp units wavs/ --weights models/hubert --kmeans km.bin -o units/
  im2sp units wavs/ --weights models/hubert --kmeans km.bin -o units.jsonl
  im2sp units wavs/ --cepstra --kmeans centres.npy --change-price 434 -o units/")]
pub struct Units {
    /// A recording, or a folder, which is searched with all folders inside it
    #[arg(value_name = "AUDIO|DIR")]
    audio: PathBuf,
    /// A directory for a .unit file of each recording, which DIR/ makes; a file that ends in .jsonl for a line of JSON of each;
    /// another name for one .unit file [default: print the units]
    #[arg(short, long, value_name = "DIR|FILE")]
    output: Option<PathBuf>,
    /// Centres of k-means: scikit-learn's in a joblib file (km.bin), or a .npy file
    #[arg(long, value_name = "FILE")]
    kmeans: PathBuf,
    /// Price of a change of unit, in squared distances: with one, units do not flicker; without, each frame takes the nearest
    /// centre
    #[arg(long, default_value_t = 0.0, value_name = "PRICE", value_parser = price)]
    change_price: f64,
    /// Layout of .unit files: a NumPy array or a tensor, as torch.save writes them
    #[arg(long, default_value = "array", value_name = "LAYOUT")]
    unit_layout: Layout,
    /// Make units of recordings again that have some already
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object a line per recording on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    features: FeatureArgs,
}

/// A price is a number that is not negative.
fn price(text: &str) -> std::result::Result<f64, String> {
    let price: f64 = text.parse().map_err(|_| "expected a number")?;
    if price >= 0.0 { Ok(price) } else { Err("expected 0 or more".into()) }
}

#[derive(Clone, Copy, ValueEnum)]
enum Layout {
    Array,
    Tensor,
}

/// Places of units.
enum Target {
    /// Standard output.
    Printed,
    /// A file for each recording of a folder.
    Folder(PathBuf),
    /// The file of the one recording.
    File(PathBuf),
    /// A line of JSON for each, after those that are kept.
    Lines(Lines),
}

impl Units {
    /// Reads, encodes and writes. A recording that cannot be read is reported and does not stop the others.
    pub fn run(self) -> Result<ExitCode> {
        let mut all = recordings::of(&self.audio)?;
        let (found, mut target) = (all.len(), self.target(&mut all)?);
        if found > all.len() {
            let skipped = found - all.len();
            note(format_args!(
                "skipping {skipped} of {found} recordings that already have units (--overwrite makes them again)"
            ));
        }
        if all.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let centres = centres::read(&self.kmeans)?;
        let extractor = self.features.units(centres, self.change_price)?;
        if let Target::Lines(lines) = &mut target {
            lines.begin()?;
        }
        let several = self.audio.is_dir();
        let many = |paths: &[&Path], on_units: OnRecordings<'_, Vec<u32>>| extractor.units_of_many(paths, on_units);
        let folder = match &target {
            Target::Folder(folder) => Some(folder.clone()),
            _ => None,
        };
        let write = |recording: &Recording, (units, _): &Recorded<Vec<u32>>| match &folder {
            Some(folder) => self.write(&recording.target(folder, SUFFIX), units),
            None => Ok(()),
        };
        let mut unprinted = Ok(());
        let status = recordings::each("units", &all, many, &write, &mut |recording, (units, samples)| {
            let record = record(recording, &units, recordings::seconds(samples));
            if let Target::Printed = target {
                return self.print(recording, &record, several);
            }
            self.put(&mut target, &units, &record)?;
            // What cannot be printed costs no file.
            if self.json && unprinted.is_ok() {
                unprinted = print_json(&record);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        unprinted.map(|()| status)
    }

    /// The target of the units. Recordings that have some already are removed from `all`.
    fn target(&self, all: &mut Vec<Recording>) -> Result<Target> {
        let Some(path) = &self.output else { return Ok(Target::Printed) };
        if path.extension().is_some_and(|suffix| suffix == "jsonl") {
            let name = |recording: &Recording| recording.path.to_string_lossy().into_owned();
            let again: HashSet<String> = if self.overwrite { all.iter().map(name).collect() } else { HashSet::new() };
            let (lines, done) = Lines::read(path, &again)?;
            all.retain(|recording| !done.contains(&name(recording)));
            return Ok(Target::Lines(lines));
        }
        match output::folder(path)? {
            Some(folder) => {
                all.retain(|recording| self.overwrite || !recording.target(&folder, SUFFIX).exists());
                Ok(Target::Folder(folder))
            }
            None if self.audio.is_dir() => {
                let problem = format!("{} is no directory, but there are several recordings: add a /", path.display());
                Err(Error::Option { option: "output", problem })
            }
            None => Ok(Target::File(path.clone())),
        }
    }

    /// Writes a file of units.
    fn write(&self, path: &Path, units: &[u32]) -> Result<()> {
        let layout = match self.unit_layout {
            Layout::Array => IntegerLayout::Array,
            Layout::Tensor => IntegerLayout::Tensor,
        };
        let parent = im2sp::files::folder_of(path);
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        unit_file::write(path, units, layout)
    }

    /// Prints the units of a recording. Breaks where nobody reads them any more.
    fn print(&self, recording: &Recording, record: &Value, several: bool) -> Result<ControlFlow<()>> {
        let text = record["hubert"].as_str().unwrap_or_default();
        match several {
            _ if self.json => offer_json(record),
            true => offer_line(format_args!("{}|{text}", shown(&recording.path))),
            false => offer_line(text),
        }
    }

    /// Writes units to the one file of all.
    fn put(&self, target: &mut Target, units: &[u32], record: &Value) -> Result<()> {
        match target {
            // The file is there already.
            Target::Printed | Target::Folder(_) => Ok(()),
            Target::File(path) => self.write(path, units),
            Target::Lines(lines) => lines.append(record),
        }
    }
}

/// Units as JSON.
fn record(recording: &Recording, units: &[u32], seconds: f64) -> Value {
    let text = units.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    json!({ "audio": recording.path.to_string_lossy(), "hubert": text, "duration": seconds })
}

/// Suffix of a file of units.
const SUFFIX: &str = ".unit";

/// A file with a line of JSON for each recording.
struct Lines {
    path: PathBuf,
    /// Content that stays, and whether the file holds just that.
    kept: Vec<u8>,
    is_clean: bool,
    file: Option<File>,
}

impl Lines {
    /// Reads the file at `path`, if there is one, and the recordings it names, without those that are made `again`. A line that was
    /// not finished is left out: a run was ended while it was written.
    fn read(path: &Path, again: &HashSet<String>) -> Result<(Lines, HashSet<String>)> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            other => other.map_err(Error::io("read", path))?,
        };
        let wrong = |n: usize| {
            let problem = format!("{}: line {n} is no record of a recording: choose another", path.display());
            Error::Option { option: "output", problem }
        };
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        if whole == 0 && !bytes.is_empty() && !bytes.starts_with(br#"{"audio":"#) {
            return Err(wrong(1));
        }
        let (mut kept, mut done) = (Vec::new(), HashSet::new());
        for (n, line) in bytes[..whole].split_inclusive(|&byte| byte == b'\n').enumerate() {
            let record: Option<Value> = serde_json::from_slice(line).ok();
            let audio = record.as_ref().and_then(|record| record["audio"].as_str());
            let audio = audio.ok_or_else(|| wrong(n + 1))?;
            if !again.contains(audio) {
                done.insert(audio.to_string());
                kept.extend_from_slice(line);
            }
        }
        let is_clean = kept.len() == bytes.len();
        Ok((Lines { path: path.to_owned(), kept, is_clean, file: None }, done))
    }

    /// Opens the file for more lines.
    fn begin(&mut self) -> Result<()> {
        if !self.is_clean {
            write_atomically(&self.path, &self.kept)?;
        }
        let file = File::options().append(true).create(true).open(&self.path);
        self.file = Some(file.map_err(Error::io("write", &self.path))?);
        Ok(())
    }

    /// Appends a line; what could not be written whole is taken back.
    fn append(&mut self, record: &Value) -> Result<()> {
        let Some(file) = &mut self.file else { return Err(Error::internal("a file of lines that is not open")) };
        append_whole(file, &self.path, format!("{record}\n").as_bytes())
    }
}
