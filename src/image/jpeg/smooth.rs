//! Block smoothing: a progressive file that ends before the first AC coefficients are exact has them estimated from the DC
//! values of the 5x5 blocks around (section K.8 of the standard, widened by libjpeg-turbo), so that it looks blurred and
//! not made of blocks.

use super::markers::{Component, Frame, Scan};
use super::{Block, scan::Blocks};

/// Coefficients whose accuracy matters, the DC value among them.
const WATCHED: usize = 10;
/// Their places in natural order.
const PLACES: [usize; WATCHED] = [0, 1, 8, 16, 9, 2, 3, 10, 17, 24];

/// Weights of the DC values around a block, rows from the top.
type Kernel = [[i32; 5]; 5];

/// Kernels where nothing but DC values has come, in the order of [`PLACES`].
#[rustfmt::skip]
const FROM_DC: [Kernel; WATCHED] = [
    [[-2, -6, -8, -6, -2], [-6, 6, 42, 6, -6], [-8, 42, 152, 42, -8], [-6, 6, 42, 6, -6], [-2, -6, -8, -6, -2]],
    [[-1, -1, 0, 1, 1], [-3, 13, 0, -13, 3], [-3, 38, 0, -38, 3], [-3, 13, 0, -13, 3], [-1, -1, 0, 1, 1]],
    [[-1, -3, -3, -3, -1], [-1, 13, 38, 13, -1], [0; 5], [1, -13, -38, -13, 1], [1, 3, 3, 3, 1]],
    [[0, 0, 1, 0, 0], [0, 2, 7, 2, 0], [0, -5, -14, -5, 0], [0, 2, 7, 2, 0], [0, 0, 1, 0, 0]],
    [[-1, 0, 0, 0, 1], [0, 9, 0, -9, 0], [0; 5], [0, -9, 0, 9, 0], [1, 0, 0, 0, -1]],
    [[0; 5], [0, 2, -5, 2, 0], [1, 7, -14, 7, 1], [0, 2, -5, 2, 0], [0; 5]],
    [[0; 5], [0, 1, 0, -1, 0], [0, 2, 0, -2, 0], [0, 1, 0, -1, 0], [0; 5]],
    [[0; 5], [0, 1, -3, 1, 0], [0; 5], [0, -1, 3, -1, 0], [0; 5]],
    [[0; 5], [0, 1, 0, -1, 0], [0, -3, 0, 3, 0], [0, 1, 0, -1, 0], [0; 5]],
    [[0; 5], [0, 1, 2, 1, 0], [0; 5], [0, -1, -2, -1, 0], [0; 5]],
];

/// Kernels of the coefficients 1 to 5 where some AC bits have come.
#[rustfmt::skip]
const BESIDES_AC: [Kernel; 5] = [
    [[0; 5], [0; 5], [-7, 50, 0, -50, 7], [0; 5], [0; 5]],
    [[0, 0, -7, 0, 0], [0, 0, 50, 0, 0], [0; 5], [0, 0, -50, 0, 0], [0, 0, 7, 0, 0]],
    [[0, 0, -1, 0, 0], [0, 0, 13, 0, 0], [0, 0, -24, 0, 0], [0, 0, 13, 0, 0], [0, 0, -1, 0, 0]],
    [[0, -1, 0, 1, 0], [-1, 10, 0, -10, 1], [0; 5], [1, -10, 0, 10, -1], [0, 1, 0, -1, 0]],
    [[0; 5], [0; 5], [-1, 13, -24, 13, -1], [0; 5], [0; 5]],
];

/// Lowest bit that has come of each watched coefficient; -1: none.
type Bits = [i32; WATCHED];

/// Accuracy of the coefficients of a progressive file.
pub struct Accuracy {
    /// After the last scan, and before it: for each component.
    current: Vec<Bits>,
    previous: Vec<Bits>,
    scans: usize,
    progressive: bool,
    /// Last row of MCUs whose data in the last scan had not run out.
    pub last_good_row: usize,
}

impl Accuracy {
    /// The state before any scan: nothing is known.
    pub fn new(frame: &Frame) -> Accuracy {
        let none = vec![[-1; WATCHED]; frame.components.len()];
        let progressive = frame.progressive;
        Accuracy { current: none.clone(), previous: none, scans: 0, progressive, last_good_row: 0 }
    }

    /// Records the bits that `scan` brings.
    pub fn start_scan(&mut self, scan: &Scan) {
        let (start, end) = scan.spectral;
        for coded in &scan.components {
            let (current, previous) = (&mut self.current[coded.index], &mut self.previous[coded.index]);
            let first = start.min(1);
            previous[first..].copy_from_slice(&if self.scans > 0 { *current } else { [0; WATCHED] }[first..]);
            for bits in current.iter_mut().take(end + 1).skip(start) {
                *bits = scan.approximation.1 as i32;
            }
        }
        self.scans += 1;
    }

    /// Whether estimates are possible and of use.
    pub fn needs_smoothing(&self, frame: &Frame) -> bool {
        let known = frame.components.iter().zip(&self.current).all(|(component, bits)| {
            component.quantisation.is_some_and(|table| PLACES.iter().all(|&place| table[place] != 0)) && bits[0] >= 0
        });
        self.progressive && known && self.current.iter().any(|bits| bits[1..] != [0; WATCHED - 1])
    }
}

/// The estimates of one component.
pub struct Smoother<'a> {
    blocks: &'a Blocks,
    component: &'a Component,
    quantisation: [u16; 64],
    /// Rows of MCUs.
    mcus_high: usize,
    current: Bits,
    previous: Bits,
    last_good_row: usize,
}

impl<'a> Smoother<'a> {
    /// The estimates of component `index`, whose coefficients are `blocks`.
    pub fn new(accuracy: &Accuracy, frame: &'a Frame, index: usize, blocks: &'a Blocks) -> Smoother<'a> {
        let component = &frame.components[index];
        let mut previous = accuracy.previous[index];
        if accuracy.scans <= 1 {
            previous[1..].fill(-1);
        }
        Smoother {
            blocks,
            component,
            quantisation: component.quantisation.unwrap_or([1; 64]),
            mcus_high: frame.mcus_high,
            current: accuracy.current[index],
            previous,
            last_good_row: accuracy.last_good_row,
        }
    }

    /// The block at (`row`, `column`), with estimates for what is not known of it.
    pub fn block(&self, row: usize, column: usize) -> Block {
        let mut block = *self.blocks.at(row, column);
        let bits = if row / self.component.v > self.last_good_row { &self.previous } else { &self.current };
        let only_dc = bits[1..] == [-1; WATCHED - 1];
        let around = self.around(row, column);
        let kernels = if only_dc { &FROM_DC[1..] } else { &BESIDES_AC[..] };
        for ((&place, kernel), &low) in PLACES[1..].iter().zip(kernels).zip(&bits[1..]) {
            if low != 0 && block[place] == 0 {
                block[place] = self.estimate(&around, kernel, place, low);
            }
        }
        if only_dc {
            block[0] = self.estimate(&around, &FROM_DC[0], 0, 0);
        }
        block
    }

    /// DC values of the 5x5 blocks around. At the edges the nearest block stands for those that are missing; how many
    /// rows there are is counted as libjpeg does it, from the blocks of this row of MCUs.
    fn around(&self, row: usize, column: usize) -> Kernel {
        let v = self.component.v;
        let (mcu, within) = (row / v, row % v);
        let last_rows = self.component.blocks_high - (self.mcus_high - 1) * v;
        let rows = if mcu + 1 < self.mcus_high { v } else { last_rows };
        let (counted, count) = (mcu * rows + within, rows * self.mcus_high);
        let above = if counted > 0 { row - 1 } else { row };
        let below = if counted + 1 < count { row + 1 } else { row };
        let rows = [
            if counted > 1 { row - 2 } else { above },
            above,
            row,
            below,
            if counted + 2 < count { row + 2 } else { below },
        ];
        let last = self.component.blocks_wide - 1;
        rows.map(|row| std::array::from_fn(|x| self.blocks.at(row, (column + x).saturating_sub(2).min(last))[0].into()))
    }

    /// One coefficient whose bits from `low` on have come and are zero; -1: none has come, 0: there is no limit.
    fn estimate(&self, around: &Kernel, kernel: &Kernel, place: usize, low: i32) -> i16 {
        let sums =
            around.iter().zip(kernel).map(|(dc, weights)| dc.iter().zip(weights).map(|(d, w)| d * w).sum::<i32>());
        let level = i64::from(self.quantisation[0]) * i64::from(sums.sum::<i32>());
        let step = i64::from(self.quantisation[place]);
        let mut size = ((step << 7) + level.abs()) / (step << 8);
        if low > 0 {
            size = size.min((1 << low) - 1);
        }
        (if level < 0 { -size } else { size }) as i16
    }
}
