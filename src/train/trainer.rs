//! One update after the other: passes over the batches of an update on every rank, the sum of their gradients, and a step of the
//! optimizer.

use super::buckets::{self, BucketSums};
use super::checkpoint::{Checkpoint, Position, Resumed};
use super::config::TrainConfig;
use super::cost;
use super::decoder::{Dropout, Sequences};
use super::journal::Update;
use super::model::{Images, TrainedCaptioner};
use super::ranks::Ranks;
use crate::backend::{AdamWStep, BlockPart, Communicator, Train};
use crate::random::Philox;
use crate::tensor::HostTensor;
use crate::units::{BOS, EOS, PAD};
use crate::weights::store::TensorStore;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// A mean loss of a token above this is a run that has come apart; even odds among 203 tokens are 5.3.
const MAX_LOSS: f64 = 100.0;
/// Streams of random numbers for noise lie above those of dropout.
const NOISE: u64 = 1 << 63;

/// A batch on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// (B, 3, side, side), normalised; or features (B*T, width).
    pub images: ImageValues,
    /// (B, L) tokens, BOS to EOS, then [`PAD`].
    pub ids: Vec<u32>,
    /// Sequences B.
    pub size: usize,
    /// Names of the samples, for errors.
    pub names: Vec<String>,
}

/// Values of the images of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageValues {
    /// (B, 3, side, side), normalised.
    Pixels(Vec<f32>),
    /// (B*T, width), of the frozen part.
    Features(Vec<f32>),
}

impl Default for ImageValues {
    fn default() -> ImageValues {
        ImageValues::Pixels(Vec::new())
    }
}

impl Batch {
    fn images(&self) -> Images<'_> {
        match &self.images {
            ImageValues::Pixels(values) => Images::Pixels(values),
            ImageValues::Features(values) => Images::Features(values),
        }
    }

    /// Inputs and targets (B*U), U = L - 1: all tokens but the last of a row, and all but the first.
    fn shifted(&self) -> [Vec<u32>; 2] {
        let length = self.ids.len().checked_div(self.size).unwrap_or(0).max(1);
        let rows = || self.ids.chunks_exact(length);
        [
            rows().flat_map(|row| row[..length - 1].to_vec()).collect(),
            rows().flat_map(|row| row[1..].to_vec()).collect(),
        ]
    }
}

/// A model, its optimizer and its place in the run.
pub struct Trainer<B: Train> {
    /// Sums on the devices; `None` on the host.
    sums: Option<BucketSums<B::Gradients>>,
    captioner: TrainedCaptioner<B>,
    config: TrainConfig,
    ranks: Ranks,
    position: Position,
    clock: Instant,
    /// Operations a second of a device at most, if known.
    peak: Option<f64>,
}

impl<B: Train> Trainer<B> {
    /// A run that begins.
    pub fn new(captioner: TrainedCaptioner<B>, config: TrainConfig, ranks: Ranks) -> Trainer<B> {
        Trainer {
            sums: None,
            captioner,
            config,
            ranks,
            position: Position::default(),
            clock: Instant::now(),
            peak: None,
        }
    }

    /// Sums gradients through `communicator` from now on, in buckets of at least `bucket_bytes`, instead of on the host. All ranks
    /// do the same.
    pub fn communicate(&mut self, communicator: Box<dyn Communicator<B::Gradients>>, bucket_bytes: usize) {
        self.sums = Some(BucketSums::new(communicator, buckets::plan(self.captioner.layout(), bucket_bytes)));
    }

    /// Continues a run from its checkpoint.
    ///
    /// # Errors
    /// If the checkpoint is that of another model.
    pub fn resume(&mut self, resumed: Resumed) -> Result<()> {
        let Resumed { position, mut captioner, moments: [first, second] } = resumed;
        let values = self.captioner.layout().take(&mut captioner)?;
        self.captioner.write(BlockPart::Values, &values)?;
        self.captioner.write(BlockPart::FirstMoments, &first)?;
        self.captioner.write(BlockPart::SecondMoments, &second)?;
        self.position = position;
        Ok(())
    }

    /// Makes updates tell their share of `peak`, operations a second of a rank's device.
    pub fn compare_with(&mut self, peak: f64) {
        self.peak = Some(peak);
    }

    /// The model.
    pub fn captioner(&self) -> &TrainedCaptioner<B> {
        &self.captioner
    }

    /// The processes of the run.
    pub fn ranks(&mut self) -> &mut Ranks {
        &mut self.ranks
    }

    /// Where the run is.
    pub fn position(&mut self) -> &mut Position {
        &mut self.position
    }

    /// One update from the batches of this rank, which are at most as many as the accumulation asks for. Counts and losses of
    /// the result are those of all ranks; without a token on any of them there is no update.
    ///
    /// # Errors
    /// If a loss or a gradient is not a finite number, or too large: nothing has been changed then.
    pub fn update(&mut self, batches: &[Batch]) -> Result<Option<Update>> {
        let update = self.position.update + 1;
        let (mut losses, mut images, mut operations) = ([0.0; 3], 0, 0.0);
        for (micro, batch) in batches.iter().enumerate() {
            let pass = self.pass_number(update, micro);
            let sums = self.accumulate(batch, pass, micro + 1 == batches.len());
            let sums = sums.map_err(|error| self.failed(update, batch, error))?;
            losses.iter_mut().zip(sums).for_each(|(all, one)| *all += one);
            images += batch.size as u64;
            operations += self.operations(batch);
        }
        // Before the others are waited for: they may be waiting for these.
        if let Some(sums) = &mut self.sums {
            sums.begin(self.captioner.gradients(), 0, &self.ranks)?;
        }
        let mut sums = [losses[0], losses[1], losses[2], images as f64, operations];
        self.ranks.sum(&mut sums)?;
        let [loss, correct, tokens, images, operations] = sums;
        self.sum_gradients()?;
        if tokens == 0.0 {
            return Ok(None);
        }
        let norm = self.captioner.gradient_norm()?;
        let loss = loss / tokens.max(1.0);
        if !norm.is_finite() || loss > MAX_LOSS {
            let problem = format!("the loss is {loss:.3} a token and the norm of the gradients {norm:.3e}");
            return Err(self.failed(update, batches.first().unwrap_or(&Batch::default()), Error::Training { problem }));
        }
        let rate = self.config.schedule.rate(update, self.config.iterations);
        let scale = self.config.clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
        self.captioner.update(AdamWStep {
            rate: rate as f32,
            beta1: self.config.betas[0],
            beta2: self.config.betas[1],
            eps: self.config.eps,
            weight_decay: self.config.weight_decay,
            step: update,
            gradient_scale: scale as f32,
        })?;
        self.position.update = update;
        let seconds = self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
        Ok(Some(Update {
            update,
            epoch: self.position.epoch,
            loss,
            error: 1.0 - correct / tokens.max(1.0),
            gradient_norm: norm,
            rate,
            images: images as u64,
            tokens: tokens as u64,
            seconds,
            share_of_peak: self.peak.map(|peak| operations / (seconds * peak * self.ranks.count() as f64)),
        }))
    }

    /// Floating-point operations of the passes over a batch.
    fn operations(&self, batch: &Batch) -> f64 {
        let features = matches!(batch.images, ImageValues::Features(_));
        let inputs = (batch.ids.len() / batch.size.max(1)).saturating_sub(1);
        cost::operations(self.captioner.config(), self.config.freeze, features, batch.size, inputs)
    }

    /// A number that no other pass of the run has, whatever the number of ranks.
    fn pass_number(&self, update: u64, micro: usize) -> u64 {
        const RANKS: u64 = 1 << 16;
        (update * self.config.accumulation as u64 + micro as u64) * RANKS + self.ranks.rank() as u64
    }

    /// Adds the gradients of one batch: loss, correct tokens, tokens. Each counts for its share of a whole update, at the end of an
    /// epoch too, where there may be fewer. Sums of gradients begin during the last pass of an update.
    fn accumulate(&mut self, batch: &Batch, pass: u64, is_last: bool) -> Result<[f64; 3]> {
        let [mut inputs, targets] = batch.shifted();
        // The mean is over the tokens of all ranks, so that N ranks of batch B are one of batch N B.
        let mut valid = [targets.iter().filter(|&&target| target != PAD).count() as f64];
        self.ranks.sum(&mut valid)?;
        if batch.size == 0 || valid[0] == 0.0 {
            return Ok([0.0; 3]);
        }
        let TrainConfig { seed, dropout, attention_dropout, token_noise, .. } = self.config;
        add_noise(
            &mut inputs,
            token_noise,
            Philox::new(seed, NOISE | pass),
            self.captioner.config().decoder.vocabulary,
        );
        let scale = 1.0 / (valid[0] * self.config.accumulation as f64);
        let sequences = Sequences { batch: batch.size, inputs: &inputs, targets: &targets, scale: scale as f32 };
        let dropout = Dropout { hidden: dropout, attention: attention_dropout, seed, pass };
        let Trainer { sums, captioner, ranks, .. } = self;
        let losses = captioner.pass_reporting(batch.images(), &sequences, dropout, &mut |gradients, start| {
            let sums = sums.as_mut().filter(|_| is_last);
            sums.map_or(Ok(()), |sums| sums.begin(gradients, start, ranks))
        })?;
        Ok([losses.loss, losses.correct as f64, losses.tokens as f64])
    }

    /// Sums the gradients of all ranks, or waits for the sums that were begun.
    fn sum_gradients(&mut self) -> Result<()> {
        if let Some(sums) = &mut self.sums {
            return sums.finish(&self.ranks);
        }
        if self.ranks.count() == 1 {
            return Ok(());
        }
        let mut gradients = self.captioner.read_gradients()?;
        self.ranks.sum(&mut gradients)?;
        self.captioner.write_gradients(&gradients)
    }

    /// The error that ends a run, with the batch that led to it.
    fn failed(&self, update: u64, batch: &Batch, error: Error) -> Error {
        const LISTED: usize = 3;
        let problem = match error {
            Error::NotANumber { .. } => "the loss is not a number".to_string(),
            Error::Training { problem } => problem,
            other => return other,
        };
        let mut names = batch.names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
        if batch.names.len() > LISTED {
            names += &format!(" and {} more", batch.names.len() - LISTED);
        }
        let epoch = self.position.epoch;
        Error::Training {
            problem: format!(
                "update {update} in epoch {epoch} ({names}): {problem}. The last checkpoint is as it was: resume from it with a \
                 lower rate, or with --clip"
            ),
        }
    }

    /// Loss of a token of these batches, without dropout, on this rank.
    pub fn evaluate(&self, batches: &[Batch]) -> Result<f64> {
        let (mut loss, mut tokens) = (0.0, 0);
        for batch in batches.iter().filter(|batch| batch.size > 0) {
            let [inputs, targets] = batch.shifted();
            let sequences = Sequences { batch: batch.size, inputs: &inputs, targets: &targets, scale: 0.0 };
            let losses = self.captioner.evaluate(batch.images(), &sequences)?;
            loss += losses.loss;
            tokens += losses.tokens;
        }
        Ok(loss / tokens.max(1) as f64)
    }

    /// Saves a checkpoint in the run directory.
    ///
    /// # Errors
    /// If it cannot be written: those before stay.
    pub fn save(&self, run: &Path, vocoder: Option<&BTreeMap<String, HostTensor>>) -> Result<()> {
        let [first, second] = [BlockPart::FirstMoments, BlockPart::SecondMoments].map(|part| self.captioner.read(part));
        let checkpoint = Checkpoint {
            position: &self.position,
            config: self.captioner.config(),
            captioner: &self.captioner.tensors()?,
            vocoder,
            layout: self.captioner.layout(),
            moments: [&first?, &second?],
        };
        checkpoint.save(run)
    }

    /// The model as it is now, for an engine.
    pub fn store(&self) -> Result<TensorStore> {
        Ok(TensorStore::new(Path::new("<the model in training>"), self.captioner.tensors()?))
    }
}

/// Replaces units of the inputs by random ones, each with probability `share`.
fn add_noise(inputs: &mut [u32], share: f32, words: Philox, vocabulary: usize) {
    if share <= 0.0 {
        return;
    }
    let threshold = (f64::from(share) * 4_294_967_296.0) as u64;
    let units = (vocabulary - crate::units::SPECIAL) as u64;
    for (at, id) in inputs.iter_mut().enumerate().filter(|(_, id)| ![PAD, BOS, EOS].contains(id)) {
        let [word, other, ..] = words.block(at as u64);
        if u64::from(word) < threshold {
            *id = crate::units::to_token(((u64::from(other) * units) >> 32) as u32);
        }
    }
}
