//! Greedy decoding where a device runs the whole loop by itself; see [`Decode::decode_greedy`](crate::backend::Decode::decode_greedy).

use std::ops::ControlFlow;

use super::{GenerateOptions, Generated, OnToken, TokenEvent};
use crate::Result;
use crate::backend::{Backend, CacheShape, SmBudget};
use crate::model::decoder::Decoder;
use crate::units::EOS;

/// Whether these options and a cache of this shape fit the device's loop.
pub fn fits<B: Backend>(backend: &B, decoder: &Decoder<B>, shape: CacheShape, options: &GenerateOptions) -> bool {
    is_greedy(options) && backend.can_decode_greedy(&decoder.weights(), shape, options.limit(decoder))
}

/// Decodes every image of `cache`; `None` where the device has no loop that fits. `on_token` ends its image by `Break`, and
/// with the last the loop.
pub fn decode<B: Backend>(
    backend: &B,
    decoder: &Decoder<B>,
    cache: &B::KvCache,
    images: usize,
    options: &GenerateOptions,
    budget: SmBudget,
    on_token: OnToken<'_>,
) -> Option<Result<Vec<Generated>>> {
    if !is_greedy(options) {
        return None;
    }
    let (mut stopped, mut ended) = (vec![None; images], vec![false; images]);
    let mut on_row = |image: usize, tokens: &[u32]| {
        if stopped[image].is_none()
            && on_token(TokenEvent { image, length: tokens.len(), stable_prefix: tokens }).is_break()
        {
            stopped[image] = Some(tokens.len());
        }
        ended[image] = stopped[image].is_some() || tokens.last() == Some(&EOS);
        if stopped.iter().any(Option::is_some) && ended.iter().all(|&ended| ended) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let rows = backend.decode_greedy(&decoder.weights(), cache, options.limit(decoder), budget, &mut on_row)?;
    Some(rows.map(|rows| {
        let generated = rows.into_iter().zip(stopped).map(|(mut tokens, stopped)| {
            tokens.truncate(stopped.unwrap_or(usize::MAX));
            Generated { tokens, score: None }
        });
        generated.collect()
    }))
}

fn is_greedy(options: &GenerateOptions) -> bool {
    options.beams == 1 && options.sampling.is_none()
}
