//! Component planes, and their rows at the image's full width: libjpeg's triangle filter where a component has half the
//! samples, repetition elsewhere.

use super::markers::{Component, Frame};
use crate::image::avx2;

/// The samples of one component.
pub struct Plane {
    /// Rows of `stride` samples, of which the first `width` count; `height` rows count.
    pub samples: Vec<u8>,
    pub stride: usize,
    width: usize,
    height: usize,
    /// Samples of the image for one of the component, across and down.
    across: usize,
    down: usize,
}

impl Plane {
    /// A plane of blocks of zeros.
    pub fn grey(component: &Component, frame: &Frame) -> Plane {
        let stride = component.padded_wide * 8;
        Plane {
            samples: vec![128; stride * component.padded_high * 8],
            stride,
            width: component.width,
            height: component.height,
            across: frame.max_h / component.h,
            down: frame.max_v / component.v,
        }
    }

    /// Samples of a row at full width: those of the image, and up to 3 beyond.
    pub fn row_len(&self) -> usize {
        self.width * self.across
    }

    /// Sums that [`Plane::row`] needs space for.
    pub fn sums_len(&self) -> usize {
        self.width + 2
    }

    /// Row `y` of the image: the component's own row where it has all samples, or else one made in `out`. `sums` is
    /// space for one row of the component.
    pub fn row<'a>(&'a self, y: usize, out: &'a mut [u8], sums: &mut [u16]) -> &'a [u8] {
        let near = self.stored(y / self.down);
        let smooth = self.width > 2;
        match (self.across, self.down) {
            (1, 1) => return near,
            (1, 2) => blend_vertically(near, self.neighbour(y), y.is_multiple_of(2), out),
            (2, 1) if smooth => {
                let sums = self.framed(sums, near.iter().map(|&sample| sample.into()));
                widen::<2, 1, 2>(sums, out);
            }
            (2, 2) if smooth => {
                let both = near.iter().zip(self.neighbour(y));
                let sums = self.framed(sums, both.map(|(&near, &far)| 3 * u16::from(near) + u16::from(far)));
                widen::<4, 8, 7>(sums, out);
            }
            (across, _) => {
                for (out, &sample) in out.chunks_exact_mut(across).zip(near) {
                    out.fill(sample);
                }
            }
        }
        &out[..self.row_len()]
    }

    /// Puts a row of `values` into `sums`, with its first and its last once more around it.
    fn framed<'s>(&self, sums: &'s mut [u16], values: impl Iterator<Item = u16>) -> &'s [u16] {
        let sums = &mut sums[..self.width + 2];
        for (sum, value) in sums[1..=self.width].iter_mut().zip(values) {
            *sum = value;
        }
        (sums[0], sums[self.width + 1]) = (sums[1], sums[self.width]);
        sums
    }

    /// Row `y` of the component.
    fn stored(&self, y: usize) -> &[u8] {
        &self.samples[y * self.stride..][..self.width]
    }

    /// The second-nearest row to row `y` of the image; at the edges, the nearest again.
    fn neighbour(&self, y: usize) -> &[u8] {
        let below = y % 2;
        self.stored((y / 2 + below).saturating_sub(1 - below).min(self.height - 1))
    }
}

/// Three parts of `near` and one of `far`; the upper one of two rows rounds down on a tie, the lower one up.
fn blend_vertically(near: &[u8], far: &[u8], upper: bool, out: &mut [u8]) {
    let half = if upper { 1 } else { 2 };
    for (out, (&near, &far)) in out.iter_mut().zip(near.iter().zip(far)) {
        *out = ((3 * u16::from(near) + u16::from(far) + half) >> 2) as u8;
    }
}

/// Doubles a row: three parts of each sum and one of its left or right neighbour, rounded with `LEFT` or `RIGHT`. Before
/// the first sum and after the last stands the same once more.
fn widen<const SHIFT: i32, const LEFT: u16, const RIGHT: u16>(sums: &[u16], out: &mut [u8]) {
    let out = &mut out.as_chunks_mut::<2>().0[..sums.len() - 2];
    if avx2::widen::<SHIFT>(sums, LEFT, RIGHT, out) {
        return;
    }
    for (window, pair) in sums.windows(3).zip(out) {
        let [before, sum, after] = [window[0], window[1], window[2]];
        *pair = [((3 * sum + before + LEFT) >> SHIFT) as u8, ((3 * sum + after + RIGHT) >> SHIFT) as u8];
    }
}
