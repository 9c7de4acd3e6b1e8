//! `im2sp units`: recordings to speech units.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use im2sp::data::unit_file;
use im2sp::weights::centres;
use im2sp::weights::torch::IntegerLayout;
use im2sp::{Error, Result};
use serde_json::{Value, json};

use super::output;
use super::print::{note, print_json, print_line, shown};
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
  im2sp units wavs/ --cepstra --kmeans weights/cepstra.npy --change-price 434 -o units/")]
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
    /// A line of JSON for each.
    Lines(File),
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
        let several = self.audio.is_dir();
        recordings::each("units", &all, &mut |recording, sound| {
            let units = extractor.units(&sound.samples)?;
            self.put(&mut target, recording, &units, sound.seconds, several)
        })
    }

    /// Where units go; takes recordings out that have some already.
    fn target(&self, all: &mut Vec<Recording>) -> Result<Target> {
        let Some(path) = &self.output else { return Ok(Target::Printed) };
        if path.extension().is_some_and(|suffix| suffix == "jsonl") {
            let (file, done) = lines(path, self.overwrite)?;
            all.retain(|recording| !done.contains(&*recording.path.to_string_lossy()));
            return Ok(Target::Lines(file));
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

    fn put(
        &self,
        target: &mut Target,
        recording: &Recording,
        units: &[u32],
        seconds: f64,
        several: bool,
    ) -> Result<()> {
        let text = units.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let record = json!({ "audio": recording.path.to_string_lossy(), "hubert": text, "duration": seconds });
        let layout = match self.unit_layout {
            Layout::Array => IntegerLayout::Array,
            Layout::Tensor => IntegerLayout::Tensor,
        };
        match target {
            Target::Printed if self.json => return print_json(&record),
            Target::Printed if several => return print_line(format_args!("{}|{text}", shown(&recording.path))),
            Target::Printed => return print_line(text),
            Target::Folder(folder) => {
                let path = recording.target(folder, SUFFIX);
                let parent = im2sp::files::folder_of(&path);
                std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
                unit_file::write(&path, units, layout)?;
            }
            Target::File(path) => unit_file::write(path, units, layout)?,
            Target::Lines(file) => {
                let name = self.output.as_deref().unwrap_or(Path::new("-"));
                file.write_all(format!("{record}\n").as_bytes()).map_err(Error::io("write", name))?;
            }
        }
        if self.json { print_json(&record) } else { Ok(()) }
    }
}

/// Suffix of a file of units.
const SUFFIX: &str = ".unit";

/// The file of lines at `path`, at its end, and the recordings it names. A line that was not finished is cut off: a run was ended
/// while it was written.
fn lines(path: &Path, overwrite: bool) -> Result<(File, HashSet<String>)> {
    let fail = || Error::io("write", path);
    let mut file = File::options().read(true).append(true).create(true).open(path).map_err(fail())?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    let whole = if overwrite { 0 } else { bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1) };
    let mut done = HashSet::new();
    for (n, line) in bytes[..whole].split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let record: Option<Value> = serde_json::from_slice(line).ok();
        match record.as_ref().and_then(|record| record["audio"].as_str()) {
            Some(audio) => done.insert(audio.to_string()),
            None => {
                let problem = format!("{}: line {} is no record of a recording: choose another", path.display(), n + 1);
                return Err(Error::Option { option: "output", problem });
            }
        };
    }
    file.set_len(whole as u64).map_err(fail())?;
    file.seek(SeekFrom::End(0)).map_err(fail())?;
    Ok((file, done))
}
