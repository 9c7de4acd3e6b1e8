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

/// Frames that go into the sound of `frames`, which are not empty. The start lies where a cut may begin, the end perhaps
/// beyond the sequence.
pub(super) fn of_frames(config: &VocoderConfig, frames: Range<usize>, period: usize) -> Range<usize> {
    let hop = config.hop();
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
        range = transposed(range, taps, rate);
    }
    range = convolution(range, OUTER_TAPS, 1, period);
    range.start - range.start % cut_period(config, period)..range.end
}

/// A cut begins at a multiple of so many frames: there a run of every convolution begins.
fn cut_period(config: &VocoderConfig, period: usize) -> usize {
    let mut frames = period;
    let mut rate = 1;
    for upsample in &config.upsample_rates {
        rate *= upsample;
        for dilation in config.resblock_dilation_sizes.iter().flatten().chain(&[1]) {
            let run = run(*dilation, period);
            // Where the numbers are too large for their common multiple, sound always begins at the start.
            frames = least_common_multiple(frames, run / greatest_common_divisor(run, rate)).unwrap_or(1 << 62);
        }
    }
    frames
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

    /// The published vocoder looks 0.42 s ahead, 0.6 s where results are computed in fours, and a cut then begins every
    /// 0.24 s. The margin of one result by hand, from the sound inwards: 3 samples, then for each rate 60 more (11 taps,
    /// dilations 1, 3 and 5, each followed by 1) and a division by the rate, then 3 frames.
    #[test]
    fn the_published_vocoder_reaches_so_far() {
        let config = random::published();
        let config = config.vocoder.as_ref().expect("a vocoder");
        assert_eq!((cut_period(config, 1), cut_period(config, 4)), (1, 12));
        for (period, margin) in [(1, 21), (4, 30)] {
            let range = of_frames(config, 600..601, period);
            assert_eq!(range.end - 601, margin, "after, {period}");
            assert!(600 - range.start <= margin + 12, "before, {period}: {range:?}");
        }
    }
}
