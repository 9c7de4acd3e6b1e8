//! attention: `softmax(query key^T / sqrt D) value` over whole sequences.

use super::dropout::DropoutMask;
use super::{Device, Sequences, ensure};
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
    /// As [`Attention::attention`] of `heads` heads over sequences of different lengths, whose tokens all see each other:
    /// packed qkv (T, 3*H*D) to (T, H*D).
    fn attention_ragged(&self, qkv: &Self::Tensor, heads: usize, sequences: &Sequences) -> Result<Self::Tensor>;
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

/// The head size D of sequences of different lengths; an error unless they are those of the rows.
pub(crate) fn check_ragged<D: Device>(
    device: &D,
    qkv: &D::Tensor,
    heads: usize,
    sequences: &Sequences,
) -> Result<usize> {
    let tokens = device.shape(qkv)[0];
    sequences.check("attention", tokens)?;
    check(device, qkv, AttentionShape { batch: 1, tokens, heads, prefix: tokens })
}

/// Cost with heads of `head_size` and elements of `element` bytes: every query meets every key it sees.
pub fn cost(shape: AttentionShape, head_size: usize, element: usize) -> Cost {
    let AttentionShape { batch, tokens, heads, prefix } = shape;
    let units = tokens - prefix.min(tokens);
    let pairs = prefix * prefix + units * prefix + units * (units + 1) / 2;
    let width = heads * head_size;
    Cost { flops: (4 * batch * pairs * width) as f64, bytes: (4 * batch * tokens * width * element) as f64 }
}

/// Attention in training.
///
/// Dropout zeroes probabilities after the softmax: the probability of query q and key k of head h of sequence b takes word
/// `((b H + h) T + q) T4 + k` of the mask, T4 = T rounded up to a multiple of four. Sequences are padded at their end: later
/// tokens are seen by nobody before them, and whoever padded them gives them no gradient.
pub trait AttentionBackward: Attention {
    /// As [`Attention::attention`], to the result and the log-sum-exp of the scaled scores of each query, (B*H, T) f32.
    fn attention_saving(
        &self,
        qkv: &Self::Tensor,
        shape: AttentionShape,
        dropout: Option<DropoutMask>,
    ) -> Result<(Self::Tensor, Self::Tensor)>;
    /// The gradient at qkv (B*T, 3*H*D) from that at the result y, dy (B*T, H*D). Probabilities are computed again from
    /// qkv and `log_sum_exp`.
    fn attention_backward(
        &self,
        dy: &Self::Tensor,
        qkv: &Self::Tensor,
        y: &Self::Tensor,
        log_sum_exp: &Self::Tensor,
        shape: AttentionShape,
        dropout: Option<DropoutMask>,
    ) -> Result<Self::Tensor>;
}

/// The head size D; an error unless the rows are those of `shape` and the mask can be drawn.
pub(crate) fn check_saving<D: Device>(
    device: &D,
    qkv: &D::Tensor,
    shape: AttentionShape,
    dropout: Option<DropoutMask>,
) -> Result<usize> {
    dropout.map_or(Ok(()), |mask| mask.check("attention"))?;
    check(device, qkv, shape)
}

/// The head size D; an error unless all shapes fit [`AttentionBackward::attention_backward`].
pub(crate) fn check_backward<D: Device>(
    device: &D,
    [dy, qkv, y, log_sum_exp]: [&D::Tensor; 4],
    shape: AttentionShape,
    dropout: Option<DropoutMask>,
) -> Result<usize> {
    const OP: &str = "attention_backward";
    let size = check(device, qkv, shape)?;
    dropout.map_or(Ok(()), |mask| mask.check(OP))?;
    let AttentionShape { batch, tokens, heads, .. } = shape;
    let result = [batch * tokens, heads * size];
    let shapes = [dy, y, log_sum_exp].map(|x| device.shape(x));
    ensure(shapes == [result, result, [batch * heads, tokens]], OP, || {
        format!("dy {:?}, y {:?}, log-sum-exp {:?} for {shape:?}", shapes[0], shapes[1], shapes[2])
    })?;
    Ok(size)
}

/// Cost of the backward pass: five products of the forward pass's two, reads of qkv, y, dy, writes of dqkv.
pub fn backward_cost(shape: AttentionShape, head_size: usize, element: usize) -> Cost {
    let Cost { flops, bytes } = cost(shape, head_size, element);
    Cost { flops: 2.5 * flops, bytes: 2.0 * bytes }
}
