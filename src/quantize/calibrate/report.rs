//! Effect of rounding on the images it was made for.

use super::sequences::Batch;
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::model::captioner::Captioner;

/// Effect of rounding on the calibration images.
#[derive(Clone, Debug)]
pub struct CalibrateReport {
    /// Images that were used.
    pub images: usize,
    /// Why others could not be read.
    pub unreadable: Vec<String>,
    /// Images whose greedy caption stays the same to the last unit.
    pub kept: usize,
    /// Root mean square of the unrounded model's logits, over all unit tokens.
    pub logit_rms: f64,
    /// Root mean square of their errors.
    pub logit_error_rms: f64,
    /// The largest error.
    pub logit_error_max: f64,
    /// Each matrix, in the order of the data.
    pub matrices: Vec<MatrixReport>,
}

/// Effect of rounding on one matrix.
#[derive(Clone, Debug)]
pub struct MatrixReport {
    /// `decoder.layers.N.NAME`.
    pub name: String,
    /// Root mean square error of its outputs over that of its products, tokens weighted with what they matter.
    pub error: f64,
    /// The same of nearest rounding.
    pub nearest: f64,
}

/// Compares both runs at their end. A caption stays the same exactly when every of its tokens still follows from those before
/// it.
pub(super) fn report(
    captioner: &Captioner<Cpu>,
    batches: &[Batch],
    unreadable: Vec<String>,
    matrices: Vec<MatrixReport>,
) -> Result<CalibrateReport> {
    let (mut kept, mut count, mut power, mut error, mut max) = (0, 0u64, 0.0, 0.0, 0.0f64);
    for batch in batches {
        let rounded = captioner.decoder.logits(&Cpu, &batch.x[1])?;
        let mut chosen = Vec::new();
        Cpu.argmax(&rounded, &mut chosen)?;
        let vocabulary = Cpu.shape(&rounded)[1];
        let logits = Cpu.download(&captioner.decoder.logits(&Cpu, &batch.x[0])?)?;
        let rounded = Cpu.download(&rounded)?;
        let mut same = vec![true; batch.shape.batch];
        for (at, next) in batch.next.iter().enumerate().filter_map(|(at, next)| next.map(|next| (at, next))) {
            same[at / batch.shape.tokens] &= chosen[at] == next;
            let row = at * vocabulary..(at + 1) * vocabulary;
            for (&v, &rounded) in logits[row.clone()].iter().zip(&rounded[row]) {
                let difference = f64::from(rounded - v);
                power += f64::from(v) * f64::from(v);
                error += difference * difference;
                max = max.max(difference.abs());
                count += 1;
            }
        }
        kept += same.iter().filter(|&&same| same).count();
    }
    let mean = |sum: f64| (sum / count.max(1) as f64).sqrt();
    Ok(CalibrateReport {
        images: batches.iter().map(|batch| batch.shape.batch).sum(),
        unreadable,
        kept,
        logit_rms: mean(power),
        logit_error_rms: mean(error),
        logit_error_max: max,
        matrices,
    })
}
