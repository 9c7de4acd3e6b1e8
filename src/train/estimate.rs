//! Dry runs: memory and time that a run takes, by a few updates with its first batches.

use std::time::Instant;

use super::config::TrainConfig;
use super::model::TrainedCaptioner;
use super::session::Batches;
use super::trainer::{Batch, ImageValues, Trainer};
use crate::Result;
use crate::backend::Train;

/// Size of a run.
pub struct Size {
    /// Samples of the data set.
    pub samples: usize,
    /// Images of these samples.
    pub images: usize,
    /// Processes.
    pub ranks: usize,
}

/// Updates that are timed, after one that is not.
const UPDATES: usize = 3;

/// Seconds.
#[derive(Default)]
struct Times {
    /// Each update.
    updates: Vec<f64>,
    tokens: u64,
    /// The frozen part for one image, where its features are kept on disk.
    features: Option<f64>,
}

/// Lines on memory and time that a run of this configuration takes.
///
/// # Errors
/// If a batch cannot be read or computed.
pub fn estimate<B: Train>(
    trainer: &mut Trainer<B>,
    batches: Batches<'_>,
    config: &TrainConfig,
    size: Size,
) -> Result<Vec<String>> {
    let times = time(trainer, batches, config)?;
    let count = times.updates.len().max(1) as f64;
    let mean = times.updates.iter().sum::<f64>() / count;
    let (trained, frozen) = (trainer.captioner().layout().count(), trainer.captioner().frozen_bytes());
    let frozen: usize = frozen.map(|(_, bytes)| bytes.len()).sum();
    // Values, gradients and two moments.
    let (state, frozen) = (16.0 * trained as f64 / 1e6, frozen as f64 / 1e6);
    let images = config.batch * config.accumulation * size.ranks;
    let mut lines = vec![
        format!("{} samples, {} updates of {images} images", size.samples, config.iterations),
        format!(
            "{:.2} M trained parameters: {state:.0} MB with gradients and moments; {frozen:.0} MB frozen",
            trained as f64 / 1e6
        ),
        format!(
            "{:.0} ms an update, over {} of {:.0} tokens: {:.2} hours in all without validations",
            1e3 * mean,
            times.updates.len(),
            times.tokens as f64 / count,
            mean * config.iterations as f64 / 3600.0
        ),
    ];
    if let Some(seconds) = times.features {
        let hours = seconds * size.images as f64 / 3600.0;
        lines.push(format!("{hours:.2} hours before, once, for the features of {} images", size.images));
    }
    if times.updates.is_empty() {
        lines.push("too few samples to time an update after the first".into());
    }
    if let Some((_, peak)) = trainer.captioner().backend().memory_stats() {
        lines.push(format!("{:.0} MB of device memory", peak as f64 / 1e6));
    }
    Ok(lines)
}

fn time<B: Train>(trainer: &mut Trainer<B>, mut batches: Batches<'_>, config: &TrainConfig) -> Result<Times> {
    let mut times = Times::default();
    let cached = config.data.cache_features && trainer.captioner().feature_width().is_some();
    for update in 0..=UPDATES {
        let mut group: Vec<Batch> = batches.by_ref().take(config.accumulation).collect::<Result<_>>()?;
        if group.is_empty() {
            break;
        }
        if cached {
            let clock = Instant::now();
            group.iter_mut().try_for_each(|batch| encode(trainer.captioner(), batch))?;
            let images: usize = group.iter().map(|batch| batch.size).sum();
            times.features = Some(clock.elapsed().as_secs_f64() / images.max(1) as f64);
        }
        let clock = Instant::now();
        let report = trainer.update(&group)?;
        if let Some(report) = report.filter(|_| update > 0 || config.iterations == 1) {
            times.updates.push(clock.elapsed().as_secs_f64());
            times.tokens += report.tokens;
        }
    }
    Ok(times)
}

/// Replaces the pixels of a batch by their features.
fn encode<B: Train>(captioner: &TrainedCaptioner<B>, batch: &mut Batch) -> Result<()> {
    if let ImageValues::Pixels(pixels) = &batch.images {
        batch.images = ImageValues::Features(captioner.features(pixels, batch.size)?);
    }
    Ok(())
}
