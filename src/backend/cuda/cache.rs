//! Launches kernels/cache.cu: keys and values of a decoder, and attention of one query per row over them.

use super::{CacheRow, CacheShape, Cuda, Tensor};
use crate::Result;

/// Keys and values of a decoder on the device.
pub struct Cache {}

impl Cache {
    pub(super) fn new(cuda: &Cuda, shape: CacheShape) -> Result<Cache> {
        let _ = (cuda, shape);
        todo!()
    }

    /// Its sizes.
    pub(super) fn shape(&self) -> CacheShape {
        todo!()
    }

    /// Keys and values of the prefixes in one layer, (images, H, prefix, D).
    pub(super) fn prefix(&self, layer: usize) -> (super::driver::DevicePtr, super::driver::DevicePtr) {
        let _ = layer;
        todo!()
    }

    pub(super) fn set_prefix(&mut self, cuda: &Cuda, layer: usize, qkv: &Tensor) -> Result<()> {
        let _ = (cuda, layer, qkv);
        todo!()
    }

    pub(super) fn set_rows(&mut self, cuda: &Cuda, rows: &[CacheRow]) -> Result<()> {
        let _ = (cuda, rows);
        todo!()
    }

    pub(super) fn attention(&mut self, cuda: &Cuda, qkv: &Tensor, layer: usize, position: usize) -> Result<Tensor> {
        let _ = (cuda, qkv, layer, position);
        todo!()
    }
}
