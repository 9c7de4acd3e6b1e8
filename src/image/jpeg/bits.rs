//! The bits of Huffman-coded data: bytes with their stuffing taken out, up to the next marker.

use super::Result;
use super::huffman::{LOOKAHEAD, Table};
use super::markers::Input;

/// A reader of bits, most significant first.
pub struct Bits<'a, 'b> {
    pub input: &'b mut Input<'a>,
    pub ahead: Ahead,
}

/// Bits that were read ahead. A value, so that a loop may keep it in registers.
#[derive(Clone, Copy, Default)]
pub struct Ahead {
    /// The next bits, from the top. Below `count` lie zeros or the bits that follow.
    buffer: u64,
    /// Bits in the buffer.
    count: u32,
    /// How many of them are zeros that no byte stands for, because a marker or the end of the file was reached.
    padding: u32,
}

impl<'a, 'b> Bits<'a, 'b> {
    pub fn new(input: &'b mut Input<'a>) -> Bits<'a, 'b> {
        Bits { input, ahead: Ahead::default() }
    }

    /// Whether more bits have been taken than there are before the next marker.
    #[inline]
    pub fn starved(&self) -> bool {
        self.ahead.starved()
    }

    /// Whether a marker follows the data, or at least so many bytes that no decoder would have needed more.
    pub fn complete(&mut self) -> bool {
        let left = (self.ahead.count as usize).saturating_sub(self.ahead.padding as usize) / 8;
        left + self.input.bytes.len() - self.input.at >= 8 || self.input.find_marker().is_ok()
    }

    /// Begins anew after the next restart marker. A marker found in its place leaves no data: the reader stays starved
    /// if it was.
    pub fn restart(&mut self) -> Result<()> {
        let starved = self.starved();
        self.ahead = Ahead::default();
        self.input.restart()?;
        if starved && self.input.marker.is_some() {
            self.ahead.padding = 1;
        }
        Ok(())
    }

    /// See [`Ahead::fill`].
    #[inline]
    pub fn fill(&mut self) {
        self.ahead.fill(self.input);
    }

    /// See [`Ahead::take`].
    #[inline]
    pub fn take(&mut self, size: u32) -> u32 {
        self.ahead.take(size)
    }

    /// See [`Ahead::take_signed`].
    #[inline]
    pub fn take_signed(&mut self, size: u32) -> i32 {
        self.ahead.take_signed(size)
    }

    /// See [`Ahead::symbol`].
    #[inline]
    pub fn symbol(&mut self, table: &Table) -> u8 {
        self.ahead.symbol(table)
    }
}

impl Input<'_> {
    /// The next byte of data. At a marker, which stays the next one of the input, and at the end of the file: none.
    fn next_data(&mut self) -> Option<u8> {
        let Input { bytes, at, marker, .. } = self;
        if marker.is_some() {
            return None;
        }
        let byte = *bytes.get(*at)?;
        *at += 1;
        if byte == 0xFF {
            let mut next = *bytes.get(*at)?;
            *at += 1;
            while next == 0xFF {
                next = *bytes.get(*at)?;
                *at += 1;
            }
            if next != 0 {
                *marker = Some(next);
                return None;
            }
        }
        Some(byte)
    }
}

impl Ahead {
    #[inline(always)]
    fn starved(&self) -> bool {
        self.padding > self.count
    }

    /// Fills the buffer to at least 32 bits: enough for a code of 17 bits and a value of 15.
    #[inline(always)]
    pub fn fill(&mut self, input: &mut Input) {
        if self.count < 32 {
            self.refill(input);
        }
    }

    /// Fills the buffer to at least 56 bits.
    #[inline(always)]
    pub fn refill(&mut self, input: &mut Input) {
        if input.marker.is_none()
            && let Some(next) = input.bytes[input.at..].first_chunk::<8>()
        {
            let next = u64::from_be_bytes(*next);
            // No byte is 0xFF: no byte of the complement is zero.
            if (!next).wrapping_sub(0x0101_0101_0101_0101) & next & 0x8080_8080_8080_8080 == 0 {
                self.buffer |= next >> self.count;
                input.at += (63 - self.count as usize) / 8;
                self.count |= 56;
                return;
            }
        }
        *self = self.filled_bytewise(input);
    }

    #[cold]
    fn filled_bytewise(mut self, input: &mut Input) -> Ahead {
        while self.count < 56 {
            let byte = input.next_data();
            if byte.is_none() {
                if self.starved() {
                    self.padding = self.count + 1;
                }
                self.padding += 8;
            }
            self.buffer |= u64::from(byte.unwrap_or(0)) << (56 - self.count);
            self.count += 8;
        }
        self
    }

    /// Goes over bits that the buffer holds, 63 at most.
    #[inline(always)]
    pub fn skip(&mut self, bits: u32) {
        self.buffer <<= bits;
        self.count = self.count.wrapping_sub(bits);
    }

    /// Takes `size` bits, 1 to 16, which the buffer holds.
    #[inline(always)]
    pub fn take(&mut self, size: u32) -> u32 {
        let value = (self.buffer >> (64 - size)) as u32;
        self.skip(size);
        value
    }

    /// Takes a signed value of `size` bits, 0 to 15: a first bit of 0 stands for the negative ones.
    #[inline(always)]
    pub fn take_signed(&mut self, size: u32) -> i32 {
        let negative = !((self.buffer as i64) >> 63) as i32; // all ones or all zeros
        let value = (self.buffer >> 1 >> (63 - size)) as i32;
        self.skip(size);
        value + (negative & ((-1 << size) + 1))
    }

    /// The next [`LOOKAHEAD`] bits.
    #[inline(always)]
    pub fn lookahead(&self) -> usize {
        (self.buffer >> (64 - LOOKAHEAD)) as usize
    }

    /// Takes a symbol. A code that `table` does not have counts as 17 bits that stand for 0, as in libjpeg.
    #[inline(always)]
    pub fn symbol(&mut self, table: &Table) -> u8 {
        let entry = table.lookup[self.lookahead()];
        if entry != 0 {
            self.skip(u32::from(entry >> 8));
            return entry as u8;
        }
        let (length, symbol) = table.long((self.buffer >> 48) as u32);
        self.skip(length);
        symbol
    }
}
