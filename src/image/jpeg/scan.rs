//! The way through a scan: which block comes next, when a restart is due, and where the blocks go.

use rayon::prelude::*;

use super::arithmetic::Arithmetic;
use super::huffman::Huffman;
use super::markers::{Component, Frame, Headers, Scan, ScanComponent};
use super::progressive::ProgressiveHuffman;
use super::smooth::{Accuracy, Smoother};
use super::upsample::Plane;
use super::{Block, CUT_OFF, Failure, Result, idct};
use crate::image::avx2::{self, Work};

/// A decoder of entropy-coded blocks.
pub trait Entropy {
    /// Whether the data of this restart interval have run out or make no sense any more: its blocks stay as they are.
    fn starved(&self) -> bool;

    /// Whether the file did not end within the data.
    fn complete(&mut self) -> bool;

    /// Begins the next restart interval.
    fn restart(&mut self) -> Result<()>;

    /// Decodes the next block, one of the scan's component `slot`, into or on top of `block`. False if nothing but its first
    /// coefficient can have changed.
    fn block(&mut self, slot: usize, block: &mut Block) -> Result<bool>;
}

/// A place that blocks are decoded into.
pub trait Target {
    /// The block of `component` at (`row`, `column`), to decode into or on top of. One that is never decoded is zero.
    fn block(&mut self, component: usize, row: usize, column: usize) -> Result<&mut Block>;

    /// Takes the block that was decoded last; it is flat if nothing but its first coefficient can have changed.
    fn decoded(&mut self, component: usize, row: usize, column: usize, is_flat: bool);
}

/// Decodes the data of `scan` into `target`. Returns the last row of MCUs whose data had not run out.
///
/// # Errors
/// `Failure::Damaged` where the data make no sense or the file ends within them.
pub fn decode(headers: &mut Headers, scan: &Scan, target: &mut impl Target) -> Result<usize> {
    let Headers { input, tables, frame, .. } = headers;
    let interval = tables.restart_interval;
    match (frame.arithmetic, frame.progressive) {
        (true, _) => {
            let entropy = &mut Arithmetic::new(input, tables, scan, frame.progressive);
            Walk { frame, scan, interval, entropy, target }.run()
        }
        (false, false) => {
            let entropy = &mut Huffman::new(input, tables, scan)?;
            avx2::compiled(Walk { frame, scan, interval, entropy, target })
        }
        (false, true) => {
            let entropy = &mut ProgressiveHuffman::new(input, tables, scan)?;
            Walk { frame, scan, interval, entropy, target }.run()
        }
    }
}

/// Blocks that `scan` passes over.
pub fn blocks(frame: &Frame, scan: &Scan) -> usize {
    let of = |coded: &ScanComponent| &frame.components[coded.index];
    match &scan.components[..] {
        [alone] => of(alone).blocks_wide * of(alone).blocks_high,
        several => several.iter().map(|coded| of(coded).padded_wide * of(coded).padded_high).sum(),
    }
}

/// The way of `entropy` through the blocks of a scan, into `target`.
struct Walk<'w, E, T> {
    frame: &'w Frame,
    scan: &'w Scan,
    interval: usize,
    entropy: &'w mut E,
    target: &'w mut T,
}

impl<E: Entropy, T: Target> Work for Walk<'_, E, T> {
    type Output = Result<usize>;

    #[inline(always)]
    fn run(self) -> Result<usize> {
        let Walk { frame, scan, interval, entropy, target } = self;
        // One component alone is coded block by block, without the filling up to MCUs.
        let alone = (scan.components.len() == 1).then(|| &frame.components[scan.components[0].index]);
        let (wide, high) = alone.map_or((frame.mcus_wide, frame.mcus_high), |c| (c.blocks_wide, c.blocks_high));
        let (mut to_go, mut last_good) = (interval, 0);
        for row in 0..high {
            for column in 0..wide {
                if !entropy.starved() {
                    last_good = row / alone.map_or(1, |component| component.v);
                }
                if interval != 0 {
                    if to_go == 0 {
                        entropy.restart()?;
                        to_go = interval;
                    }
                    to_go -= 1;
                }
                if entropy.starved() {
                    continue;
                }
                for (slot, coded) in scan.components.iter().enumerate() {
                    let component = &frame.components[coded.index];
                    let (h, v) = if alone.is_some() { (1, 1) } else { (component.h, component.v) };
                    for y in 0..v {
                        for x in 0..h {
                            let (row, column) = (row * v + y, column * h + x);
                            let is_flat = !entropy.block(slot, target.block(coded.index, row, column)?)?;
                            target.decoded(coded.index, row, column, is_flat);
                        }
                    }
                }
            }
        }
        if entropy.complete() { Ok(last_good) } else { Err(Failure::Damaged(CUT_OFF)) }
    }
}

/// Samples, made as soon as a block is decoded.
pub struct Samples {
    planes: Vec<Plane>,
    quantisation: Vec<[u16; 64]>,
    /// Blocks become samples by twos: one that waits, and the next.
    blocks: [Block; 2],
    /// Component of the block that waits, and offset of its samples.
    waiting: Option<(usize, usize)>,
}

impl Samples {
    /// Grey samples, as blocks of zeros give them.
    pub fn new(frame: &Frame) -> Samples {
        Samples {
            planes: frame.components.iter().map(|component| Plane::grey(component, frame)).collect(),
            quantisation: frame.components.iter().map(|c| c.quantisation.unwrap_or([0; 64])).collect(),
            blocks: [[0; 64]; 2],
            waiting: None,
        }
    }

    pub fn into_planes(mut self) -> Vec<Plane> {
        if let Some(last) = self.waiting {
            self.blocks[1] = self.blocks[0];
            self.write([last; 2]);
        }
        self.planes
    }

    #[inline(always)]
    fn write(&mut self, places: [(usize, usize); 2]) {
        let quantisation = places.map(|(component, _)| &self.quantisation[component]);
        let both = idct::samples(self.blocks.each_ref(), quantisation);
        for ((component, start), samples) in places.into_iter().zip(both) {
            let plane = &mut self.planes[component];
            idct::write(samples, &mut plane.samples[start..], plane.stride);
        }
    }
}

impl Target for Samples {
    #[inline(always)]
    fn block(&mut self, _component: usize, _row: usize, _column: usize) -> Result<&mut Block> {
        let block = &mut self.blocks[usize::from(self.waiting.is_some())];
        *block = [0; 64];
        Ok(block)
    }

    #[inline(always)]
    fn decoded(&mut self, component: usize, row: usize, column: usize, is_flat: bool) {
        let plane = &mut self.planes[component];
        let start = row * 8 * plane.stride + column * 8;
        if is_flat {
            let first = self.blocks[usize::from(self.waiting.is_some())][0];
            idct::flat(first, &self.quantisation[component], &mut plane.samples[start..], plane.stride);
        } else {
            match self.waiting.take() {
                Some(first) => self.write([first, (component, start)]),
                None => self.waiting = Some((component, start)),
            }
        }
    }
}

/// The blocks of one component.
pub struct Blocks {
    blocks: Vec<Block>, // (padded_high, padded_wide)
    wide: usize,
}

impl Blocks {
    pub fn at(&self, row: usize, column: usize) -> &Block {
        &self.blocks[row * self.wide + column]
    }
}

/// The coefficients of all components, for files of several scans.
pub struct Coefficients(Vec<Blocks>);

impl Coefficients {
    /// Zeros.
    pub fn new(frame: &Frame) -> Coefficients {
        let zeros = |component: &Component| Blocks {
            blocks: vec![[0; 64]; component.padded_wide * component.padded_high],
            wide: component.padded_wide,
        };
        Coefficients(frame.components.iter().map(zeros).collect())
    }

    /// Makes samples of all blocks, estimating coefficients of which no or not all bits have come.
    pub fn into_planes(self, frame: &Frame, accuracy: &Accuracy) -> Vec<Plane> {
        let smooth = accuracy.needs_smoothing(frame);
        let components = frame.components.iter().zip(self.0).enumerate();
        let planes = components.map(|(index, (component, blocks))| {
            let mut plane = Plane::grey(component, frame);
            let quantisation = component.quantisation.unwrap_or([0; 64]);
            let stride = plane.stride;
            let smoother = smooth.then(|| Smoother::new(accuracy, frame, index, &blocks));
            let rows = plane.samples.par_chunks_mut(stride * 8).take(component.blocks_high).enumerate();
            rows.for_each(|(row, samples)| {
                let block = |column: usize| match &smoother {
                    Some(smoother) => smoother.block(row, column),
                    None => *blocks.at(row, column),
                };
                for left in (0..component.blocks_wide).step_by(2) {
                    let columns = [left, (left + 1).min(component.blocks_wide - 1)];
                    let pair = columns.map(block);
                    let both = idct::samples(pair.each_ref(), [&quantisation; 2]);
                    for (column, one) in columns.into_iter().zip(both) {
                        idct::write(one, &mut samples[column * 8..], stride);
                    }
                }
            });
            plane
        });
        planes.collect()
    }
}

impl Target for Coefficients {
    #[inline(always)]
    fn block(&mut self, component: usize, row: usize, column: usize) -> Result<&mut Block> {
        let Blocks { blocks, wide } = &mut self.0[component];
        blocks.get_mut(row * *wide + column).ok_or(Failure::Damaged("a scan is larger than the image"))
    }

    fn decoded(&mut self, _component: usize, _row: usize, _column: usize, _is_flat: bool) {}
}
