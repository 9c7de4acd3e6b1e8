//! Models of recordings, several parts at a time: recordings are cut into parts, parts of different recordings go through the
//! model together, and each recording gets the results of its own. Files are read ahead on one thread, the model runs on a
//! second, and results come to the caller's.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;

use rayon::prelude::*;

use crate::audio::read;
use crate::config::SPEECH_RATE;
use crate::{Error, Result};

/// Samples that go through a model together on a GPU: 200 seconds, whose first convolution takes 1.3 GB in f32.
pub(super) const TOGETHER: usize = 3_200_000;
/// Bytes of the files that are read together: 1000 seconds of 16-bit samples.
const READ_TOGETHER: u64 = 32_000_000;

/// A model's results of so many parts.
pub(super) type Run<T> = Box<dyn Fn(&[&[f32]]) -> Result<Vec<T>> + Send + Sync>;
/// Parts of a recording.
pub(super) type Cut = Box<dyn Fn(&[f32]) -> Result<Vec<Range<usize>>> + Send + Sync>;

/// The result of a recording and its number of samples.
pub type Recorded<T> = (T, usize);

/// Results of recordings, each with its number.
pub type Numbered<T> = Vec<(usize, Result<Recorded<T>>)>;

/// Callback for recordings whose results are there, in order; `Break` ends the whole.
pub type OnRecordings<'a, T> = &'a mut dyn FnMut(Numbered<T>) -> ControlFlow<()>;

/// A model on a device.
pub(super) struct Model<T> {
    /// Samples that go through it together; 0: one part at a time.
    pub together: usize,
    pub cut: Cut,
    pub run: Run<T>,
    /// The results of the parts of one recording to one.
    pub join: fn(Vec<T>) -> T,
}

/// A part of a recording.
struct Part<'a> {
    recording: usize,
    samples: &'a [f32],
}

/// Results of the parts of a recording that are still to come.
struct Unfinished<T> {
    parts: usize,
    results: Result<Vec<T>>,
}

impl<T: Send> Model<T> {
    /// The result of one recording.
    pub fn of(&self, samples: &[f32]) -> Result<T> {
        let mut made = None;
        let sounds = vec![Ok(samples.to_vec())];
        self.of_sounds(sounds, &mut |results| {
            made = results.into_iter().next().map(|(_, result)| result);
            ControlFlow::Continue(())
        })?;
        made.unwrap_or_else(|| Err(Error::internal("a recording without a result"))).map(|(result, _)| result)
    }

    /// The results of recordings in files. One that cannot be read or used costs no other.
    ///
    /// # Errors
    /// If the device fails: that ends all.
    pub fn of_files(&self, paths: &[&Path], on_results: OnRecordings<'_, T>) -> Result<()> {
        std::thread::scope(|scope| {
            let (sounds, read) = sync_channel(1);
            let (results, made) = sync_channel(2);
            let reader = Builder::new().spawn_scoped(scope, move || read_ahead(paths, &sounds));
            let runner = Builder::new().spawn_scoped(scope, move || self.run_all(&read, &results));
            let (Ok(reading), Ok(running)) = (reader, runner) else {
                // A limit of threads: a thread that did start ends with the channel of the other.
                drop(made);
                return self.in_turn(paths, on_results);
            };
            let stopped = made.iter().any(|results| on_results(results).is_break());
            // The other threads end with the channel.
            drop(made);
            reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let result = running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if stopped { Ok(()) } else { result }
        })
    }

    /// As [`Model::of_files`], on this thread alone.
    fn in_turn(&self, paths: &[&Path], on_results: OnRecordings<'_, T>) -> Result<()> {
        for (first, path) in paths.iter().enumerate() {
            let mut flow = ControlFlow::Continue(());
            self.of_sounds(vec![read::read(path, SPEECH_RATE)], &mut |made| {
                flow = on_results(made.into_iter().map(|(n, result)| (first + n, result)).collect());
                flow
            })?;
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Groups of sounds, each with the number of its first, until they or those who want results end.
    fn run_all(&self, read: &Receiver<Group>, results: &SyncSender<Numbered<T>>) -> Result<()> {
        for (first, sounds) in read {
            let mut gone = false;
            self.of_sounds(sounds, &mut |made| {
                let numbered = made.into_iter().map(|(n, result)| (first + n, result)).collect();
                gone = results.send(numbered).is_err();
                if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if gone {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The results of sounds, in order; of those that could not be read, the error.
    fn of_sounds(&self, sounds: Vec<Result<Vec<f32>>>, on_results: OnRecordings<'_, T>) -> Result<()> {
        let (mut all, mut unfinished) = (Vec::with_capacity(sounds.len()), Vec::with_capacity(sounds.len()));
        for sound in sounds {
            let (samples, cut) = match sound {
                Ok(samples) => {
                    let cut = (self.cut)(&samples);
                    (samples, cut)
                }
                Err(error) => (Vec::new(), Err(error)),
            };
            let ranges = cut.as_deref().unwrap_or_default().to_vec();
            unfinished.push(Unfinished { parts: ranges.len(), results: cut.map(|_| Vec::new()) });
            all.push((samples, ranges));
        }
        let mut parts = Vec::new();
        for (recording, (samples, ranges)) in all.iter().enumerate() {
            parts.extend(ranges.iter().map(|range| Part { recording, samples: &samples[range.clone()] }));
        }
        let (mut done, mut rest) = (0, &parts[..]);
        loop {
            let mut ended = Vec::new();
            while let Some(recording) = unfinished.get_mut(done).filter(|recording| recording.parts == 0) {
                let results = std::mem::replace(&mut recording.results, Ok(Vec::new()));
                ended.push((done, results.map(|results| ((self.join)(results), all[done].0.len()))));
                done += 1;
            }
            if !ended.is_empty() && on_results(ended).is_break() || rest.is_empty() {
                return Ok(());
            }
            let batch;
            (batch, rest) = rest.split_at(self.batch(rest));
            for (part, result) in batch.iter().zip(self.run(batch)?) {
                let recording = &mut unfinished[part.recording];
                recording.parts -= 1;
                match (result, &mut recording.results) {
                    (Ok(result), Ok(results)) => results.push(result),
                    (Err(error), results @ Ok(_)) => *results = Err(error),
                    (_, Err(_)) => {}
                }
            }
        }
    }

    /// Number of `parts` that go through the model together.
    fn batch(&self, parts: &[Part<'_>]) -> usize {
        let samples = parts.iter().scan(0, |sum, part| {
            *sum += part.samples.len();
            Some(*sum)
        });
        samples.take_while(|&sum| sum <= self.together).count().max(1)
    }

    /// The result of each part. Parts that fail together are tried each by itself: one recording costs no other.
    ///
    /// # Errors
    /// If the device fails.
    fn run(&self, batch: &[Part<'_>]) -> Result<Vec<Result<T>>> {
        let samples: Vec<&[f32]> = batch.iter().map(|part| part.samples).collect();
        match (self.run)(&samples) {
            Ok(results) if results.len() == batch.len() => Ok(results.into_iter().map(Ok).collect()),
            Ok(_) => Err(Error::internal("a batch with parts that have no result")),
            Err(error @ Error::Device { .. }) => Err(error),
            Err(error) if batch.len() == 1 => Ok(vec![Err(error)]),
            Err(_) => batch.chunks(1).map(|part| Ok(self.run(part)?.remove(0))).collect(),
        }
    }
}

/// Sounds of neighbouring files, with the number of the first.
type Group = (usize, Vec<Result<Vec<f32>>>);

/// Reads files, several at a time, until nobody wants more.
fn read_ahead(paths: &[&Path], sounds: &SyncSender<Group>) {
    let mut first = 0;
    while first < paths.len() {
        let sizes = paths[first..].iter().scan(0, |sum, path| {
            *sum += std::fs::metadata(path).map_or(0, |about| about.len());
            Some(*sum)
        });
        let count = sizes.take_while(|&sum| sum <= READ_TOGETHER).count().max(1);
        let group = paths[first..first + count].par_iter().map(|path| read::read(path, SPEECH_RATE)).collect();
        if sounds.send((first, group)).is_err() {
            return;
        }
        first += count;
    }
}
