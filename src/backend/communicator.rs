//! The contract of sums of gradients over the processes of a run, on devices that reach each other. Ranks of a backend without
//! them add their gradients on the host, which is no part of this.

use std::ops::Range;

use crate::Result;

/// The ranks of a run, and their connections on the host.
pub trait Peers {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;
    /// Processes in all.
    fn count(&self) -> usize;
    /// Overwrites `bytes` with those of rank 0. Every rank calls it with as many.
    ///
    /// # Errors
    /// If a rank has ended.
    fn share(&mut self, bytes: &mut [u8]) -> Result<()>;
    /// Looks, without waiting, whether the connections are still there.
    ///
    /// # Errors
    /// If a rank has ended.
    fn check(&self) -> Result<()>;
}

/// Sums over the gradients `G` of all ranks. After an error it is of no further use, nor are the gradients; dropping it waits for no
/// other rank.
pub trait Communicator<G>: Send {
    /// Begins to sum a range of the gradients in place, after the work so far and next to later work. Every
    /// rank begins the same sums in the same order, and leaves the range alone until they are finished.
    ///
    /// # Errors
    /// If a rank has ended, or the range does not fit.
    fn start_sum(&mut self, gradients: &mut G, range: Range<usize>, peers: &dyn Peers) -> Result<()>;
    /// Waits for all sums that were begun; later work reads their results.
    ///
    /// # Errors
    /// If a rank has ended.
    fn finish_sums(&mut self, peers: &dyn Peers) -> Result<()>;
}
