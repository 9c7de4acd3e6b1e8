//! The blocks of a progressive scan in Huffman coding.

use super::bits::Bits;
use super::huffman::{Table, add_dc};
use super::markers::{Input, NATURAL_ORDER, Scan, Tables};
use super::scan::Entropy;
use super::{Block, Result};

/// The decoder of one progressive scan.
pub struct ProgressiveHuffman<'a, 'b> {
    bits: Bits<'a, 'b>,
    /// Table of each component of the scan; none for one that refines DC values, whose bits stand as they are.
    tables: Vec<Table>,
    /// DC value of the last block of each component, without the bits of later scans.
    predictions: [i32; 4],
    /// Blocks to come of which this scan says nothing.
    end_of_band_run: u32,
    spectral: (usize, usize),
    refines: bool,
    /// Bit position.
    low: u32,
}

impl<'a, 'b> ProgressiveHuffman<'a, 'b> {
    pub fn new(input: &'b mut Input<'a>, tables: &Tables, scan: &Scan) -> Result<ProgressiveHuffman<'a, 'b>> {
        let refines = scan.approximation.0 != 0;
        let made = scan.components.iter().filter(|_| scan.spectral.0 > 0 || !refines).map(|coded| {
            if scan.spectral.0 == 0 { Table::new(tables.dc(coded), 15) } else { Table::new(tables.ac(coded), 255) }
        });
        Ok(ProgressiveHuffman {
            bits: Bits::new(input),
            tables: made.collect::<Result<_>>()?,
            predictions: [0; 4],
            end_of_band_run: 0,
            spectral: scan.spectral,
            refines,
            low: scan.approximation.1,
        })
    }

    /// First bits of the AC coefficients.
    fn ac_first(&mut self, block: &mut Block) {
        if self.end_of_band_run > 0 {
            self.end_of_band_run -= 1;
            return;
        }
        let (mut k, end) = self.spectral;
        while k <= end {
            self.bits.fill();
            let symbol = self.bits.symbol(&self.tables[0]);
            let (run, size) = (symbol >> 4, symbol & 15);
            if size != 0 {
                k += usize::from(run);
                let value = self.bits.take_signed(size.into());
                block[usize::from(NATURAL_ORDER[k] & 63)] = (value << self.low) as i16;
                k += 1;
            } else if run == 15 {
                k += 16;
            } else {
                self.end_of_band_run = self.end_of_band(run) - 1;
                break;
            }
        }
    }

    /// One more bit of the AC coefficients.
    fn ac_refine(&mut self, block: &mut Block) {
        let (mut k, end) = self.spectral;
        let (plus, minus) = (1i16 << self.low, -1i16 << self.low);
        if self.end_of_band_run == 0 {
            while k <= end {
                self.bits.fill();
                let symbol = self.bits.symbol(&self.tables[0]);
                let (run, size) = (symbol >> 4, symbol & 15);
                let mut value = 0;
                if size != 0 {
                    value = if self.bits.take(1) == 1 { plus } else { minus };
                } else if run < 15 {
                    self.end_of_band_run = self.end_of_band(run);
                    break;
                }
                // Over `run` coefficients that stay zero, and all between them that are none.
                let mut zeros = run;
                while k <= end {
                    let coefficient = &mut block[usize::from(NATURAL_ORDER[k])];
                    if *coefficient != 0 {
                        self.bits.correct(coefficient, plus, minus);
                    } else if zeros == 0 {
                        break;
                    } else {
                        zeros -= 1;
                    }
                    k += 1;
                }
                if value != 0 {
                    block[usize::from(NATURAL_ORDER[k] & 63)] = value;
                }
                k += 1;
            }
        }
        if self.end_of_band_run > 0 {
            self.end_of_band_run -= 1;
            while k <= end {
                let coefficient = &mut block[usize::from(NATURAL_ORDER[k])];
                if *coefficient != 0 {
                    self.bits.correct(coefficient, plus, minus);
                }
                k += 1;
            }
        }
    }

    /// Blocks that a code for the end of a band is about, this one among them.
    fn end_of_band(&mut self, size: u8) -> u32 {
        (1 << size) + if size > 0 { self.bits.take(size.into()) } else { 0 }
    }
}

impl Bits<'_, '_> {
    /// Takes the next bit of a coefficient: 1 moves it away from zero, unless that bit is set already.
    #[inline]
    fn correct(&mut self, coefficient: &mut i16, plus: i16, minus: i16) {
        self.fill();
        if self.take(1) == 1 && *coefficient & plus == 0 {
            *coefficient = coefficient.wrapping_add(if *coefficient >= 0 { plus } else { minus });
        }
    }
}

impl Entropy for ProgressiveHuffman<'_, '_> {
    fn starved(&self) -> bool {
        self.bits.starved()
    }

    fn complete(&mut self) -> bool {
        self.bits.complete()
    }

    fn restart(&mut self) -> Result<()> {
        self.predictions = [0; 4];
        self.end_of_band_run = 0;
        self.bits.restart()
    }

    #[inline]
    fn block(&mut self, slot: usize, block: &mut Block) -> Result<bool> {
        match (self.spectral.0, self.refines) {
            (0, false) => {
                self.bits.fill();
                let size = self.bits.symbol(&self.tables[slot]);
                let value = add_dc(&mut self.predictions[slot], self.bits.take_signed(size.into()))?;
                block[0] = (value << self.low) as i16;
            }
            (0, true) => {
                self.bits.fill();
                block[0] |= (self.bits.take(1) << self.low) as i16;
            }
            (_, false) => self.ac_first(block),
            (_, true) => self.ac_refine(block),
        }
        Ok(true)
    }
}
