//! Sequences of different lengths, one after another in the rows of one tensor: a batch that needs no padding within a sequence.
//! Results of a sequence do not depend on the others, bit for bit.

use std::ops::Range;

use super::ensure;
use crate::Result;

/// The rows of each sequence in a tensor. Rows between them belong to none: no sequence sees them, and results are zero there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    rows: usize,
    parts: Vec<Range<usize>>,
}

impl Sequences {
    /// The one sequence of all `rows` rows.
    pub fn one(rows: usize) -> Sequences {
        Sequences { rows, parts: std::iter::once(0..rows).collect() }
    }

    /// Sequences at `parts` of `rows` rows.
    ///
    /// # Errors
    /// If they are not in order, share rows or end behind the last.
    pub fn new(rows: usize, parts: Vec<Range<usize>>) -> Result<Sequences> {
        let starts = parts.iter().skip(1).map(|part| part.start).chain([rows]);
        let fits = parts.iter().zip(starts).all(|(part, next)| part.start <= part.end && part.end <= next);
        ensure(fits, "sequences", || format!("{parts:?} of {rows} rows"))?;
        Ok(Sequences { rows, parts })
    }

    /// The rows of each.
    pub fn parts(&self) -> &[Range<usize>] {
        &self.parts
    }

    /// Rows of the longest.
    pub fn longest(&self) -> usize {
        self.parts.iter().map(Range::len).max().unwrap_or(0)
    }

    /// Whether every row is one of a sequence.
    pub fn cover_all(&self) -> bool {
        self.parts.iter().map(Range::len).sum::<usize>() == self.rows
    }

    /// An error of `op` unless they are of a tensor of so many rows.
    pub(crate) fn check(&self, op: &'static str, rows: usize) -> Result<()> {
        ensure(self.rows == rows, op, || format!("sequences in {} rows, x has {rows}", self.rows))
    }

    /// First row and number of rows of each, as kernels take them.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    pub(crate) fn table(&self, op: &'static str) -> Result<Vec<u32>> {
        let word = |n: usize| u32::try_from(n).ok().filter(|&n| i32::try_from(n).is_ok());
        let words = self.parts.iter().flat_map(|part| [word(part.start), word(part.len())]);
        let table = words.collect::<Option<Vec<u32>>>();
        table.ok_or_else(|| crate::Error::shape(op, format!("{} rows are more than a kernel can count", self.rows)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_in_order_and_apart() {
        let range = |(start, end)| Range { start, end };
        let of = |rows, parts: &[(usize, usize)]| Sequences::new(rows, parts.iter().copied().map(range).collect());
        assert_eq!(of(9, &[(0, 4), (5, 9)]).unwrap().longest(), 4);
        assert_eq!(of(9, &[(2, 2), (2, 3)]).unwrap().longest(), 1);
        assert_eq!(of(0, &[]).unwrap().longest(), 0);
        assert_eq!(of(7, &[(0, 7)]).unwrap(), Sequences::one(7));
        for parts in [&[(0, 4), (3, 9)][..], &[(5, 9), (0, 4)], &[(0, 10)], &[(4, 3)]] {
            assert!(of(9, parts).is_err(), "{parts:?}");
        }
        assert!(of(9, &[(1, 3)]).unwrap().check("op", 8).is_err());
    }
}
