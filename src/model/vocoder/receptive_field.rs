//! Receptive field of a segment of a vocoder's result. Sound that is made piece by piece equals sound that is made in one
//! piece, bit for bit, if each piece is cut out of inputs that reach at least this far and its margins are thrown away.

use std::ops::Range;

use super::OUTER_TAPS;
use crate::config::VocoderConfig;

/// Inputs that a convolution reads for `results`: the margin of its taps and, on a backend that computes `period` times
/// `dilation` results together, whole groups of them. The end may lie beyond the sequence.
pub(super) fn convolution(results: Range<usize>, taps: usize, dilation: usize, period: usize) -> Range<usize> {
    let (group, margin) = (alignment(dilation, period), (taps - 1) / 2 * dilation);
    let (start, end) = (results.start / group * group, results.end.next_multiple_of(group));
    start.saturating_sub(margin)..end + margin
}

/// Results in a row that are computed together.
fn alignment(dilation: usize, period: usize) -> usize {
    if period == 1 { 1 } else { dilation * period }
}

/// As [`convolution`] for a transposed one.
fn transposed(results: Range<usize>, taps: usize, stride: usize) -> Range<usize> {
    let padding = (taps - stride) / 2;
    let (first, last) = ((results.start + padding) / stride, (results.end - 1 + padding) / stride);
    (first + 1).saturating_sub(taps.div_ceil(stride))..last + 1
}

/// Results of every convolution that go into a segment of sound, as positions in the whole sequences. They start where a
/// group of their convolution begins; ends may lie beyond the sequence.
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
pub(super) fn of_frames(config: &VocoderConfig, frames: Range<usize>, period: usize) -> ReceptiveField {
    let hop = config.hop();
    let post = align_down(frames.start * hop..frames.end * hop, 1, period);
    let mut needed = convolution(post.clone(), OUTER_TAPS, 1, period);
    let mut stages = Vec::with_capacity(config.upsample_rates.len());
    for (&rate, &taps) in config.upsample_rates.iter().zip(&config.upsample_kernel_sizes).rev() {
        let blocks = config.resblock_kernel_sizes.iter().zip(&config.resblock_dilation_sizes);
        let (read, blocks): (Vec<_>, Vec<_>) =
            blocks.map(|(&taps, dilations)| of_block(needed.clone(), taps, dilations, period)).unzip();
        stages.push(blocks);
        let upsampled = read.into_iter().reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(needed);
        needed = transposed(upsampled, taps, rate);
    }
    stages.reverse();
    let pre = align_down(needed, 1, period);
    ReceptiveField { frames: convolution(pre.clone(), OUTER_TAPS, 1, period), pre, stages, post }
}

/// Inputs that a residual block reads for `needed`, and the results of its steps.
fn of_block(needed: Range<usize>, taps: usize, dilations: &[usize], period: usize) -> (Range<usize>, Vec<StepSpans>) {
    let mut needed = needed;
    let mut steps = Vec::with_capacity(dilations.len());
    for &dilation in dilations.iter().rev() {
        let plain = align_down(needed, 1, period);
        let dilated = align_down(convolution(plain.clone(), taps, 1, period), dilation, period);
        needed = convolution(dilated.clone(), taps, dilation, period);
        steps.push(StepSpans { dilated, plain });
    }
    steps.reverse();
    (needed, steps)
}

/// The results of a convolution that have to be computed for those `needed`.
fn align_down(needed: Range<usize>, dilation: usize, period: usize) -> Range<usize> {
    let group = alignment(dilation, period);
    needed.start / group * group..needed.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::random;

    #[test]
    fn a_direct_convolution_reads_its_taps_and_no_more() {
        assert_eq!(convolution(10..11, 7, 3, 1), 1..20);
        assert_eq!(convolution(10..11, 7, 3, 4), 0..21);
        assert_eq!(convolution(12..24, 3, 1, 4), 11..25);
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
        for (period, margin) in [(1, 21), (4, 30)] {
            let field = of_frames(config, 600..601, period);
            assert_eq!(field.frames.end - 601, margin, "after, {period}");
            assert!(600 - field.frames.start <= margin, "before, {period}: {field:?}");
            assert_eq!(field.post, 600 * config.hop()..601 * config.hop());
            for block in field.stages.iter().flatten() {
                for (step, &dilation) in block.iter().zip(&[1, 3, 5]) {
                    assert_eq!((step.dilated.start % alignment(dilation, period), step.plain.start % period), (0, 0));
                }
                // From step to step less is left to compute.
                assert!(block.windows(2).all(|pair| pair[0].plain.len() > pair[1].plain.len()));
            }
        }
    }
}
