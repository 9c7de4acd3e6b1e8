//! `im2sp speak`: speech units to sound.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use im2sp::files::FileId;
use im2sp::units::{self, UnitList};
use im2sp::{Engine, Error, Result};
use serde_json::{Map, Value};

use super::output::{self, Destination, Format, is_dash};
use super::print::{insert_path, note, print_error, print_json, print_line, shown};
use super::{ModelArgs, names, vocoder_of};

/// Speak lists of units
///
/// A list is whole numbers with spaces or commas between them, `NAME|NUMBERS`, `NAME<TAB>NUMBERS`, a JSON array, a JSON
/// object with "units" as `im2sp caption --json` prints it, or a Python dictionary with 'hubert'. A file may hold several, one
/// a line. UTF-8 or, with a byte order mark, UTF-16.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp caption scene.png --no-audio > units.txt && im2sp speak units.txt -o speech.wav
  im2sp caption scene.png --no-audio | im2sp speak - -o - | ffplay -nodisp -autoexit -i -
  im2sp caption photos/ --no-audio --json > units.jsonl && im2sp speak units.jsonl -o spoken/
  im2sp speak --units \"71 12 4 150\" -o out.wav")]
pub struct Speak {
    /// A text file with units; - is standard input
    #[arg(value_name = "FILE|-", required_unless_present = "units", conflicts_with = "units")]
    file: Option<PathBuf>,
    /// The units themselves
    #[arg(long, value_name = "UNITS")]
    units: Option<String>,
    /// A file, into which several lists are spoken one after another; a directory for a file of each list, by its name or its
    /// line, which DIR/ makes; or - for standard output
    #[arg(short, long, value_name = "FILE|DIR|-")]
    output: PathBuf,
    /// A WAV file, or its 16-bit samples alone
    #[arg(long, default_value = "wav", value_name = "FORMAT")]
    format: Format,
    /// Speaker of a multi-speaker vocoder
    #[arg(long, value_name = "N")]
    speaker: Option<u32>,
    /// Print one JSON object a line per file on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Units and the file that they are spoken into.
struct Job {
    units: Vec<u32>,
    destination: Destination,
}

impl Speak {
    /// Reads, speaks and writes. A list that cannot be spoken is reported and does not stop the others.
    pub fn run(self) -> Result<ExitCode> {
        let engine = self.model.load()?;
        let count = vocoder_of(&engine)?.num_embeddings;
        let lists = match &self.file {
            Some(file) => {
                units::decode_lists(&output::read_input(file, units::MAX_TEXT_BYTES)?, output::input_name(file), count)?
            }
            None => units::parse_lists(self.units.as_deref().unwrap_or_default(), count)?,
        };
        let jobs = self.direct(lists)?;
        self.keep_input(&jobs)?;
        note(format_args!("device {}, weights {}", engine.device(), engine.dtype()));
        if let [job] = &jobs[..] {
            return self.speak(&engine, job).map(|()| ExitCode::SUCCESS);
        }
        let mut status = ExitCode::SUCCESS;
        for job in &jobs {
            if let Err(error) = self.speak(&engine, job) {
                print_error(format_args!("{}: {error}", shown(job.destination.path())));
                status = ExitCode::FAILURE;
            }
        }
        Ok(status)
    }

    /// Says where every list goes.
    fn direct(&self, lists: Vec<UnitList>) -> Result<Vec<Job>> {
        let wrong = |problem: String| Error::Option { option: "output", problem };
        let folder = output::folder(&self.output)?;
        let several = lists.len() > 1;
        let Some(folder) = folder else {
            let destination = Destination::of(&self.output)?;
            if self.json && destination == Destination::Standard {
                return Err(wrong("standard output cannot take both sound and --json".into()));
            }
            if several {
                let (count, output) = (lists.len(), shown(destination.path()));
                note(format_args!(
                    "{count} lists are spoken one after another into {output}; -o DIR/ makes a file of each"
                ));
            }
            let units = lists.into_iter().flat_map(|list| list.units).collect();
            return Ok(vec![Job { units, destination }]);
        };
        let inputs: Vec<PathBuf> = lists.iter().map(|list| self.input_of(list, several)).collect();
        let (names, _) = names::distinct(&inputs);
        let job = |(list, mut name): (UnitList, OsString)| {
            name.push(format!(".{}", self.format.suffix()));
            Job { units: list.units, destination: Destination::File(folder.join(name)) }
        };
        Ok(lists.into_iter().zip(names).map(job).collect())
    }

    /// Refuses to write sound over the units, under whatever name.
    fn keep_input(&self, jobs: &[Job]) -> Result<()> {
        let Some(input) = self.file.as_deref().and_then(FileId::of) else { return Ok(()) };
        let over = |job: &&Job| match &job.destination {
            Destination::File(path) => path.is_file() && FileId::of(path).as_ref() == Some(&input),
            Destination::Standard => false,
        };
        jobs.iter().find(over).map_or(Ok(()), |job| {
            let problem = format!("{} holds the units: choose another", job.destination.path().display());
            Err(Error::Option { option: "output", problem })
        })
    }

    /// The path that names a list's sound: its own, or that of the file with the number of the line.
    fn input_of(&self, list: &UnitList, several: bool) -> PathBuf {
        if let Some(name) = list.name.as_deref().filter(|name| Path::new(name).file_name().is_some()) {
            let path = Path::new(name);
            let sound = path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case(self.format.suffix()));
            return if sound { path.with_extension("") } else { path.to_owned() };
        }
        let mut name = match &self.file {
            None => OsString::from("units"),
            Some(file) if is_dash(file) => "stdin".into(),
            Some(file) => file.file_stem().unwrap_or_default().to_owned(),
        };
        if several {
            name.push(format!("-{}", list.line));
        }
        name.into()
    }

    /// Speaks one job and reports it.
    fn speak(&self, engine: &Engine, job: &Job) -> Result<()> {
        let mut speech = engine.speak_in_chunks(&job.units, self.speaker)?;
        let (rate, path) = (speech.sample_rate(), job.destination.path());
        let written = output::write_sound(&job.destination, self.format, rate, false, &mut speech)?;
        let seconds = written.samples as f64 / f64::from(rate);
        if self.json {
            let mut object = Map::new();
            insert_path(&mut object, "output", path);
            object.insert("units".into(), job.units.len().into());
            object.insert("duration_s".into(), seconds.into());
            object.insert("device".into(), engine.device().into());
            object.insert("dtype".into(), engine.dtype().into());
            return print_json(&Value::Object(object));
        }
        let line = format!("{}: {seconds:.2} s of speech from {} units", shown(path), job.units.len());
        match job.destination {
            Destination::Standard => note(line),
            Destination::File(_) => print_line(line)?,
        }
        Ok(())
    }
}
