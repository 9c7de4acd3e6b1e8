//! Images and the captions of the unrounded model as sequences for the decoder, and how much each of their activations
//! matters to the choice of tokens.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::gradient::{backward, inputs};
use super::product::{outer, transposed};
use crate::Result;
use crate::backend::cpu::{Cpu, Tensor};
use crate::backend::prelude::*;
use crate::backend::{AttentionShape, SmBudget};
use crate::config::ModelConfig;
use crate::generate::{GenerateOptions, generate};
use crate::image::Image;
use crate::model::captioner::{Captioner, VisionInput};
use crate::random::Random;
use crate::units::EOS;

/// A choice between two tokens whose logits are this far apart counts half of one between equals.
const MARGIN: f32 = 0.5;

/// A few images with their captions, as B sequences of T tokens and C channels, image tokens first.
pub(super) struct Batch {
    pub shape: AttentionShape,
    /// Token that follows each position (B*T); `None` where nothing is predicted.
    pub next: Vec<Option<u32>>,
    /// (B*T, C): activations of the unrounded model, and those with everything rounded so far.
    pub x: [Tensor; 2],
    /// (B*T, C): the same after attention.
    pub attended: [Tensor; 2],
}

/// Query, key and value are three matrices in one, and matter at different tokens.
pub(super) fn parts(matrix: &str) -> usize {
    if matrix == "qkv" { 3 } else { 1 }
}

/// How much the outputs of a part of a matrix matter.
#[derive(Default)]
pub(super) struct Sensitivity {
    /// (N, N): the squares of their gradients.
    pub outputs: Vec<f32>,
    /// The length of every token's gradient, batch after batch: its weight. With its square, as a second-order expansion has
    /// it, so few tokens would count that other images gain less.
    pub tokens: Vec<Vec<f32>>,
}

impl Sensitivity {
    /// Roots of the weights of a batch's tokens, 1 on average over all batches.
    pub fn roots(&self, batch: usize) -> Vec<f32> {
        let count = self.tokens.iter().map(Vec::len).sum::<usize>().max(1);
        let mean = self.tokens.iter().flatten().sum::<f32>() / count as f32;
        self.tokens[batch].iter().map(|token| if mean > 0.0 { (token / mean).sqrt() } else { 1.0 }).collect()
    }
}

/// Sensitivities of the parts of every matrix, by layer and name.
pub(super) type Sensitivities = BTreeMap<(usize, &'static str), Vec<Sensitivity>>;

/// Reads and captions images and lays them out.
pub(super) fn batch(captioner: &Captioner<Cpu>, config: &ModelConfig, images: &[Image]) -> Result<Batch> {
    let inputs: Vec<_> = images.iter().map(|image| VisionInput::Pixels(image.preprocess(&config.image))).collect();
    let (count, options) = (images.len(), GenerateOptions::default());
    let tokens = captioner.encode_inputs(&Cpu, &inputs.iter().collect::<Vec<_>>())?;
    let decoder = &captioner.decoder;
    let cache = captioner.prefill(&Cpu, &tokens, count, options.limit(decoder))?;
    let captions = generate(&Cpu, decoder, cache, count, &options, SmBudget::All, &mut |_| ControlFlow::Continue(()))?;

    let [rows, width] = Cpu.shape(&tokens);
    let prefix = rows / count.max(1);
    let units = captions.iter().map(|caption| caption.tokens.len() - 1).max().unwrap_or(0);
    let positions: Vec<u32> = (0..units as u32).collect();
    let tokens = Cpu.download(&tokens)?;
    let (mut x, mut next) = (Vec::new(), Vec::new());
    for (image, caption) in tokens.chunks_exact(prefix * width).zip(&captions) {
        // Beyond its end a caption is filled up with tokens that nothing sees.
        let ids: Vec<u32> = (0..units).map(|at| caption.tokens.get(at).copied().unwrap_or(EOS)).collect();
        x.extend_from_slice(image);
        x.extend(Cpu.download(&captioner.decoder.embed(&Cpu, &ids, &positions)?)?);
        next.extend(std::iter::repeat_n(None, prefix));
        next.extend((0..units).map(|at| caption.tokens.get(at + 1).copied()));
    }
    let x = Cpu.upload([next.len(), width], &x)?;
    let shape = AttentionShape { batch: count, tokens: prefix + units, heads: config.decoder.heads, prefix };
    Ok(Batch { shape, next, x: [x.clone(), x.clone()], attended: [x.clone(), x] })
}

/// Adds what the outputs of every matrix do to the lead of the chosen token over the next best: where the lead is small, an
/// error changes the caption. Tokens get random signs, so that their gradients can share one way back.
pub(super) fn sensitivity(
    captioner: &Captioner<Cpu>,
    batch: &Batch,
    random: &mut Random,
    sums: &mut Sensitivities,
) -> Result<()> {
    let layers = captioner.decoder.layers();
    let xs = inputs(layers, batch.shape, &batch.x[0])?;
    let logits = captioner.decoder.logits(&Cpu, &xs[layers.len()])?;
    let vocabulary = Cpu.shape(&logits)[1];
    let mut dlogits = vec![0.0; batch.next.len() * vocabulary];
    let best = Cpu.top_k(&logits, 2)?;
    for ((best, next), row) in best.iter().zip(&batch.next).zip(dlogits.chunks_exact_mut(vocabulary)) {
        if let (Some(_), [first, second]) = (next, &best[..]) {
            let weight = random.unit().signum() * MARGIN / (MARGIN + first.value - second.value);
            row[first.column as usize] += weight;
            row[second.column as usize] -= weight;
        }
    }
    let dlogits = Cpu.upload([batch.next.len(), vocabulary], &dlogits)?;
    let dresult = Cpu.linear_backward(&dlogits, captioner.decoder.output(), None, None)?;
    let rows = batch.next.len();
    backward(layers, batch.shape, &xs, dresult, &mut |layer, matrix, gradient| {
        let turned = transposed(gradient, gradient.len() / rows.max(1));
        let parts = turned.chunks_exact(turned.len() / parts(matrix));
        let sums = sums.entry((layer, matrix)).or_default();
        sums.resize_with(parts.len(), Sensitivity::default);
        for (sum, part) in sums.iter_mut().zip(parts) {
            let square = outer(part, part, rows)?;
            sum.outputs.resize(square.len(), 0.0);
            sum.outputs.iter_mut().zip(&square).for_each(|(sum, v)| *sum += v);
            let mut tokens = vec![0.0; rows];
            for gradient in part.chunks_exact(rows) {
                tokens.iter_mut().zip(gradient).for_each(|(sum, v)| *sum += v * v);
            }
            sum.tokens.push(tokens.into_iter().map(f32::sqrt).collect());
        }
        Ok(())
    })
}
