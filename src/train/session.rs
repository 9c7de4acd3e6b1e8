//! A run from its first update, or from its last checkpoint, to its end: epochs, validations, checkpoints, the journal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::checkpoint::Best;
use super::config::TrainConfig;
use super::journal::{Journal, Record, Update, Validation};
use super::trainer::{Batch, Trainer};
use super::validation::ValidationSet;
use crate::backend::Train;
use crate::config::ModelConfig;
use crate::engine::Device;
use crate::tensor::HostTensor;
use crate::weights::directory::ModelFiles;
use crate::weights::store::TensorStore;
use crate::{Error, Result};

/// Batches of one rank.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch>> + 'a>;

/// The samples of a run.
pub trait Source {
    /// Batches of this rank in epoch `epoch`, without the first `done` samples of all ranks together. Every rank has as many.
    ///
    /// # Errors
    /// If there is nothing to read.
    fn batches(&self, epoch: u64, done: u64) -> Result<Batches<'_>>;
}

/// News of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// The parameters were updated.
    Updated(&'a Update),
    /// A validation was made.
    Validated(&'a Validation),
    /// A checkpoint is complete.
    Saved(u64),
}

/// The vocoder that becomes part of the checkpoints, by the names of its tensors.
pub type VocoderTensors = BTreeMap<String, HostTensor>;

/// A run that is ready to go.
pub struct Session<'a, B: Train> {
    /// Model and optimizer.
    pub trainer: Trainer<B>,
    /// Resolved configuration.
    pub config: TrainConfig,
    /// Training samples.
    pub source: &'a dyn Source,
    /// Validation samples; `None` where there are none.
    pub validation: Option<ValidationSet>,
    /// The vocoder's tensors, if there is one.
    pub vocoder: Option<VocoderTensors>,
    /// Device that validations decode on.
    pub device: Device,
    /// Run directory.
    pub run: PathBuf,
    /// Ends the run after the current update when set.
    pub stop: &'a AtomicBool,
}

/// Reason for which a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All updates are done.
    Complete,
    /// It was stopped, and saved.
    Stopped,
}

impl<B: Train> Session<'_, B> {
    /// Trains to the end.
    ///
    /// # Errors
    /// Those of reading, computing and writing; the last checkpoint stays as it is.
    pub fn run(&mut self, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Ending> {
        let mut journal = self.journal()?;
        let mut fruitless = 0;
        let max_length = self.config.max_length;
        while self.trainer.position().update < self.config.iterations {
            let (epoch, done) = (self.trainer.position().epoch, self.trainer.position().samples);
            let mut batches = self.source.batches(epoch, done)?;
            let mut tokens = 0;
            loop {
                let group: Vec<Batch> = batches.by_ref().take(self.config.accumulation).collect::<Result<_>>()?;
                if group.is_empty() {
                    break;
                }
                let all = group.len() * self.config.batch * self.trainer.ranks().count();
                let update = self.trainer.update(&group)?;
                self.trainer.position().samples += all as u64;
                let Some(update) = update else { continue };
                tokens += update.tokens;
                on_event(Event::Updated(&update));
                let number = update.update;
                if let Some(journal) = &mut journal {
                    journal.add(&Record::Update(update))?;
                }
                if let Some(ending) = self.after_update(number, &mut journal, on_event)? {
                    return Ok(ending);
                }
            }
            drop(batches);
            let position = self.trainer.position();
            (position.epoch, position.samples) = (position.epoch + 1, 0);
            // The rest of an epoch may be empty after a resume, but not twice in a row.
            fruitless = if tokens > 0 { 0 } else { fruitless + 1 };
            if fruitless > 1 {
                let problem = format!(
                    "an epoch without a sample: every one is damaged, or longer than {max_length} tokens (--max-length)"
                );
                return Err(Error::Training { problem });
            }
        }
        Ok(Ending::Complete)
    }

    /// The journal; only rank 0 keeps one.
    fn journal(&mut self) -> Result<Option<Journal>> {
        let update = self.trainer.position().update;
        (self.trainer.ranks().rank() == 0).then(|| Journal::open(&self.run, update)).transpose()
    }

    /// Validates and saves when it is time; the ending if this was the last update.
    fn after_update(
        &mut self,
        update: u64,
        journal: &mut Option<Journal>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Option<Ending>> {
        let mut stop = [f32::from(u8::from(self.stop.load(Ordering::Relaxed)))];
        // Ranks stop together.
        self.trainer.ranks().sum(&mut stop)?;
        let last = update == self.config.iterations;
        let validates = update.is_multiple_of(self.config.validate_every) || last;
        let mut failed = Ok(());
        if self.trainer.ranks().rank() == 0 {
            failed = self.validate_and_save(update, validates, stop[0] > 0.0 || last, journal, on_event);
        }
        // The others wait for rank 0, and end with it if it failed.
        let mut problems = [f32::from(u8::from(failed.is_err()))];
        self.trainer.ranks().sum(&mut problems)?;
        failed?;
        if problems[0] > 0.0 {
            return Err(Error::Training {
                problem: "rank 0 could not validate or save: its own output says why".into(),
            });
        }
        Ok(if last { Some(Ending::Complete) } else { (stop[0] > 0.0).then_some(Ending::Stopped) })
    }

    fn validate_and_save(
        &mut self,
        update: u64,
        validates: bool,
        ends: bool,
        journal: &mut Option<Journal>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let mut validated = false;
        if let Some(set) = self.validation.take_if(|_| validates) {
            let report = self.validate(&set, update);
            self.validation = Some(set);
            let report = match report {
                Ok(report) => report,
                // What was learned is not lost with it.
                Err(error) => return self.trainer.save(&self.run, self.vocoder.as_ref()).and(Err(error)),
            };
            let best = &mut self.trainer.position().best;
            if best.is_none_or(|best| report.loss < best.loss) {
                *best = Some(Best { update, loss: report.loss });
            }
            on_event(Event::Validated(&report));
            if let Some(journal) = journal {
                journal.add(&Record::Validation(report))?;
            }
            validated = true;
        }
        if validated || ends || update.is_multiple_of(self.config.save_every) {
            self.trainer.save(&self.run, self.vocoder.as_ref())?;
            on_event(Event::Saved(update));
        }
        Ok(())
    }

    fn validate(&self, set: &ValidationSet, update: u64) -> Result<Validation> {
        let clock = std::time::Instant::now();
        let config: &ModelConfig = self.trainer.captioner().config();
        let vocoder = self.vocoder.as_ref().map(|tensors| TensorStore::new(Path::new("<vocoder>"), tensors.clone()));
        let files = ModelFiles { config: config.clone(), captioner: self.trainer.store()?, vocoder, tokenizer: None };
        let samples = self.run.join("samples").join(format!("step-{update:08}"));
        let unit_error_rate = set.unit_error_rate(files, self.device, self.config.spoken_samples, &samples)?;
        let loss = self.trainer.evaluate(&set.batches)?;
        let images = set.samples.len() as u64;
        Ok(Validation { update, loss, unit_error_rate, images, seconds: clock.elapsed().as_secs_f64() })
    }
}
