//! Sums of gradients over ranks that begin while the backward pass is still under way: buckets of parameters next to each other,
//! each summed once the pass is done with it.
//!
//! The block is in the order of the forward pass, so a backward pass completes it from its end to its start. Buckets depend on the
//! layout alone, and begin in one order: ranks without a batch, which report nothing, take part with the same ones.

use std::ops::Range;

use super::parameters::Layout;
use crate::Result;
use crate::backend::{Communicator, Peers};

/// Least bytes of a bucket, as in PyTorch's DistributedDataParallel; not measured here yet.
pub const BUCKET_BYTES: usize = 25 << 20;

/// Receives the gradients when those from an index of the block on are final. Indices only fall.
pub type OnFinal<'a, G> = dyn FnMut(&mut G, usize) -> Result<()> + 'a;

/// Ranges that together are the block, in the order of their sums: from its end to its start, whole parameters of at least
/// `min_bytes` each, but for the last.
pub fn plan(layout: &Layout, min_bytes: usize) -> Vec<Range<usize>> {
    let (mut buckets, mut end) = (Vec::new(), layout.len());
    for start in layout.entries().iter().rev().map(|entry| entry.place.start) {
        if (end - start) * size_of::<f32>() >= min_bytes || start == 0 {
            buckets.push(start..end);
            end = start;
        }
    }
    buckets
}

/// The sums of an update.
pub struct BucketSums<G> {
    communicator: Box<dyn Communicator<G>>,
    plan: Vec<Range<usize>>,
    /// Buckets whose sum has begun.
    begun: usize,
}

impl<G> BucketSums<G> {
    /// Sums over the ranks that `communicator` connects.
    pub fn new(communicator: Box<dyn Communicator<G>>, plan: Vec<Range<usize>>) -> BucketSums<G> {
        BucketSums { communicator, plan, begun: 0 }
    }

    /// Begins the sums of all buckets whose gradients are final, now that those from `start` on are.
    ///
    /// # Errors
    /// If a rank has ended.
    pub fn begin(&mut self, gradients: &mut G, start: usize, peers: &dyn Peers) -> Result<()> {
        while let Some(bucket) = self.plan.get(self.begun).filter(|bucket| bucket.start >= start) {
            self.communicator.start_sum(gradients, bucket.clone(), peers)?;
            self.begun += 1;
        }
        Ok(())
    }

    /// Waits for the sums.
    ///
    /// # Errors
    /// If a rank has ended.
    pub fn finish(&mut self, peers: &dyn Peers) -> Result<()> {
        self.begun = 0;
        self.communicator.finish_sums(peers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_the_block_from_its_end() {
        let mut layout = Layout::default();
        // 128 values or multiples of them, so that gaps are part of it.
        for (n, len) in [300, 128, 5, 1000, 70, 128].into_iter().enumerate() {
            layout.vector(format!("{n}"), len);
        }
        assert_eq!(layout.len(), 384 + 128 + 128 + 1024 + 128 + 128);
        assert_eq!(plan(&layout, 1), [1792..1920, 1664..1792, 640..1664, 512..640, 384..512, 0..384]);
        assert_eq!(plan(&layout, 4 * 256), [1664..1920, 640..1664, 384..640, 0..384]);
        assert_eq!(plan(&layout, 4 * 257), [640..1920, 0..640]);
        assert_eq!(plan(&layout, 4 * 1300), [512..1920, 0..512]);
        assert_eq!(plan(&layout, BUCKET_BYTES), vec![0..layout.len(); 1]);
        assert!(plan(&Layout::default(), 1).is_empty());
    }
}
