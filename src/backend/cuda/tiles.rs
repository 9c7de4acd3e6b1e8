//! Tile shapes of the kernels, as the TILE lines next to the kernels declare them, and the choice among them.

use super::driver::{Kernel, Properties};
use crate::tensor::DType;

/// Compute capability of the devices whose warpgroups multiply by wgmma. Later ones have other instructions in its place.
const WGMMA_CAPABILITY: (u32, u32) = (9, 0);

/// Whether warpgroups of this device multiply by wgmma.
pub(super) fn has_wgmma(device: &Properties) -> bool {
    device.capability == WGMMA_CAPABILITY
}

/// A tile shape, or another form of a kernel that is chosen by the size of its work.
pub struct Tile<P: 'static> {
    /// Its geometry: `64x128`, `64x64_unaligned`, `r16`, `b4`.
    pub name: &'static str,
    /// Type of the operands.
    pub dtype: DType,
    /// Rows of a block.
    pub rows: usize,
    /// Columns of a block.
    pub columns: usize,
    /// Bytes of its shared memory.
    pub shared_bytes: usize,
    /// Time of a block on a busy multiprocessor, relative to the other tiles of the table. For products by arithmetic: the
    /// clocks in which 16 values of k are added to one tile: the larger of the time of the tensor cores (2540 operations a
    /// clock, as mma.sync reaches on sm_90) and of shared memory (128 bytes a clock: both operands written once, and read
    /// once by every warp that uses them).
    pub time: usize,
    /// The figure that justifies its place in the table.
    pub evidence: &'static str,
    /// The kernel.
    pub kernel: &'static Kernel<P>,
}

impl<P> Tile<P> {
    /// Whether it takes operands of this type, whose rows begin at multiples of 16 bytes if `aligned`.
    pub(crate) fn takes(&self, dtype: DType, aligned: bool) -> bool {
        self.dtype == dtype && (aligned || self.name.ends_with("unaligned"))
    }

    /// Whether it makes results of so many columns: epilogues of wgmma's store eight at a time.
    pub(crate) fn makes(&self, columns: usize) -> bool {
        columns.is_multiple_of(8) || !self.is_wgmma()
    }

    /// Whether its products are those of warpgroups, which only sm_90a has.
    fn is_wgmma(&self) -> bool {
        self.name.ends_with("_wgmma")
    }

    /// Tiles of a result.
    pub(super) fn count(&self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows) * columns.div_ceil(self.columns)
    }

    /// Blocks of a launch: one for each tile; of wgmma's, whose blocks take one tile after the other, as many as the device
    /// holds.
    pub(super) fn blocks(&self, rows: usize, columns: usize, device: &Properties) -> usize {
        let count = self.count(rows, columns);
        if !self.is_wgmma() {
            return count;
        }
        let together = (device.shared_per_block / self.shared_bytes).max(1) * device.multiprocessors;
        count.min(together)
    }

    /// Time of the busiest multiprocessor. Whole tiles take turns on all of them; the tiles of the last rows only multiply
    /// the rows there are, in 16s or a warpgroup's 64s, and first go where a turn was left over.
    fn busy_time(&self, rows: usize, columns: usize, multiprocessors: usize) -> usize {
        let across = columns.div_ceil(self.columns);
        let (whole, rest) = (rows / self.rows * across, rows % self.rows);
        let turns = whole.div_ceil(multiprocessors);
        let ragged = if rest == 0 { 0 } else { across.saturating_sub(turns * multiprocessors - whole) };
        let height = rest.next_multiple_of(if self.is_wgmma() { 64 } else { 16 });
        turns * self.time + ragged.div_ceil(multiprocessors) * self.time * height / self.rows
    }
}

/// The tile that keeps the busiest multiprocessor busy for the shortest time; of equal ones the first. None where the device
/// has too little shared memory for any. Where warpgroups can multiply, only they do: the device and the alignment choose the
/// instructions, never the number of rows, so that a row's result does not depend on how many there are.
pub(super) fn fastest<P>(
    tiles: &'static [Tile<P>],
    dtype: DType,
    aligned: bool,
    [rows, columns]: [usize; 2],
    device: &Properties,
) -> Option<&'static Tile<P>> {
    let usable = || {
        tiles.iter().filter(|tile| {
            tile.takes(dtype, aligned) && tile.makes(columns) && tile.shared_bytes <= device.shared_per_block
        })
    };
    let wgmma = has_wgmma(device) && usable().any(Tile::is_wgmma);
    let family = usable().filter(|tile| tile.is_wgmma() == wgmma);
    family.min_by_key(|tile| tile.busy_time(rows, columns, device.multiprocessors.max(1)))
}

/// Properties that the choice of tiles depends on, for tests.
#[cfg(test)]
pub(super) fn device(multiprocessors: usize, shared_per_block: usize, capability: (u32, u32)) -> Properties {
    Properties {
        name: "a device".into(),
        multiprocessors,
        capability,
        memory: 1 << 30,
        cooperative: true,
        l2: 50 << 20,
        shared_per_block,
    }
}
