//! The stages of an evaluation in one directory: units and waveforms of all images, transcripts of the waveforms. Every result is
//! a file or a line of one, and is kept: a run that was ended continues where it was. One image that fails stops no other; the
//! next run tries it again.
//!
//! ```text
//! evaluation.json   what was evaluated, and how: another configuration is refused
//! units.jsonl       {"image": "NAME", "units": [71, 12]} a line
//! wavs/NAME.wav     transcripts/NAME.txt     report.{json,md,html}
//! ```

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::listener::{Listener, Program};
use super::score::predictions::caption_of;
use super::score::references::ReferenceImage;
use super::writers::with_writers;
use crate::train::lock;
use crate::{Caption, CaptionOptions, Engine, Error, Image, Recognizer, Recorded, Result, Speech, audio, files};

/// The configuration's name in a directory.
const CONFIG: &str = "evaluation.json";
/// The units' name.
const UNITS: &str = "units.jsonl";
/// Larger than the units of any data set.
const MAX_BYTES: u64 = 1 << 32;

/// An image to be evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Names its results.
    pub name: String,
    /// The image file.
    pub file: PathBuf,
    /// Captions that people wrote.
    pub references: Vec<String>,
}

/// An event of a run.
pub enum Notice {
    /// So many of so many are done in a stage.
    Progress(&'static str, usize, usize),
    /// An image or a recording failed.
    Failed(Error),
}

/// A directory of an evaluation; no other process works in it.
pub struct Run {
    folder: PathBuf,
    /// All images.
    pub items: Vec<Item>,
    /// Units of those that were captioned.
    pub units: HashMap<String, Vec<u32>>,
    _lock: Option<File>,
}

#[derive(Serialize, Deserialize)]
struct UnitLine {
    image: String,
    units: Vec<u32>,
}

/// The file of an image of a data set below `images`: as the captions name it, or under the name alone, there or in `Images/`.
pub fn locate(images: &Path, image: &ReferenceImage) -> PathBuf {
    let whole = images.join(&image.file);
    let name = Path::new(&image.file).file_name().unwrap_or_default();
    // COCO's folders are part of its files' names: COCO_val2014_000000000042.jpg.
    let folder = image.file.split('_').nth(1).unwrap_or_default();
    let candidates = [images.join(name), images.join("Images").join(name), images.join(folder).join(name)];
    if whole.is_file() { whole } else { candidates.into_iter().find(|path| path.is_file()).unwrap_or(whole) }
}

impl Run {
    /// Opens a new directory, or that of a run with the same configuration.
    ///
    /// # Errors
    /// If it holds another configuration or other files, another process works in it, or it cannot be written.
    pub fn open(folder: &Path, config: &Map<String, Value>, items: Vec<Item>) -> Result<Run> {
        if !folder.join(CONFIG).exists() && !is_fresh(folder) {
            return Err(Error::weights(folder, CONFIG, "is no evaluation, and not empty: choose another directory"));
        }
        for part in ["wavs", "transcripts"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        let lock = lock::take(folder)?;
        let path = folder.join(CONFIG);
        if path.exists() {
            compare(&path, config)?;
        } else {
            let text = serde_json::to_string_pretty(config).map_err(|error| Error::internal(error.to_string()))?;
            files::write_atomically(&path, format!("{text}\n").as_bytes())?;
        }
        let units = read_units(&folder.join(UNITS))?;
        Ok(Run { folder: folder.to_owned(), items, units, _lock: lock })
    }

    /// The waveform of an image.
    pub fn wav(&self, item: &Item) -> PathBuf {
        self.folder.join("wavs").join(format!("{}.wav", item.name))
    }

    /// The transcript of an image.
    pub fn transcript(&self, item: &Item) -> PathBuf {
        self.folder.join("transcripts").join(format!("{}.txt", item.name))
    }

    /// Images without units, then those with units and without a waveform.
    pub fn unspoken(&self) -> (Vec<usize>, Vec<usize>) {
        let is_missing = |at: &usize| {
            let item = &self.items[*at];
            self.units.get(&item.name).is_none_or(|units| !units.is_empty() && !self.wav(item).exists())
        };
        (0..self.items.len()).filter(is_missing).partition(|&at| !self.units.contains_key(&self.items[at].name))
    }

    /// Makes the units and waveforms that are missing, `in_flight` images at a time. Units that cannot be spoken are reported.
    ///
    /// # Errors
    /// If the model or the device fails, or a result cannot be written: that ends the run.
    pub fn speak(
        &mut self,
        engine: &Engine,
        options: &CaptionOptions,
        in_flight: usize,
        notice: &mut dyn FnMut(Notice),
    ) -> Result<()> {
        let (uncaptioned, unspoken) = self.unspoken();
        self.synthesise(engine, options.speaker, &unspoken, notice)?;
        let path = self.folder.join(UNITS);
        let lines = File::options().create(true).append(true).open(&path).map_err(Error::io("write", &path))?;
        let (run, captioned) = (&*self, Mutex::new((lines, Vec::new())));
        let keep = |(item, caption): (&Item, Caption)| {
            if !caption.samples.is_empty() {
                audio::write_wav(run.wav(item), &caption.samples, caption.sample_rate)?;
            }
            let line = UnitLine { image: item.name.clone(), units: caption.units };
            let text = serde_json::to_string(&line).map_err(|error| Error::internal(error.to_string()))?;
            let (lines, captioned) = &mut *captioned.lock().unwrap_or_else(PoisonError::into_inner);
            files::append_whole(lines, &path, format!("{text}\n").as_bytes())?;
            captioned.push((line.image, line.units));
            Ok(())
        };
        let images = |number: usize| uncaptioned.get(number).map(|&at| Image::open(&run.items[at].file));
        let result = with_writers(keep, |submit| {
            let (mut done, mut broken) = (0, Ok(()));
            engine.caption_many(&images, options, in_flight, &mut |number, caption| {
                done += 1;
                notice(Notice::Progress("images", done, uncaptioned.len()));
                match caption.map(|caption| submit((&run.items[uncaptioned[number]], caption))) {
                    Ok(Ok(())) => ControlFlow::Continue(()),
                    Ok(error) => {
                        broken = error;
                        ControlFlow::Break(())
                    }
                    Err(error) => {
                        notice(Notice::Failed(error));
                        ControlFlow::Continue(())
                    }
                }
            })?;
            broken
        });
        let (_, captioned) = captioned.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.units.extend(captioned);
        result
    }

    /// Makes the waveforms of images with units, which an earlier run left.
    fn synthesise(
        &self,
        engine: &Engine,
        speaker: Option<u32>,
        unspoken: &[usize],
        notice: &mut dyn FnMut(Notice),
    ) -> Result<()> {
        let write =
            |(item, speech): (&Item, Speech)| audio::write_wav(self.wav(item), &speech.samples, speech.sample_rate);
        with_writers(write, |submit| {
            for (done, &at) in unspoken.iter().enumerate() {
                let item = &self.items[at];
                match engine.speak(&self.units[&item.name], speaker) {
                    Ok(speech) => submit((item, speech))?,
                    // Every other image would fail like this one.
                    Err(error @ (Error::Device { .. } | Error::Option { .. })) => return Err(error),
                    Err(error) => {
                        let problem = format!("{error}: remove its line, and it is made again");
                        notice(Notice::Failed(Error::weights(&self.folder.join(UNITS), item.name.as_str(), problem)));
                    }
                }
                notice(Notice::Progress("speech", done + 1, unspoken.len()));
            }
            Ok(())
        })
    }

    /// Images with units and without a transcript, but for those whose units could not be spoken.
    pub fn unheard(&self) -> Vec<&Item> {
        let is_made =
            |item: &Item| self.units.get(&item.name).is_some_and(|units| units.is_empty() || self.wav(item).exists());
        self.items.iter().filter(|item| is_made(item) && !self.transcript(item).exists()).collect()
    }

    /// Makes the transcripts that are missing. An image of whose caption there is nothing to hear gets an empty one.
    ///
    /// # Errors
    /// If a transcript cannot be written.
    pub fn listen(&self, listener: &Listener, notice: &mut dyn FnMut(Notice)) -> Result<()> {
        let unheard = self.unheard();
        let (silent, sounding): (Vec<&Item>, Vec<&Item>) =
            unheard.into_iter().partition(|item| self.units[&item.name].is_empty());
        self.keep_texts(silent.into_iter().map(|item| (item, Ok(String::new()))).collect(), notice)?;
        match listener {
            Listener::Recognizer(recognizer) => self.recognize(recognizer, &sounding, notice),
            Listener::Program(program) => self.ask(program, &sounding, notice),
        }
    }

    /// Makes transcripts by a recogniser of this crate.
    fn recognize(&self, recognizer: &Recognizer, items: &[&Item], notice: &mut dyn FnMut(Notice)) -> Result<()> {
        let wavs: Vec<PathBuf> = items.iter().map(|item| self.wav(item)).collect();
        let paths: Vec<&Path> = wavs.iter().map(PathBuf::as_path).collect();
        let (mut done, mut broken) = (0, Ok(()));
        recognizer.texts_of_many(&paths, &mut |results| {
            done += results.len();
            let text = |(n, result): (usize, Result<Recorded<String>>)| match result {
                // Shorter than a window: there is nothing to hear.
                Err(Error::Shape { op: "speech", .. }) => (items[n], Ok(String::new())),
                result => (items[n], result.map(|(text, _)| text)),
            };
            broken = self.keep_texts(results.into_iter().map(text).collect(), notice);
            notice(Notice::Progress("listening", done, items.len()));
            if broken.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        broken
    }

    /// Makes transcripts by another program, several at a time.
    fn ask(&self, program: &Program, items: &[&Item], notice: &mut dyn FnMut(Notice)) -> Result<()> {
        let (next, (sender, receiver)) = (AtomicUsize::new(0), channel());
        std::thread::scope(|scope| {
            let start = || {
                let (sender, next) = (sender.clone(), &next);
                let ask = move || {
                    while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if sender.send((*item, program.text(&self.wav(item)))).is_err() {
                            return;
                        }
                    }
                };
                std::thread::Builder::new().name("im2sp-listen".into()).spawn_scoped(scope, ask)
            };
            let mut refused = None;
            // A limit of threads leaves as many as it allows.
            let threads: Vec<_> = (0..program.jobs.max(1).min(items.len()))
                .map_while(|_| start().map_err(|error| refused = Some(error)).ok())
                .collect();
            if let (true, Some(error)) = (threads.is_empty(), refused) {
                let problem = format!("the system gives no thread to listen ({error}): allow more of them (ulimit -u)");
                return Err(Error::Device { device: "cpu".into(), problem });
            }
            drop(sender);
            // The receiver goes with an error, and the listeners end after the file they are at.
            let kept = receiver.into_iter().enumerate().try_for_each(|(done, result)| {
                notice(Notice::Progress("listening", done + 1, items.len()));
                self.keep_texts(vec![result], notice)
            });
            for thread in threads {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
            kept
        })
    }

    /// Writes transcripts, several at a time, and reports failures.
    fn keep_texts(&self, texts: Vec<(&Item, Result<String>)>, notice: &mut dyn FnMut(Notice)) -> Result<()> {
        let written = texts.into_par_iter().map(|(item, text)| match text {
            Ok(text) => files::write_atomically(&self.transcript(item), text.as_bytes()).map(|()| None),
            Err(error) => Ok(Some(error)),
        });
        for failed in written.collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            notice(Notice::Failed(failed));
        }
        Ok(())
    }

    /// The captions that have a transcript, by the number of their image.
    ///
    /// # Errors
    /// If a transcript cannot be read.
    pub fn captions(&self) -> Result<Vec<(usize, String)>> {
        let heard = |(at, item): (usize, &Item)| {
            let path = self.transcript(item);
            path.exists().then(|| {
                let bytes = files::read_at_most(&path, MAX_BYTES)?;
                Ok((at, caption_of(&String::from_utf8_lossy(&bytes))))
            })
        };
        self.items.iter().enumerate().filter_map(heard).collect()
    }

    /// Writes a file of the report.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        files::write_atomically(&path, text.as_bytes())?;
        Ok(path)
    }
}

/// Whether a directory is absent or empty, but for what a run that was ended at its very beginning leaves.
fn is_fresh(folder: &Path) -> bool {
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.all(|entry| [lock::LOCK, "wavs", "transcripts"].iter().any(|known| entry.file_name() == *known))
}

/// Compares the configuration of a directory with that of this run.
fn compare(path: &Path, config: &Map<String, Value>) -> Result<()> {
    let bytes = files::read_at_most(path, MAX_BYTES)?;
    let other: Map<String, Value> = crate::data::parse_json(path, &bytes)?;
    let names: HashSet<&String> = config.keys().chain(other.keys()).collect();
    let mut differing: Vec<&String> = names.into_iter().filter(|name| config.get(*name) != other.get(*name)).collect();
    differing.sort();
    let Some(name) = differing.first() else { return Ok(()) };
    let shown = |map: &Map<String, Value>| map.get(*name).map_or("absent".into(), Value::to_string);
    let problem = format!(
        "is {} in this directory and {} in this call: choose another directory, or the same configuration",
        shown(&other),
        shown(config)
    );
    Err(Error::weights(path, (*name).clone(), problem))
}

/// Reads the units of a run. A last line that was not written whole goes.
fn read_units(path: &Path) -> Result<HashMap<String, Vec<u32>>> {
    if !path.exists() {
        return Ok(HashMap::new());
    }
    let bytes = files::read_at_most(path, MAX_BYTES)?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    if whole < bytes.len() {
        files::write_atomically(path, &bytes[..whole])?;
    }
    let line = |(number, line): (usize, &[u8])| {
        let read: UnitLine = serde_json::from_slice(line).map_err(|error| {
            Error::weights(
                path,
                format!("line {}", number + 1),
                format!("{error}: remove the line, and it is made again"),
            )
        })?;
        Ok((read.image, read.units))
    };
    bytes[..whole].split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()).map(line).collect()
}
