//! Huffman tables, and the blocks of a sequential scan.

use super::bits::Bits;
use super::markers::{Input, NATURAL_ORDER, Scan, ScanComponent, Tables};
use super::scan::Entropy;
use super::{Block, Failure, Result};

/// Bits that one look-up resolves.
pub const LOOKAHEAD: u32 = 11;

/// Look-ups of whole coefficients, [`LOOKAHEAD`] bits at most, that leave enough of 56 bits for a code of 16 and a value of 15.
const LOOK_UPS: u32 = (56 - 31) / LOOKAHEAD + 1;

/// A table as it stands in the file.
#[derive(Clone)]
pub struct HuffmanSpec {
    /// Codes of each length, from 1 bit.
    counts: [u8; 16],
    /// Their symbols, shortest code first.
    symbols: [u8; 256],
}

impl HuffmanSpec {
    /// A table of `counts` codes of 1 to 16 bits and their symbols, 256 at most.
    pub fn new(counts: [u8; 16], symbols: &[u8]) -> HuffmanSpec {
        let mut all = [0; 256];
        all[..symbols.len()].copy_from_slice(symbols);
        HuffmanSpec { counts, symbols: all }
    }

    /// Table `index` of annex K.3, which sequential files without tables of their own (motion JPEG) take for granted.
    fn standard_dc(index: usize) -> Option<HuffmanSpec> {
        const SYMBOLS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        match index {
            0 => Some(HuffmanSpec::new([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], &SYMBOLS)),
            1 => Some(HuffmanSpec::new([0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], &SYMBOLS)),
            _ => None,
        }
    }

    /// As [`HuffmanSpec::standard_dc`].
    fn standard_ac(index: usize) -> Option<HuffmanSpec> {
        match index {
            0 => Some(HuffmanSpec::new([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125], &STANDARD_LUMA_AC)),
            1 => Some(HuffmanSpec::new([0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119], &STANDARD_CHROMA_AC)),
            _ => None,
        }
    }
}

/// A table made for decoding.
pub struct Table {
    /// For the next [`LOOKAHEAD`] bits: length of the code << 8 | symbol; 0 where it is longer.
    pub lookup: [u16; 1 << LOOKAHEAD],
    /// For each length: the first code that is too large for it, aligned to 16 bits.
    limit: [u32; 17],
    /// For each length: what leads from a code to its symbol's place.
    offset: [i32; 17],
    symbols: [u8; 256],
}

impl Table {
    /// The table for `spec` with symbols up to `largest`.
    pub fn new(spec: Option<&HuffmanSpec>, largest: u8) -> Result<Table> {
        let spec = spec.ok_or(Failure::Damaged("a Huffman table is missing"))?;
        let mut table = Table { lookup: [0; 1 << LOOKAHEAD], limit: [0; 17], offset: [0; 17], symbols: spec.symbols };
        let (mut code, mut place) = (0u32, 0usize);
        for length in 1..=16 {
            code <<= 1;
            let count = u32::from(spec.counts[length - 1]);
            table.offset[length] = place as i32 - code as i32;
            // No code is all ones.
            let symbols = spec.symbols.get(place..place + count as usize);
            if count > 0 && code + count >= 1 << length || symbols.is_none_or(|s| s.iter().any(|&s| s > largest)) {
                return Err(Failure::Damaged("a Huffman table is wrong"));
            }
            for _ in 0..count {
                if length as u32 <= LOOKAHEAD {
                    let spare = LOOKAHEAD - length as u32;
                    let first = (code << spare) as usize;
                    let entry = (length as u16) << 8 | u16::from(spec.symbols[place]);
                    table.lookup[first..first + (1 << spare)].fill(entry);
                }
                code += 1;
                place += 1;
            }
            table.limit[length] = if count > 0 { code << (16 - length) } else { 0 };
        }
        Ok(table)
    }

    /// Length and symbol of the code that `bits`, 16 of them, begin with and that is longer than [`LOOKAHEAD`].
    #[cold]
    pub fn long(&self, bits: u32) -> (u32, u8) {
        for length in LOOKAHEAD as usize + 1..=16 {
            if bits < self.limit[length] {
                let place = (bits >> (16 - length)) as i32 + self.offset[length];
                return (length as u32, self.symbols[place as usize & 255]);
            }
        }
        (17, 0)
    }
}

/// AC coefficients that the next bits stand for: one or two whole ones, or else a code.
#[derive(Clone, Copy)]
pub struct Coded(u64);

impl Coded {
    /// Marks an end of block after the coefficients.
    const END: u64 = 1 << 31;

    /// The entries of a table for all values of the next [`LOOKAHEAD`] bits.
    fn all(table: &Table) -> [Coded; 1 << LOOKAHEAD] {
        let whole: [_; 1 << LOOKAHEAD] = std::array::from_fn(|bits| Coded::whole(table, bits));
        std::array::from_fn(|bits| {
            let entry = table.lookup[bits];
            let Some((first, taken)) = whole[bits] else {
                return Coded(u64::from(entry >> 8) | u64::from(entry & 255) << 8);
            };
            let taken = u32::from(taken);
            let (rest, left) = (bits << taken & ((1 << LOOKAHEAD) - 1), LOOKAHEAD - taken);
            let next = table.lookup[rest];
            let (second, both) = match whole[rest] {
                Some((second, more)) if u32::from(more) <= left => (second, taken + u32::from(more)),
                // The first one again: it is written twice.
                _ => (first & 0xFFFF, taken),
            };
            let (end, both) = match (both == taken, next & 255, u32::from(next >> 8)) {
                (true, 0, length) if length > 0 && length <= left => (Coded::END, taken + length),
                _ => (0, both),
            };
            let (first, second) = (u64::from(first), u64::from(second));
            Coded(
                u64::from(both | taken << 8)
                    | first >> 16 << 16
                    | second >> 16 << 24
                    | (first & 0xFFFF) << 32
                    | second << 48
                    | end,
            )
        })
    }

    /// The coefficient that `bits` begin with: run + 1 and the value, 16 bits each; and its bits.
    fn whole(table: &Table, bits: usize) -> Option<(u32, u8)> {
        let entry = table.lookup[bits];
        let (length, run, size) = (u32::from(entry >> 8), u32::from(entry >> 4 & 15), u32::from(entry & 15));
        if entry == 0 || size == 0 || length + size > LOOKAHEAD {
            return None;
        }
        let value = (bits >> (LOOKAHEAD - length - size)) as i32 & ((1 << size) - 1);
        let value = if value >> (size - 1) == 0 { value + (-1 << size) + 1 } else { value };
        Some(((run + 1) << 16 | u32::from(value as u16), (length + size) as u8))
    }

    /// Whether there is a whole coefficient.
    #[inline(always)]
    fn is_whole(self) -> bool {
        self.0 >> 32 != 0
    }

    /// Bits of all that there is. Where nothing is whole, those of a code; 0 of one that is longer than [`LOOKAHEAD`].
    #[inline(always)]
    pub fn bits(self) -> u32 {
        self.0 as u32 & 63
    }

    /// Symbol of the code.
    #[inline(always)]
    fn symbol(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Bits of the first coefficient.
    #[inline(always)]
    pub fn first_bits(self) -> u32 {
        (self.0 >> 8) as u32 & 63
    }

    /// Places from the coefficient before to each of the two, and their values. The second may be the first again, 0 places on.
    #[inline(always)]
    fn coefficients(self) -> [(usize, i16); 2] {
        [((self.0 >> 16) as usize & 31, (self.0 >> 32) as i16), ((self.0 >> 24) as usize & 31, (self.0 >> 48) as i16)]
    }

    #[inline(always)]
    fn ends(self) -> bool {
        self.0 & Coded::END != 0
    }
}

/// Tables of a component of the scan.
struct Slot {
    dc: Table,
    ac: Table,
    coded: [Coded; 1 << LOOKAHEAD],
}

/// The decoder of a sequential scan.
pub struct Huffman<'a, 'b> {
    bits: Bits<'a, 'b>,
    /// Tables of the scan's components; those of one component serve the next if they are the same.
    tables: Vec<Slot>,
    /// Index of each component's tables.
    slots: [usize; 4],
    /// DC value of the last block of each.
    predictions: [i32; 4],
}

impl<'a, 'b> Huffman<'a, 'b> {
    pub fn new(input: &'b mut Input<'a>, tables: &Tables, scan: &Scan) -> Result<Huffman<'a, 'b>> {
        let same = |a: &ScanComponent, b: &ScanComponent| (a.dc_table, a.ac_table) == (b.dc_table, b.ac_table);
        let (mut made, mut slots) = (Vec::new(), [0; 4]);
        for (index, coded) in scan.components.iter().enumerate() {
            if index == 0 || !same(coded, &scan.components[index - 1]) {
                let dc = tables.dc(coded).cloned().or_else(|| HuffmanSpec::standard_dc(coded.dc_table));
                let ac = tables.ac(coded).cloned().or_else(|| HuffmanSpec::standard_ac(coded.ac_table));
                let (dc, ac) = (Table::new(dc.as_ref(), 15)?, Table::new(ac.as_ref(), 255)?);
                made.push(Slot { coded: Coded::all(&ac), dc, ac });
            }
            slots[index] = made.len() - 1;
        }
        Ok(Huffman { bits: Bits::new(input), tables: made, slots, predictions: [0; 4] })
    }
}

impl Entropy for Huffman<'_, '_> {
    #[inline(always)]
    fn starved(&self) -> bool {
        self.bits.starved()
    }

    fn complete(&mut self) -> bool {
        self.bits.complete()
    }

    fn restart(&mut self) -> Result<()> {
        self.predictions = [0; 4];
        self.bits.restart()
    }

    #[inline(always)]
    fn block(&mut self, slot: usize, block: &mut Block) -> Result<bool> {
        let Slot { dc, ac, coded } = &self.tables[self.slots[slot]];
        let Bits { input, ahead } = &mut self.bits;
        let mut bits = *ahead;
        bits.fill(input);
        let size = bits.symbol(dc);
        block[0] = add_dc(&mut self.predictions[slot], bits.take_signed(size.into()))? as i16;
        let mut k = 1;
        'refill: while k < 64 {
            bits.refill(input);
            for _ in 0..LOOK_UPS {
                let next = coded[bits.lookahead()];
                if !next.is_whole() {
                    bits.skip(next.bits());
                    let symbol = if next.bits() != 0 { next.symbol() } else { bits.symbol(ac) };
                    let (run, size) = (usize::from(symbol >> 4), symbol & 15);
                    if size != 0 {
                        k += run + 1;
                        block[place(k - 1)] = bits.take_signed(size.into()) as i16;
                    } else if run == 15 {
                        k += 16;
                    } else {
                        break 'refill;
                    }
                    continue 'refill;
                }
                let [(first, value), (second, other)] = next.coefficients();
                k += first;
                block[place(k - 1)] = value;
                if k >= 64 {
                    bits.skip(next.first_bits());
                    break 'refill;
                }
                bits.skip(next.bits());
                k += second;
                block[place(k - 1)] = other;
                if next.ends() || k >= 64 {
                    break 'refill;
                }
            }
        }
        *ahead = bits;
        Ok(k > 1)
    }
}

/// Places of coefficients; those after the last fall on it. As many as a mask can leave.
const PLACES: [u8; 128] = {
    let mut places = [63; 128];
    let mut k = 0;
    while k < 64 {
        places[k] = NATURAL_ORDER[k];
        k += 1;
    }
    places
};

/// Place of coefficient `k`.
#[inline(always)]
fn place(k: usize) -> usize {
    usize::from(PLACES[k & 127] & 63)
}

/// Adds a DC difference to a component's prediction.
#[inline]
pub fn add_dc(prediction: &mut i32, difference: i32) -> Result<i32> {
    *prediction = prediction.checked_add(difference).ok_or(Failure::Damaged("its brightness overflows"))?;
    Ok(*prediction)
}

#[rustfmt::skip]
const STANDARD_LUMA_AC: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14, 0x32,
    0x81, 0x91, 0xA1, 0x08, 0x23, 0x42, 0xB1, 0xC1, 0x15, 0x52, 0xD1, 0xF0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0A, 0x16,
    0x17, 0x18, 0x19, 0x1A, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x43, 0x44, 0x45,
    0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69,
    0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94,
    0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6,
    0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8,
    0xD9, 0xDA, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8,
    0xF9, 0xFA,
];

#[rustfmt::skip]
const STANDARD_CHROMA_AC: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22, 0x32, 0x81,
    0x08, 0x14, 0x42, 0x91, 0xA1, 0xB1, 0xC1, 0x09, 0x23, 0x33, 0x52, 0xF0, 0x15, 0x62, 0x72, 0xD1, 0x0A, 0x16, 0x24, 0x34,
    0xE1, 0x25, 0xF1, 0x17, 0x18, 0x19, 0x1A, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x43, 0x44,
    0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68,
    0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92,
    0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4,
    0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6,
    0xD7, 0xD8, 0xD9, 0xDA, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8,
    0xF9, 0xFA,
];
