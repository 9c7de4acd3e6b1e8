//! What a stretch of a vocoder's result depends on. Sound that is made piece by piece equals sound that is made at once,
//! bit for bit, if each piece is cut out of inputs that reach at least this far and its margins are thrown away.

use std::ops::Range;

use super::OUTER_TAPS;
use crate::model::config::VocoderConfig;

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

/// What goes into a stretch of sound. Starts lie where runs of all convolutions that follow begin, ends perhaps beyond the
/// sequence.
#[derive(Debug)]
pub(super) struct Reach {
    /// Frames.
    pub frames: Range<usize>,
    /// Of each stage, positions of its upsampled sequence.
    pub stages: Vec<Range<usize>>,
}

/// What goes into the sound of `frames`, which are not empty.
pub(super) fn of_frames(config: &VocoderConfig, frames: Range<usize>, period: usize) -> Reach {
    let (hop, whole_runs) = (config.hop(), whole_runs(config, period));
    let mut stages = Vec::with_capacity(config.upsample_rates.len());
    let mut range = convolution(frames.start * hop..frames.end * hop, OUTER_TAPS, 1, period);
    for (&rate, &taps) in config.upsample_rates.iter().zip(&config.upsample_kernel_sizes).rev() {
        let blocks = config.resblock_kernel_sizes.iter().zip(&config.resblock_dilation_sizes);
        range = blocks
            .map(|(&taps, dilations)| {
                dilations.iter().rev().fold(range.clone(), |range, &dilation| {
                    convolution(convolution(range, taps, 1, period), taps, dilation, period)
                })
            })
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
            .unwrap_or(range);
        range.start -= range.start % whole_runs;
        stages.push(range.clone());
        range = transposed(range, taps, rate);
    }
    stages.reverse();
    range = convolution(range, OUTER_TAPS, 1, period);
    range.start -= range.start % period;
    Reach { frames: range, stages }
}

/// At multiples of so many positions a run of every convolution of a residual block begins.
fn whole_runs(config: &VocoderConfig, period: usize) -> usize {
    let mut runs = config.resblock_dilation_sizes.iter().flatten().chain(&[1]).map(|&dilation| run(dilation, period));
    // Where the numbers are too large for their common multiple, that is at the start only.
    runs.try_fold(1, least_common_multiple).unwrap_or(usize::MAX)
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

fn least_common_multiple(a: usize, b: usize) -> Option<usize> {
    (a / greatest_common_divisor(a, b)).checked_mul(b)
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
        assert_eq!((whole_runs(config, 1), whole_runs(config, 4)), (1, 60));
        for (period, margin) in [(1, 21), (4, 30)] {
            let Reach { frames, stages } = of_frames(config, 600..601, period);
            assert_eq!(frames.end - 601, margin, "after, {period}");
            assert!(600 - frames.start <= margin + 15, "before, {period}: {frames:?}");
            // The later a stage, the less of the margin is left.
            let mut rate = 1;
            for ((stage, upsample), most) in stages.iter().zip(&config.upsample_rates).zip([37, 17, 6, 3, 2]) {
                rate *= upsample;
                let margins = (600 - stage.start / rate, stage.end.div_ceil(rate) - 601);
                assert!(margins.0.max(margins.1) <= most, "{margins:?} before and after at {rate} a frame, {period}");
            }
        }
    }
}
