//! Tile shapes of the kernels, as the TILE lines next to the kernels declare them, and the choice among them.

use super::driver::{Kernel, Properties};
use crate::tensor::DType;

/// Compute capability of the devices whose warpgroups multiply by wgmma. Later ones have other instructions in its place.
const WGMMA_CAPABILITY: (u32, u32) = (9, 0);

/// Blocks of a pair.
const PAIR: usize = 2;
/// Time of pairs across, relative to those below: they read a quarter more, for which L2 takes a seventh longer than the tensor
/// cores, by arithmetic.
const ACROSS: [usize; 2] = [8, 7];

/// The tiles of two blocks that share what they read: PAIRING_* of kernels/pair.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairing {
    /// One below the other: they share columns.
    Below = 0,
    /// One next to the other: they share rows.
    Across = 1,
}

impl Pairing {
    /// Tiles down and across.
    fn tiles(self) -> [usize; 2] {
        match self {
            Pairing::Below => [PAIR, 1],
            Pairing::Across => [1, PAIR],
        }
    }

    /// Lines of the boxes of the left and the right operand: of what a pair shares, each block copies half a box.
    pub(super) fn box_rows(self) -> [usize; 2] {
        match self {
            Pairing::Below => [BOX_ROWS, BOX_ROWS / PAIR],
            Pairing::Across => [BOX_ROWS / PAIR, BOX_ROWS],
        }
    }
}

/// Lines of a box that one block reads for itself.
const BOX_ROWS: usize = 64;

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
    /// once by every warp that uses them). For pairs: the time of the tile for single blocks, less what L2 need not bring.
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

    /// Whether this device has the instructions and the shared memory for it. Devices with wgmma have clusters.
    pub(crate) fn runs_on(&self, device: &Properties) -> bool {
        (!self.is_wgmma() || has_wgmma(device)) && self.shared_bytes <= device.shared_per_block
    }

    /// Whether its products are those of warpgroups, which only sm_90a has.
    pub(super) fn is_wgmma(&self) -> bool {
        self.name.ends_with("_wgmma") || self.is_pair()
    }

    /// Whether two blocks share what they read.
    pub(crate) fn is_pair(&self) -> bool {
        self.kernel.info.cluster as usize == PAIR
    }

    /// Tiles of a result.
    pub(super) fn count(&self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows) * columns.div_ceil(self.columns)
    }

    /// Pairs of tiles of a result.
    fn pairs(&self, rows: usize, columns: usize, pairing: Pairing) -> usize {
        let [down, across] = pairing.tiles();
        rows.div_ceil(self.rows * down) * columns.div_ceil(self.columns * across)
    }

    /// The pairing of least time.
    pub(super) fn pairing(&self, rows: usize, columns: usize, device: &Properties) -> Pairing {
        let pairings = [Pairing::Below, Pairing::Across].into_iter();
        pairings.min_by_key(|&pairing| self.pair_time(rows, columns, pairing, device)).unwrap_or(Pairing::Below)
    }

    /// Time of the busiest pair of multiprocessors.
    fn pair_time(&self, rows: usize, columns: usize, pairing: Pairing, device: &Properties) -> usize {
        let turns = self.pairs(rows, columns, pairing).div_ceil((device.multiprocessors / PAIR).max(1));
        let [numerator, denominator] = if pairing == Pairing::Below { [1, 1] } else { ACROSS };
        turns * self.time * numerator / denominator
    }

    /// Blocks of a launch: one for each tile; of wgmma's, whose blocks take one tile after the other, as many as the device
    /// holds, in whole pairs where they share.
    pub(super) fn blocks(&self, rows: usize, columns: usize, device: &Properties) -> usize {
        if self.is_pair() {
            let pairs = self.pairs(rows, columns, self.pairing(rows, columns, device));
            return PAIR * pairs.min((device.multiprocessors / PAIR).max(1));
        }
        let count = self.count(rows, columns);
        if !self.is_wgmma() {
            return count;
        }
        let together = (device.shared_per_block / self.shared_bytes).max(1) * device.multiprocessors;
        count.min(together)
    }

    /// Time of the busiest multiprocessor. Whole tiles take turns on all of them; the tiles of the last rows only multiply
    /// the rows there are, in 16s or a warpgroup's 64s, and first go where a turn was left over.
    fn busy_time(&self, rows: usize, columns: usize, device: &Properties) -> usize {
        if self.is_pair() {
            return self.pair_time(rows, columns, self.pairing(rows, columns, device), device);
        }
        let multiprocessors = device.multiprocessors.max(1);
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
    let takes = |tile: &&Tile<P>| {
        tile.takes(dtype, aligned) && tile.makes(columns) && tile.runs_on(device) && (device.pairs || !tile.is_pair())
    };
    let usable = || tiles.iter().filter(takes);
    let wgmma = usable().any(Tile::is_wgmma);
    let family = usable().filter(|tile| tile.is_wgmma() == wgmma);
    family.min_by_key(|tile| tile.busy_time(rows, columns, device))
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
        pairs: false,
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::kernels::LINEAR_FORWARD_TILES;
    use super::*;

    /// Pairs lie so that the fewest turns are taken, below each other where that makes no difference; they are taken by request.
    #[test]
    fn pairs_follow_the_shape() {
        let hopper = device(132, 227 << 10, (9, 0));
        let tile = |name| LINEAR_FORWARD_TILES.iter().find(|tile| tile.name == name).unwrap();
        let pair = tile("128x256_pair");
        for (rows, columns, pairing, blocks) in [
            (4096, 4096, Pairing::Below, 132),
            // 17 pairs of rows would leave one over for a fifth turn.
            (4112, 4096, Pairing::Across, 132),
            (257, 3072, Pairing::Below, 48),
            (1, 8, Pairing::Below, 2),
        ] {
            assert_eq!(pair.pairing(rows, columns, &hopper), pairing, "{rows} x {columns}");
            assert_eq!(pair.blocks(rows, columns, &hopper), blocks, "{rows} x {columns}");
        }
        for pairs in [false, true] {
            let device = Properties { pairs, ..hopper.clone() };
            let chosen = |size| fastest(&LINEAR_FORWARD_TILES, DType::BF16, true, size, &device).unwrap().name;
            let (large, narrow) =
                if pairs { ("128x256_pair", "128x192_pair") } else { ("128x256_wgmma", "128x192_wgmma") };
            assert_eq!([chosen([4096, 4096]), chosen([6512, 768])], [large, narrow]);
            assert_eq!(chosen([257, 3072]), "64x128_wgmma");
        }
        assert!(!tile("128x256_wgmma").runs_on(&device(108, 227 << 10, (8, 0))));
    }
}
