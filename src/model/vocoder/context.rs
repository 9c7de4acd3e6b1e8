//! What a stretch of a vocoder's result depends on. Sound that is made piece by piece equals sound that is made at once,
//! bit for bit, if each piece is cut out of inputs that reach at least this far and its margins are thrown away.

use std::ops::Range;

use super::OUTER_TAPS;
use crate::config::VocoderConfig;

/// What a convolution reads for `results`: the margin of its taps and, on a backend that computes `period` times
/// `dilation` results together, whole runs of them. The end may lie beyond the sequence.
pub(super) fn convolution(results: Range<usize>, taps: usize, dilation: usize, period: usize) -> Range<usize> {
    let (run, margin) = (run(dilation, period), (taps - 1) / 2 * dilation);
    let (start, end) = (results.start / run * run, results.end.next_multiple_of(run));
    start.saturating_sub(margin)..end + margin
}

/// How many results in a row are computed together.
fn run(dilation: usize, period: usize) -> usize {
    if period == 1 { 1 } else { dilation * period }
}

/// As [`convolution`] for a transposed one.
fn transposed(results: Range<usize>, taps: usize, stride: usize) -> Range<usize> {
    let padding = (taps - stride) / 2;
    let (first, last) = ((results.start + padding) / stride, (results.end - 1 + padding) / stride);
    (first + 1).saturating_sub(taps.div_ceil(stride))..last + 1
}

/// Which results of every convolution go into a stretch of sound, as positions in the whole sequences. They start where a run
/// of their convolution begins; ends may lie beyond the sequence.
#[derive(Debug)]
pub(super) struct Reach {
    /// Frames that are read.
    pub frames: Range<usize>,
    /// Results of the first convolution.
    pub pre: Range<usize>,
    /// Of the residual steps of every block of every stage.
    pub stages: Vec<Vec<Vec<StepReach>>>,
    /// Samples.
    pub post: Range<usize>,
}

/// Results of a residual step's two convolutions.
#[derive(Debug)]
pub(super) struct StepReach {
    pub dilated: Range<usize>,
    pub plain: Range<usize>,
}

/// What goes into the sound of `frames`, which are not empty.
pub(super) fn of_frames(config: &VocoderConfig, frames: Range<usize>, period: usize) -> Reach {
    let hop = config.hop();
    let post = from_a_run(frames.start * hop..frames.end * hop, 1, period);
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
    let pre = from_a_run(needed, 1, period);
    Reach { frames: convolution(pre.clone(), OUTER_TAPS, 1, period), pre, stages, post }
}

/// What a residual block reads for `needed`, and what its steps compute.
fn of_block(needed: Range<usize>, taps: usize, dilations: &[usize], period: usize) -> (Range<usize>, Vec<StepReach>) {
    let mut needed = needed;
    let mut steps = Vec::with_capacity(dilations.len());
    for &dilation in dilations.iter().rev() {
        let plain = from_a_run(needed, 1, period);
        let dilated = from_a_run(convolution(plain.clone(), taps, 1, period), dilation, period);
        needed = convolution(dilated.clone(), taps, dilation, period);
        steps.push(StepReach { dilated, plain });
    }
    steps.reverse();
    (needed, steps)
}

/// The results of a convolution that have to be computed for those `needed`.
fn from_a_run(needed: Range<usize>, dilation: usize, period: usize) -> Range<usize> {
    let run = run(dilation, period);
    needed.start / run * run..needed.end
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
            let reach = of_frames(config, 600..601, period);
            assert_eq!(reach.frames.end - 601, margin, "after, {period}");
            assert!(600 - reach.frames.start <= margin, "before, {period}: {reach:?}");
            assert_eq!(reach.post, 600 * config.hop()..601 * config.hop());
            for block in reach.stages.iter().flatten() {
                for (step, &dilation) in block.iter().zip(&[1, 3, 5]) {
                    assert_eq!((step.dilated.start % run(dilation, period), step.plain.start % period), (0, 0));
                }
                // From step to step less is left to compute.
                assert!(block.windows(2).all(|pair| pair[0].plain.len() > pair[1].plain.len()));
            }
        }
    }
}
