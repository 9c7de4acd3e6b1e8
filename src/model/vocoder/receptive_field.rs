//! Receptive field of a segment of a vocoder's result. Sound that is made piece by piece equals sound that is made in one
//! piece, bit for bit, if each piece is cut out of inputs that reach at least this far and its margins are thrown away.

use std::ops::Range;

use super::OUTER_TAPS;
use crate::config::{DurationConfig, VocoderConfig};

/// [`Conv1d::conv1d_support`](crate::backend::Conv1d::conv1d_support) of a backend.
pub(super) type Support = fn(Range<usize>, usize, usize) -> Range<usize>;

/// The results of a convolution that are computed for those `needed`, and the inputs that it reads for them. Ends may lie
/// beyond the sequence.
fn convolution(needed: Range<usize>, taps: usize, dilation: usize, support: Support) -> (Range<usize>, Range<usize>) {
    let first = support(needed.clone(), 1, dilation).start;
    (first..needed.end, support(needed, taps, dilation))
}

/// Inputs that a transposed convolution reads for `results`.
fn transposed(results: Range<usize>, taps: usize, stride: usize) -> Range<usize> {
    let padding = (taps - stride) / 2;
    let (first, last) = ((results.start + padding) / stride, (results.end - 1 + padding) / stride);
    (first + 1).saturating_sub(taps.div_ceil(stride))..last + 1
}

/// Results of every convolution that go into a segment of sound, as positions in the whole sequences. Ends may lie
/// beyond the sequence.
#[derive(Debug)]
pub(super) struct ReceptiveField {
    /// Frames that are read.
    pub frames: Range<usize>,
    /// Results of the first convolution.
    pub pre: Range<usize>,
    /// Spans of the residual steps of every block of every stage.
    pub stages: Vec<Vec<Vec<StepSpans>>>,
    /// Samples.
    pub post: Range<usize>,
}

/// Results of a residual step's two convolutions.
#[derive(Debug)]
pub(super) struct StepSpans {
    pub dilated: Range<usize>,
    pub plain: Range<usize>,
}

/// The receptive field of the sound of `frames`, which are not empty.
pub(super) fn of_frames(config: &VocoderConfig, frames: Range<usize>, support: Support) -> ReceptiveField {
    let hop = config.hop();
    let (post, mut needed) = convolution(frames.start * hop..frames.end * hop, OUTER_TAPS, 1, support);
    let mut stages = Vec::with_capacity(config.upsample_rates.len());
    for (&rate, &taps) in config.upsample_rates.iter().zip(&config.upsample_kernel_sizes).rev() {
        let blocks = config.resblock_kernel_sizes.iter().zip(&config.resblock_dilation_sizes);
        let (read, blocks): (Vec<_>, Vec<_>) =
            blocks.map(|(&taps, dilations)| of_block(needed.clone(), taps, dilations, support)).unzip();
        stages.push(blocks);
        let upsampled = read.into_iter().reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(needed);
        needed = transposed(upsampled, taps, rate);
    }
    stages.reverse();
    let (pre, frames) = convolution(needed, OUTER_TAPS, 1, support);
    ReceptiveField { frames, pre, stages, post }
}

/// Inputs that a residual block reads for `needed`, and the results of its steps.
fn of_block(
    needed: Range<usize>,
    taps: usize,
    dilations: &[usize],
    support: Support,
) -> (Range<usize>, Vec<StepSpans>) {
    let mut needed = needed;
    let mut steps = Vec::with_capacity(dilations.len());
    for &dilation in dilations.iter().rev() {
        let (plain, hidden) = convolution(needed, taps, 1, support);
        let (dilated, inputs) = convolution(hidden, taps, dilation, support);
        needed = inputs;
        steps.push(StepSpans { dilated, plain });
    }
    steps.reverse();
    (needed, steps)
}

/// Results of the duration predictor's convolutions, as positions in the sequence of units; ends may lie beyond it.
#[derive(Debug)]
pub(super) struct DurationField {
    /// Units that are read.
    pub units: Range<usize>,
    /// Results of each layer.
    pub layers: [Range<usize>; 2],
}

/// The receptive field of the durations of `units`: these alone where nothing is predicted.
pub(super) fn of_durations(config: Option<&DurationConfig>, units: Range<usize>, support: Support) -> DurationField {
    let Some(config) = config else { return DurationField { layers: [units.clone(), units.clone()], units } };
    let (second, hidden) = convolution(units, config.kernel, 1, support);
    let (first, units) = convolution(hidden, config.kernel, 1, support);
    DurationField { units, layers: [first, second] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Conv1d;
    use crate::backend::conv1d::direct_support;
    use crate::backend::cpu::Cpu;
    use crate::weights::random;

    #[test]
    fn a_transposed_convolution_reads_its_taps_and_no_more() {
        assert_eq!(transposed(0..1, 11, 5), 0..1);
        assert_eq!(transposed(100..105, 11, 5), 18..22);
    }

    /// The published vocoder looks 0.42 s ahead, 0.6 s where results are computed in fours. The margin of one result by
    /// hand, from the sound inwards: 3 samples, then for each rate 60 more (11 taps, dilations 1, 3 and 5, each followed by
    /// 1) and a division by the rate, then 3 frames.
    #[test]
    fn the_published_vocoder_reaches_so_far() {
        let config = random::published();
        let config = config.vocoder.as_ref().expect("a vocoder");
        for (support, margin) in [(direct_support as Support, 21), (Cpu::conv1d_support, 30)] {
            let field = of_frames(config, 600..601, support);
            assert_eq!(field.frames.end - 601, margin, "after");
            assert!(600 - field.frames.start <= margin, "before: {field:?}");
            assert_eq!(field.post, 600 * config.hop()..601 * config.hop());
            for block in field.stages.iter().flatten() {
                for step in block {
                    assert!(step.dilated.start <= step.plain.start && step.plain.end <= step.dilated.end);
                }
                // From step to step less is left to compute.
                assert!(block.windows(2).all(|pair| pair[0].plain.len() > pair[1].plain.len()));
            }
        }
    }
}
