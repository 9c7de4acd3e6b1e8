//! Batches, read ahead by threads: thread t of n makes batches t, t + n, t + 2n, ... and hands each over when the one before has
//! been taken, so their order depends on nothing else and memory stays bounded.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::{Sample, target};
use crate::units::PAD;
use crate::{Error, Result};

/// Files that may be damaged in any run.
const ALWAYS_ALLOWED: usize = 3;

/// A batch: samples that could be read, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadedBatch {
    /// Numbers of its samples.
    pub samples: Vec<usize>,
    /// Values of its images, one after the other, as the callback of the loader makes them.
    pub images: Vec<f32>,
    /// (B, L) tokens: BOS, units, EOS, then [`PAD`].
    pub ids: Vec<u32>,
}

/// Appends the values of an image to a batch: pixels, or features that were computed before.
pub type ReadImage = Box<dyn Fn(usize, &Sample, &mut Vec<f32>) -> Result<()> + Send + Sync>;

/// Callback for a damaged sample, on any thread.
pub type OnBad = Arc<dyn Fn(&Sample, &Error) + Send + Sync>;

/// Samples that could not be used: damaged ones with their error, and those that are too long.
#[derive(Default)]
pub struct LeftOut {
    bad: Mutex<BTreeMap<usize, String>>,
    long: Mutex<BTreeMap<usize, usize>>,
}

impl LeftOut {
    /// Damaged samples, with their errors.
    pub fn bad(&self) -> BTreeMap<usize, String> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Samples of more tokens than allowed, with their number.
    pub fn long(&self) -> BTreeMap<usize, usize> {
        self.long.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads batches of a list of samples.
pub struct Loader {
    /// All samples.
    pub samples: Vec<Sample>,
    /// Units that the model knows.
    pub known: usize,
    /// Tokens of the longest sequence, BOS and EOS included.
    pub max_length: usize,
    /// Share of the samples that may be damaged before the run ends.
    pub max_bad: f64,
    /// Reads an image.
    pub read_image: ReadImage,
    /// Called with every damaged sample, once.
    pub on_bad: OnBad,
    /// Samples left out so far.
    pub left_out: LeftOut,
}

impl Loader {
    /// One batch.
    ///
    /// # Errors
    /// If too many files have been damaged so far.
    pub fn load(&self, samples: &[usize]) -> Result<LoadedBatch> {
        let (mut batch, mut rows) = (LoadedBatch::default(), Vec::new());
        for &number in samples {
            let Some(sample) = self.samples.get(number) else { continue };
            let before = batch.images.len();
            let read = sample.read_units(self.known).map(|units| target(&units)).and_then(|tokens| {
                if tokens.len() <= self.max_length {
                    (self.read_image)(number, sample, &mut batch.images)?;
                }
                Ok(tokens)
            });
            match read {
                Ok(tokens) if tokens.len() > self.max_length => {
                    self.left_out.long.lock().unwrap_or_else(PoisonError::into_inner).insert(number, tokens.len());
                }
                Ok(tokens) => {
                    rows.push(tokens);
                    batch.samples.push(number);
                }
                Err(error) => {
                    batch.images.truncate(before);
                    self.note_bad(number, sample, &error)?;
                }
            }
        }
        let length = rows.iter().map(Vec::len).max().unwrap_or(0);
        for row in rows {
            let padding = length - row.len();
            batch.ids.extend(row);
            batch.ids.extend(std::iter::repeat_n(PAD, padding));
        }
        Ok(batch)
    }

    fn note_bad(&self, number: usize, sample: &Sample, error: &Error) -> Result<()> {
        let mut bad = self.left_out.bad.lock().unwrap_or_else(PoisonError::into_inner);
        if bad.insert(number, error.to_string()).is_none() {
            (self.on_bad)(sample, error);
        }
        let allowed = ((self.max_bad * self.samples.len() as f64) as usize).max(ALWAYS_ALLOWED);
        if bad.len() <= allowed {
            return Ok(());
        }
        let problem = format!(
            "{} of {} samples cannot be read, the last of them because of {error}; at most {allowed} may: mend the files, \
             or allow more with max_bad",
            bad.len(),
            self.samples.len()
        );
        Err(Error::Training { problem })
    }
}

/// Batches in their order, made ahead by threads that end with it.
pub struct Ahead {
    queues: Vec<Receiver<Result<LoadedBatch>>>,
    threads: Vec<JoinHandle<()>>,
    next: usize,
    count: usize,
}

impl Ahead {
    /// Starts up to `threads` threads for the batches.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(loader: &Arc<Loader>, batches: Vec<Vec<usize>>, threads: usize) -> Result<Ahead> {
        let threads = threads.clamp(1, batches.len().max(1));
        let batches = Arc::new(batches);
        let mut ahead = Ahead { queues: Vec::new(), threads: Vec::new(), next: 0, count: batches.len() };
        for thread in 0..threads {
            let (sender, receiver) = sync_channel(1);
            let (loader, batches) = (loader.clone(), batches.clone());
            let work = move || make(&loader, batches.iter().skip(thread).step_by(threads), &sender);
            let handle = std::thread::Builder::new().name("im2sp-load".into()).spawn(work);
            ahead.threads.push(handle.map_err(|error| Error::Device {
                device: "cpu".into(),
                problem: format!("the system gives no thread ({error}): allow this process more of them (ulimit -u)"),
            })?);
            ahead.queues.push(receiver);
        }
        Ok(ahead)
    }
}

/// Makes batches until nobody wants them.
fn make<'a>(loader: &Loader, batches: impl Iterator<Item = &'a Vec<usize>>, sender: &SyncSender<Result<LoadedBatch>>) {
    for samples in batches {
        let batch = loader.load(samples);
        let ends = batch.is_err();
        if sender.send(batch).is_err() || ends {
            break;
        }
    }
}

impl Iterator for Ahead {
    type Item = Result<LoadedBatch>;

    fn next(&mut self) -> Option<Result<LoadedBatch>> {
        if self.next >= self.count {
            return None;
        }
        let queue = self.next % self.queues.len();
        self.next += 1;
        let gone = || Err(Error::internal("a loader's thread ended before its batch"));
        Some(self.queues[queue].recv().unwrap_or_else(|_| gone()))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.queues.clear();
        for thread in self.threads.drain(..) {
            // A panic in it has been reported as a batch that did not come.
            let _ = thread.join();
        }
    }
}
