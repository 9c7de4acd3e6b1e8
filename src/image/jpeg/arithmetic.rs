//! Arithmetic coding (annex D of the standard), sequential and progressive.

use super::markers::{Input, NATURAL_ORDER, Scan, Tables};
use super::scan::Entropy;
use super::{Block, Result};

/// Statistics of a DC table, and of an AC table.
const DC_BINS: usize = 64;
const AC_BINS: usize = 256;
/// Where the statistics of the AC tables begin, and the one that stays at one half.
const AC_START: usize = 16 * DC_BINS;
const FIXED: usize = AC_START + 16 * AC_BINS;
/// The state of a probability of one half that is never adapted.
const FIXED_STATE: u8 = 113;

/// The decoder of one scan.
pub struct Arithmetic<'a, 'b> {
    input: &'b mut Input<'a>,
    /// Adaptive probabilities: index into [`STATES`], and the likelier symbol in the top bit.
    bins: Vec<u8>,
    /// Base of the interval and bits to come, size of the interval, bits until the next byte.
    base: u64,
    size: u64,
    shift: i32,
    /// Whether a code made no sense: the rest of the interval is lost.
    lost: bool,
    /// Tables (DC, AC), DC value and DC context of each component of the scan.
    slots: [Slot; 4],
    conditioning_dc: [(u8, u8); 16],
    conditioning_ac: [u8; 16],
    progressive: bool,
    spectral: (usize, usize),
    refines: bool,
    low: u32,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    dc_table: usize,
    ac_table: usize,
    dc: i32,
    /// Offset of the bins for the sign and size of the last difference: 0, 4, 8, 12 or 16.
    context: usize,
}

/// A code that the format does not have.
struct Lost;

impl<'a, 'b> Arithmetic<'a, 'b> {
    pub fn new(input: &'b mut Input<'a>, tables: &Tables, scan: &Scan, progressive: bool) -> Arithmetic<'a, 'b> {
        let mut slots = [Slot::default(); 4];
        for (slot, coded) in slots.iter_mut().zip(&scan.components) {
            *slot = Slot { dc_table: coded.dc_table, ac_table: coded.ac_table, dc: 0, context: 0 };
        }
        let mut bins = vec![0; FIXED + 1];
        bins[FIXED] = FIXED_STATE;
        Arithmetic {
            input,
            bins,
            base: 0,
            size: 0,
            shift: -16,
            lost: false,
            slots,
            conditioning_dc: tables.arithmetic_dc,
            conditioning_ac: tables.arithmetic_ac,
            progressive,
            spectral: if progressive { scan.spectral } else { (0, 63) },
            refines: progressive && scan.approximation.0 != 0,
            low: if progressive { scan.approximation.1 } else { 0 },
        }
    }

    /// The next byte of data; zeros from the next marker on.
    fn next_byte(&mut self) -> Result<u8> {
        if self.input.marker.is_some() {
            return Ok(0);
        }
        let byte = self.input.byte()?;
        if byte == 0xFF {
            let mut next = self.input.byte()?;
            while next == 0xFF {
                next = self.input.byte()?;
            }
            if next != 0 {
                self.input.marker = Some(next);
                return Ok(0);
            }
        }
        Ok(byte)
    }

    /// Decodes one binary decision with the statistics of `bin`.
    fn decide(&mut self, bin: usize) -> Result<bool> {
        while self.size < 0x8000 {
            self.shift -= 1;
            if self.shift < 0 {
                self.base = self.base << 8 | u64::from(self.next_byte()?);
                self.shift += 8;
                // Two bytes are read before the first decision.
                if self.shift < 0 {
                    self.shift += 1;
                    if self.shift == 0 {
                        self.size = 0x8000;
                    }
                }
            }
            self.size <<= 1;
        }
        let state = self.bins[bin];
        let (chance, after_less, after_more) = STATES[usize::from(state & 0x7F).min(STATES.len() - 1)];
        let (less, more) = ((state & 0x80) ^ after_less, (state & 0x80) ^ after_more);
        let mut symbol = state >> 7;
        let chance = u64::from(chance);
        self.size -= chance;
        let bound = self.size << self.shift;
        if self.base >= bound {
            self.base -= bound;
            if self.size < chance {
                self.bins[bin] = more;
            } else {
                self.bins[bin] = less;
                symbol ^= 1;
            }
            self.size = chance;
        } else if self.size < 0x8000 {
            if self.size < chance {
                self.bins[bin] = less;
                symbol ^= 1;
            } else {
                self.bins[bin] = more;
            }
        }
        Ok(symbol == 1)
    }

    /// Decodes the part of a magnitude that is coded in unary, from `bin` on: a power of two, and the bin of its end.
    fn magnitude(&mut self, mut bin: usize, mut power: i32) -> Result<std::result::Result<(i32, usize), Lost>> {
        while self.decide(bin)? {
            power <<= 1;
            if power == 0x8000 {
                return Ok(Err(Lost));
            }
            bin += 1;
        }
        Ok(Ok((power, bin)))
    }

    /// Decodes the bits below `power`, and the sign put to all.
    fn value(&mut self, mut power: i32, bin: usize, negative: bool) -> Result<i32> {
        let mut value = power;
        power >>= 1;
        while power > 0 {
            if self.decide(bin + 14)? {
                value |= power;
            }
            power >>= 1;
        }
        Ok(if negative { -(value + 1) } else { value + 1 })
    }

    fn dc_first(&mut self, slot: usize, block: &mut Block) -> Result<()> {
        let Slot { dc_table, context, .. } = self.slots[slot];
        let start = dc_table * DC_BINS;
        let bin = start + context;
        self.slots[slot].context = 0;
        if self.decide(bin)? {
            let negative = self.decide(bin + 1)?;
            let mut place = (0, bin + 2 + usize::from(negative));
            if self.decide(place.1)? {
                match self.magnitude(start + 20, 1)? {
                    Ok(found) => place = found,
                    Err(Lost) => {
                        self.slots[slot].context = context;
                        self.lost = true;
                        return Ok(());
                    }
                }
            }
            let (lower, upper) = self.conditioning_dc[dc_table];
            let kind = usize::from(negative) * 4;
            self.slots[slot].context = match place.0 {
                size if size < (1 << lower) >> 1 => 0,
                size if size > (1 << upper) >> 1 => 12 + kind,
                _ => 4 + kind,
            };
            let difference = self.value(place.0, place.1, negative)?;
            self.slots[slot].dc = (self.slots[slot].dc + difference) & 0xFFFF;
        }
        block[0] = (self.slots[slot].dc << self.low) as i16;
        Ok(())
    }

    fn ac_first(&mut self, slot: usize, block: &mut Block) -> Result<()> {
        let table = self.slots[slot].ac_table;
        let start = AC_START + table * AC_BINS;
        let (mut k, end) = (self.spectral.0.max(1), self.spectral.1);
        while k <= end {
            let mut bin = start + 3 * (k - 1);
            if self.decide(bin)? {
                break;
            }
            while !self.decide(bin + 1)? {
                bin += 3;
                k += 1;
                if k > end {
                    self.lost = true;
                    return Ok(());
                }
            }
            let negative = self.decide(FIXED)?;
            let mut place = (0, bin + 2);
            if self.decide(place.1)? {
                place.0 = 1;
                if self.decide(place.1)? {
                    let high = k > usize::from(self.conditioning_ac[table]);
                    match self.magnitude(start + if high { 217 } else { 189 }, 2)? {
                        Ok(found) => place = found,
                        Err(Lost) => {
                            self.lost = true;
                            return Ok(());
                        }
                    }
                }
            }
            let value = self.value(place.0, place.1, negative)?;
            block[usize::from(NATURAL_ORDER[k])] = (value << self.low) as i16;
            k += 1;
        }
        Ok(())
    }

    fn ac_refine(&mut self, slot: usize, block: &mut Block) -> Result<()> {
        let start = AC_START + self.slots[slot].ac_table * AC_BINS;
        let (mut k, end) = self.spectral;
        let (plus, minus) = (1i16 << self.low, -1i16 << self.low);
        // The end of the block may come after the last coefficient that earlier scans found.
        let known = (1..=end).rev().find(|&k| block[usize::from(NATURAL_ORDER[k])] != 0).unwrap_or(0);
        while k <= end {
            let mut bin = start + 3 * (k - 1);
            if k > known && self.decide(bin)? {
                break;
            }
            loop {
                let place = usize::from(NATURAL_ORDER[k]);
                if block[place] != 0 {
                    if self.decide(bin + 2)? {
                        block[place] = block[place].wrapping_add(if block[place] < 0 { minus } else { plus });
                    }
                    break;
                }
                if self.decide(bin + 1)? {
                    block[place] = if self.decide(FIXED)? { minus } else { plus };
                    break;
                }
                bin += 3;
                k += 1;
                if k > end {
                    self.lost = true;
                    return Ok(());
                }
            }
            k += 1;
        }
        Ok(())
    }
}

impl Entropy for Arithmetic<'_, '_> {
    fn starved(&self) -> bool {
        self.lost
    }

    fn complete(&mut self) -> bool {
        true // data that end too early are an error at once
    }

    fn restart(&mut self) -> Result<()> {
        self.input.restart()?;
        self.bins.fill(0);
        self.bins[FIXED] = FIXED_STATE;
        for slot in &mut self.slots {
            (slot.dc, slot.context) = (0, 0);
        }
        (self.base, self.size, self.shift, self.lost) = (0, 0, -16, false);
        Ok(())
    }

    fn block(&mut self, slot: usize, block: &mut Block) -> Result<bool> {
        if self.lost {
            return Ok(true);
        }
        match (self.progressive, self.spectral.0, self.refines) {
            (false, ..) => {
                self.dc_first(slot, block)?;
                if self.lost { Ok(()) } else { self.ac_first(slot, block) }
            }
            (true, 0, false) => self.dc_first(slot, block),
            (true, 0, true) => {
                if self.decide(FIXED)? {
                    block[0] |= 1 << self.low;
                }
                Ok(())
            }
            (true, _, false) => self.ac_first(slot, block),
            (true, _, true) => self.ac_refine(slot, block),
        }?;
        Ok(true)
    }
}

/// Table D.3: for each state the chance of the less likely symbol, in 1/65536 of 4/3, and the states after that symbol
/// (its top bit: the symbols change places) and after the other. The last is [`FIXED_STATE`].
#[rustfmt::skip]
const STATES: [(u16, u8, u8); 114] = [
    (0x5A1D, 129, 1), (0x2586, 14, 2), (0x1114, 16, 3), (0x080B, 18, 4), (0x03D8, 20, 5), (0x01DA, 23, 6),
    (0x00E5, 25, 7), (0x006F, 28, 8), (0x0036, 30, 9), (0x001A, 33, 10), (0x000D, 35, 11), (0x0006, 9, 12),
    (0x0003, 10, 13), (0x0001, 12, 13), (0x5A7F, 143, 15), (0x3F25, 36, 16), (0x2CF2, 38, 17), (0x207C, 39, 18),
    (0x17B9, 40, 19), (0x1182, 42, 20), (0x0CEF, 43, 21), (0x09A1, 45, 22), (0x072F, 46, 23), (0x055C, 48, 24),
    (0x0406, 49, 25), (0x0303, 51, 26), (0x0240, 52, 27), (0x01B1, 54, 28), (0x0144, 56, 29), (0x00F5, 57, 30),
    (0x00B7, 59, 31), (0x008A, 60, 32), (0x0068, 62, 33), (0x004E, 63, 34), (0x003B, 32, 35), (0x002C, 33, 9),
    (0x5AE1, 165, 37), (0x484C, 64, 38), (0x3A0D, 65, 39), (0x2EF1, 67, 40), (0x261F, 68, 41), (0x1F33, 69, 42),
    (0x19A8, 70, 43), (0x1518, 72, 44), (0x1177, 73, 45), (0x0E74, 74, 46), (0x0BFB, 75, 47), (0x09F8, 77, 48),
    (0x0861, 78, 49), (0x0706, 79, 50), (0x05CD, 48, 51), (0x04DE, 50, 52), (0x040F, 50, 53), (0x0363, 51, 54),
    (0x02D4, 52, 55), (0x025C, 53, 56), (0x01F8, 54, 57), (0x01A4, 55, 58), (0x0160, 56, 59), (0x0125, 57, 60),
    (0x00F6, 58, 61), (0x00CB, 59, 62), (0x00AB, 61, 63), (0x008F, 61, 32), (0x5B12, 193, 65), (0x4D04, 80, 66),
    (0x412C, 81, 67), (0x37D8, 82, 68), (0x2FE8, 83, 69), (0x293C, 84, 70), (0x2379, 86, 71), (0x1EDF, 87, 72),
    (0x1AA9, 87, 73), (0x174E, 72, 74), (0x1424, 72, 75), (0x119C, 74, 76), (0x0F6B, 74, 77), (0x0D51, 75, 78),
    (0x0BB6, 77, 79), (0x0A40, 77, 48), (0x5832, 208, 81), (0x4D1C, 88, 82), (0x438E, 89, 83), (0x3BDD, 90, 84),
    (0x34EE, 91, 85), (0x2EAE, 92, 86), (0x299A, 93, 87), (0x2516, 86, 71), (0x5570, 216, 89), (0x4CA9, 95, 90),
    (0x44D9, 96, 91), (0x3E22, 97, 92), (0x3824, 99, 93), (0x32B4, 99, 94), (0x2E17, 93, 86), (0x56A8, 223, 96),
    (0x4F46, 101, 97), (0x47E5, 102, 98), (0x41CF, 103, 99), (0x3C3D, 104, 100), (0x375E, 99, 93), (0x5231, 105, 102),
    (0x4C0F, 106, 103), (0x4639, 107, 104), (0x415E, 103, 99), (0x5627, 233, 106), (0x50E7, 108, 107),
    (0x4B85, 109, 103), (0x5597, 110, 109), (0x504F, 111, 107), (0x5A10, 238, 111), (0x5522, 112, 109),
    (0x59EB, 240, 111), (0x5A1D, 113, 113),
];
