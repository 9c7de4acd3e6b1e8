//! Eight-bit weights as both products read them: groups of 16 rows lie side by side, (N / 16, K, 16), so that 16 codes are one
//! load, widened in registers and multiplied with one broadcast value of x. Sums stay in lanes, the codes of a decode step are
//! read once, strictly in memory order, and scales are applied to finished sums.

use rayon::prelude::*;

use super::buffer::grown;
use super::gemm::{Ahead, Block, Left, Pack, Panel, Target};
use super::simd::{Simd, dispatch, prefetch_ahead};
use crate::tensor::Quantized;

/// Rows of a group: the lanes of the widest register.
pub(super) const GROUP: usize = 16;

/// Codes (N, K) in groups of rows, zeros beyond the last row, and a scale for each row.
pub(super) struct Packed {
    rows: usize,
    depth: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
}

impl Packed {
    /// `None` of a matrix without columns.
    pub fn new(quantized: &Quantized) -> Option<Packed> {
        let Quantized { codes, scales } = quantized;
        let &[rows, depth] = codes.shape() else { return None };
        if depth == 0 {
            return None;
        }
        let scales = scales.to_f32().into_owned();
        let values: &[i8] = bytemuck::cast_slice(codes.bytes());
        let mut codes = vec![0; rows.next_multiple_of(GROUP) * depth];
        let groups = codes.par_chunks_mut(GROUP * depth).zip(values.par_chunks(GROUP * depth));
        groups.for_each(|(group, rows)| {
            for (n, row) in rows.chunks_exact(depth).enumerate() {
                row.iter().zip(group[n..].iter_mut().step_by(GROUP)).for_each(|(&from, to)| *to = from);
            }
        });
        Some(Packed { rows, depth, codes, scales })
    }

    /// (N).
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Element `index` of the row-major matrix (N, K).
    pub fn get(&self, index: usize) -> f32 {
        let (n, k) = (index / self.depth, index % self.depth);
        f32::from(self.codes[(n / GROUP * self.depth + k) * GROUP + n % GROUP]) * self.scales[n]
    }

    /// The groups that hold rows `first..`; `first` begins one.
    fn groups(&self, first: usize) -> &[i8] {
        debug_assert_eq!(first % GROUP, 0);
        &self.codes[first * self.depth..]
    }
}

impl Pack for &Packed {
    #[inline(always)]
    fn lines<'s, S: Simd>(&'s self, block: Block, width: usize, scratch: &'s mut Vec<f32>) -> &'s [f32] {
        let Block { start, depth, first, columns } = block;
        let lines = grown(scratch, depth * width);
        if columns < width {
            lines.fill(0.0);
        }
        for n in (0..columns).step_by(S::N) {
            // A register's columns lie in one group, since both begin at multiples of its lanes.
            let (group, lane) = ((first + n) / GROUP * GROUP, (first + n) % GROUP);
            let codes = self.groups(group)[start * GROUP..].chunks_exact(GROUP);
            for (line, codes) in lines.chunks_exact_mut(width).zip(codes) {
                S::store(&mut line[n..], S::load_i8(&codes[lane..]));
            }
        }
        lines
    }

    fn ahead(&self, Block { start, depth, first, columns }: Block) -> Ahead<'_> {
        let groups = columns.div_ceil(GROUP);
        if groups == 0 {
            return Ahead::default();
        }
        let codes = &self.groups(first)[start * GROUP..][..(groups - 1) * GROUP * self.depth + GROUP * depth];
        Ahead::new(bytemuck::cast_slice(codes), GROUP * depth, GROUP * self.depth)
    }
}

impl Panel for &Packed {
    fn fits(&self, depth: usize, columns: usize) -> bool {
        (self.rows, self.depth) == (columns, depth)
    }

    fn panel(self, l: Left<'_>, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>) {
        panel(l, self, t, first, columns, scratch);
    }
}

dispatch! {
    fn panel(l: Left<'_>, r: &Packed, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>) = panel_body;
}

#[inline(always)]
fn panel_body<S: Simd>(l: Left<'_>, r: &Packed, t: Target<'_>, first: usize, columns: usize, scratch: &mut Vec<f32>) {
    super::gemm::panels::<S, &Packed>(l, r, t, first, columns, scratch);
}

/// Columns `first..first + columns` of a decode step's sums; `first` begins a group.
#[inline(always)]
pub(super) fn sums<S: Simd>(l: Left<'_>, w: &Packed, t: Target<'_>, first: usize, columns: usize) {
    for (index, group) in w.groups(first).chunks_exact(GROUP * w.depth).enumerate() {
        let Some(left) = columns.checked_sub(index * GROUP).filter(|&left| left > 0) else { return };
        let (first, columns) = (first + index * GROUP, left.min(GROUP));
        // As many chains of additions as keep the multipliers busy with one row: 4 registers of 16 lanes, 2 times 2 of 8.
        // As many rows at a time as the registers can hold the sums of; what a group's codes are read for again is in a cache.
        if S::N == GROUP {
            rows::<S, 1, 4, 4>(l, group, t, first, columns);
        } else {
            rows::<S, 2, 2, 2>(l, group, t, first, columns);
        }
    }
}

/// All rows of x times one group, M at a time.
#[inline(always)]
fn rows<S: Simd, const R: usize, const C: usize, const M: usize>(
    l: Left<'_>,
    group: &[i8],
    t: Target<'_>,
    first: usize,
    columns: usize,
) {
    let mut row = 0;
    while row + M <= l.rows {
        tile::<S, R, C, M>(l, row, group, t, first, columns);
        row += M;
    }
    while row < l.rows {
        tile::<S, R, C, 1>(l, row, group, t, first, columns);
        row += 1;
    }
}

/// M rows of x times one group, of R registers a line, in C chains of additions for each sum: line k belongs to chain k % C,
/// whatever M is.
#[inline(always)]
fn tile<S: Simd, const R: usize, const C: usize, const M: usize>(
    l: Left<'_>,
    row: usize,
    group: &[i8],
    t: Target<'_>,
    first: usize,
    columns: usize,
) {
    let x: [&[f32]; M] = std::array::from_fn(|m| &l.values[(row + m) * l.row_stride..][..l.depth]);
    let mut acc = [[[S::splat(0.0); R]; M]; C];
    let mut line = |chain: usize, k: usize, codes: &[i8]| {
        let w: [S::Lanes; R] = std::array::from_fn(|r| S::load_i8(&codes[r * S::N..]));
        for (x, acc) in x.iter().zip(&mut acc[chain]) {
            // SAFETY: a group has `depth` lines, as many as each row of x was cut to.
            let value = S::splat(unsafe { *x.get_unchecked(k) });
            for (w, acc) in w.iter().zip(acc) {
                *acc = S::mul_add(value, *w, *acc);
            }
        }
    };
    let blocks = group.chunks_exact(C * GROUP);
    let (whole, rest) = (l.depth / C * C, blocks.remainder());
    for (block, codes) in blocks.enumerate() {
        prefetch_ahead(codes);
        for chain in 0..C {
            line(chain, block * C + chain, &codes[chain * GROUP..][..GROUP]);
        }
    }
    for (chain, codes) in rest.chunks_exact(GROUP).enumerate() {
        line(chain, whole + chain, codes);
    }
    let [first_chain, others @ ..] = &acc[..] else { return };
    for (m, registers) in first_chain.iter().enumerate() {
        let mut sums = [0.0; GROUP];
        for (r, &register) in registers.iter().enumerate() {
            let sum = others.iter().fold(register, |sum, chain| S::add(sum, chain[m][r]));
            S::store(&mut sums[r * S::N..], sum);
        }
        // SAFETY: these columns of these rows lie in the target and belong to the calling task alone.
        let y = unsafe { t.out.slice((row + m) * t.row_stride + first, columns) };
        y.copy_from_slice(&sums[..columns]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::disjoint::Disjoint;
    use super::super::simd::Portable;
    use super::*;
    use crate::tensor::{Bytes, DType, HostTensor};

    /// The tiles of 8 lanes, which a wider processor never runs, on whole numbers, whose sums are exact.
    #[test]
    fn narrow_registers_give_the_same() {
        let mut random = crate::random::Random::new(9);
        for (m, n, k) in [(1, 1, 1), (2, 16, 2), (3, 17, 5), (5, 40, 33)] {
            let (x, w) = (random.whole(m * k), random.whole(n * k));
            let codes = Bytes::new(w.iter().map(|&v| v as i8 as u8).collect::<Vec<_>>());
            let codes = HostTensor::new(&[n, k], DType::I8, codes).expect("the shape fits");
            let scales = HostTensor::from_f32(&[n], vec![1.0; n]).expect("the shape fits");
            let packed = Packed::new(&Quantized { codes, scales }).expect("a matrix");
            let mut y = vec![f32::NAN; m * n];
            let left = Left { values: &x, row_stride: k, rows: m, depth: k };
            let target = Target::plain(Disjoint::new(&mut y), n, n);
            sums::<Portable>(left, &packed, target, 0, n);
            let dot = |i: usize| x[i / n * k..][..k].iter().zip(&w[i % n * k..][..k]).map(|(x, w)| x * w).sum::<f32>();
            assert_eq!(y, (0..m * n).map(dot).collect::<Vec<f32>>(), "{m}x{n}x{k}");
        }
    }
}
