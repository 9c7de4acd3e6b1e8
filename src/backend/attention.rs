//! attention: `softmax(query key^T / sqrt D) value` over whole sequences.

use super::{Device, ensure};
use crate::Result;
use crate::cost::Cost;

/// Layout of packed query, key and value rows (B*T, 3*H*D).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Independent sequences B.
    pub batch: usize,
    /// Tokens T of each.
    pub tokens: usize,
    /// Heads H.
    pub heads: usize,
    /// The first tokens of each sequence, an image, which see each other and no other; later ones, generated units, see
    /// them and the units up to themselves. All tokens: bidirectional attention.
    pub prefix: usize,
}

/// Attention over whole sequences.
pub trait Attention: Device {
    /// Packed qkv (B*T, 3*H*D), each third H heads wide, to (B*T, H*D).
    fn attention(&self, qkv: &Self::Tensor, shape: AttentionShape) -> Result<Self::Tensor>;
}

/// The head size D; an error unless the rows are those of `shape`.
pub(crate) fn check<D: Device>(device: &D, qkv: &D::Tensor, shape: AttentionShape) -> Result<usize> {
    let AttentionShape { batch, tokens, heads, prefix } = shape;
    let [rows, columns] = device.shape(qkv);
    let size = (columns / 3).checked_div(heads).unwrap_or(0);
    let fits = heads > 0 && columns == 3 * heads * size && batch.checked_mul(tokens) == Some(rows) && prefix <= tokens;
    ensure(fits, "attention", || format!("qkv ({rows}, {columns}) for {shape:?}"))?;
    Ok(size)
}

/// Cost with heads of `head_size` and elements of `element` bytes: every query meets every key it sees.
pub fn cost(shape: AttentionShape, head_size: usize, element: usize) -> Cost {
    let AttentionShape { batch, tokens, heads, prefix } = shape;
    let units = tokens - prefix.min(tokens);
    let pairs = prefix * prefix + units * prefix + units * (units + 1) / 2;
    let width = heads * head_size;
    Cost { flops: (4 * batch * pairs * width) as f64, bytes: (4 * batch * tokens * width * element) as f64 }
}
