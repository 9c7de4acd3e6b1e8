//! Eight-bit weights that know what they are multiplied with: every matrix of the decoder is rounded for the inputs it
//! has while a set of pictures is captioned. Two runs over the captions of the unrounded model go side by side, layer by
//! layer: one of the unrounded model, whose outputs are the target, and one with everything rounded so far, whose inputs
//! the next matrix will really have; so later matrices make up for what earlier ones lost.

use std::collections::BTreeMap;

use crate::backend::cpu::{Cpu, Tensor};
use crate::backend::{Activation, AttentionShape, Backend, Linear};
use crate::fp8::rounding::{Moments, round};
use crate::generate::{GenerateOptions, generate};
use crate::image::Image;
use crate::tensor::HostTensor;
use crate::units::EOS;
use crate::weights::directory::ModelFiles;
use crate::{Error, Result};

use super::model::Model;

/// Pictures that go through the models together.
const BATCH: usize = 8;
/// How much a text token counts against an image token.
const TEXT_WEIGHT: f32 = 8.0;

/// What rounding did to the calibration pictures.
#[derive(Clone, Debug)]
pub struct CalibrateReport {
    /// Pictures that were used.
    pub pictures: usize,
    /// Pictures whose greedy caption stays the same to the last unit.
    pub kept: usize,
    /// Root mean square difference of the logits from those of the unrounded model, over all text tokens.
    pub logit_rms: f64,
    /// The largest such difference.
    pub logit_max: f64,
    /// Root mean square of the unrounded logits.
    pub logit_scale: f64,
    /// Each matrix: its name, the relative error of its outputs, and what nearest rounding would have had.
    pub matrices: Vec<(String, f64, f64)>,
}

/// A few pictures with their captions, as sequences of one length.
struct Batch {
    shape: AttentionShape,
    /// The token that follows each position; `None` where nothing is predicted.
    next: Vec<Option<u32>>,
    /// The unrounded model's activations, and those with everything rounded so far.
    x: [Tensor; 2],
    attended: [Tensor; 2],
}

/// Rounds the decoder of `files` for what it sees in `images`: the tensors that differ from those of `files`.
pub fn calibrate(
    mut files: ModelFiles,
    images: &[Image],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(BTreeMap<String, HostTensor>, CalibrateReport)> {
    let stored: BTreeMap<String, HostTensor> =
        files.captioner.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    let model = Model::load(Cpu, &mut files, None)?;
    let mut batches = Vec::new();
    for images in images.chunks(BATCH) {
        batches.push(batch(&model, &files, images)?);
        progress(batches.len() as u64, images.len() as u64);
    }
    let mut rounding = Rounding { stored, changed: BTreeMap::new(), matrices: Vec::new() };
    let layers = model.decoder.layers();
    for (n, layer) in layers.iter().enumerate() {
        let last = n + 1 == layers.len();
        let cpu = &Cpu;
        let prefix = format!("decoder.layers.{n}");
        // Image tokens of the last layer are keys and values only.
        let image = if last { 0.0 } else { 1.0 };
        let qkv = rounding.round(&format!("{prefix}.qkv"), &layer.qkv, &batches, 1.0, &mut |b, i| {
            Ok((b.x[i].clone(), None))
        })?;
        for b in &mut batches {
            for (i, linear) in [&layer.qkv, &qkv].into_iter().enumerate() {
                b.attended[i] = cpu.attention(&cpu.linear(&b.x[i], linear, Activation::None, None)?, b.shape)?;
            }
        }
        let out = rounding.round(&format!("{prefix}.attention_out"), &layer.attention_out, &batches, image, &mut |b, i| {
            Ok((b.attended[i].clone(), Some(b.x[i].clone())))
        })?;
        for b in &mut batches {
            for (i, linear) in [&layer.attention_out, &out].into_iter().enumerate() {
                let x = cpu.linear(&b.attended[i], linear, Activation::None, Some(&b.x[i]))?;
                b.x[i] = cpu.layer_norm(&x, &layer.attention_norm)?;
            }
        }
        let fc1 = rounding.round(&format!("{prefix}.fc1"), &layer.fc1, &batches, image, &mut |b, i| {
            Ok((b.x[i].clone(), None))
        })?;
        let fc1 = [&layer.fc1, &fc1];
        let fc2 = rounding.round(&format!("{prefix}.fc2"), &layer.fc2, &batches, image, &mut |b, i| {
            Ok((cpu.linear(&b.x[i], fc1[i], Activation::Gelu, None)?, Some(b.x[i].clone())))
        })?;
        for b in &mut batches {
            for (i, linear) in [&layer.fc2, &fc2].into_iter().enumerate() {
                let hidden = cpu.linear(&b.x[i], fc1[i], Activation::Gelu, None)?;
                let x = cpu.linear(&hidden, linear, Activation::None, Some(&b.x[i]))?;
                b.x[i] = cpu.layer_norm(&x, &layer.mlp_norm)?;
            }
        }
        progress(n as u64 + 1, layers.len() as u64);
    }
    let report = report(&model, &batches, images.len(), rounding.matrices)?;
    Ok((rounding.changed, report))
}

/// Captions pictures and lays out image tokens and captions as sequences.
fn batch(model: &Model<Cpu>, files: &ModelFiles, images: &[Image]) -> Result<Batch> {
    let pixels: Vec<f32> = images.iter().flat_map(|image| image.preprocess(&files.config.image)).collect();
    let (count, options) = (images.len(), GenerateOptions::default());
    let tokens = model.vision.tokens(&Cpu, &pixels, count)?;
    let limit = options.limit(&model.decoder);
    let mut cache = model.decoder.prefill(&Cpu, &tokens, count, limit)?;
    let captions = generate(&Cpu, &model.decoder, &mut cache, count, &options, &mut |_| std::ops::ControlFlow::Continue(()))?;
    let [rows, width] = Cpu.shape(&tokens);
    let (prefix, text) = (rows / count, captions.iter().map(|c| c.tokens.len() - 1).max().unwrap_or(0));
    let image_tokens = Cpu.download(&tokens)?;
    let (mut x, mut next) = (Vec::new(), Vec::new());
    for (image, caption) in captions.iter().enumerate() {
        x.extend_from_slice(&image_tokens[image * prefix * width..][..prefix * width]);
        // Beyond its end a caption is filled up with tokens that nothing sees.
        let ids: Vec<u32> = (0..text).map(|at| caption.tokens.get(at).copied().unwrap_or(EOS)).collect();
        let positions: Vec<u32> = (0..text as u32).collect();
        x.extend(Cpu.download(&model.decoder.embed(&Cpu, &ids, &positions)?)?);
        next.extend((0..prefix).map(|_| None));
        next.extend((0..text).map(|at| caption.tokens.get(at + 1).copied()));
    }
    let x = Cpu.upload([count * (prefix + text), width], &x)?;
    let shape =
        AttentionShape { batch: count, tokens: prefix + text, heads: model.decoder.config().heads, prefix };
    Ok(Batch { shape, next, x: [x.clone(), x.clone()], attended: [x.clone(), x] })
}

/// Matrices that were rounded.
struct Rounding {
    stored: BTreeMap<String, HostTensor>,
    changed: BTreeMap<String, HostTensor>,
    matrices: Vec<(String, f64, f64)>,
}

fn knob(name: &str, default: f32) -> f32 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

impl Rounding {
    /// Rounds the layer `name`. `inputs` gives what a run of a batch multiplies with it and adds to the product.
    fn round(
        &mut self,
        name: &str,
        layer: &Linear<Cpu>,
        batches: &[Batch],
        image: f32,
        inputs: &mut dyn FnMut(&Batch, usize) -> Result<(Tensor, Option<Tensor>)>,
    ) -> Result<Linear<Cpu>> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let Some(matrix) = self.stored.get(&weight).cloned() else {
            return Err(Error::shape("calibrate", format!("no {weight}")));
        };
        let wrong = || Error::shape("calibrate", format!("{weight} has shape {:?}", matrix.shape()));
        let &[rows, columns] = matrix.shape() else { return Err(wrong()) };
        let mut moments = Moments::new(rows, columns);
        for batch in batches {
            let ((x_ref, add_ref), (x, add)) = (inputs(batch, 0)?, inputs(batch, 1)?);
            let y_ref = Cpu.download(&Cpu.linear(&x_ref, layer, Activation::None, add_ref.as_ref())?)?;
            let y = Cpu.download(&Cpu.linear(&x, layer, Activation::None, add.as_ref())?)?;
            let per_token = batch.shape.batch * batch.shape.tokens;
            let text_weight = knob("TEXT", TEXT_WEIGHT);
            let image = image * knob("IMAGE", 1.0);
            let weights: Vec<f32> = (0..per_token)
                .map(|at| match (batch.next[at], at % batch.shape.tokens < batch.shape.prefix) {
                    (_, true) => image,
                    (Some(_), _) => text_weight,
                    _ => 0.0,
                })
                .collect();
            let x = Cpu.download(&x)?;
            // Transposed, with the constant one last, both scaled by the root of the weight.
            let j = columns + 1;
            let mut inputs = vec![0.0; j * per_token];
            let mut missed = vec![0.0; rows * per_token];
            for (m, weight) in weights.iter().enumerate() {
                let root = weight.sqrt();
                for k in 0..columns {
                    inputs[k * per_token + m] = root * x[m * columns + k];
                }
                inputs[columns * per_token + m] = root;
                for n in 0..rows {
                    missed[n * per_token + m] = root * (y_ref[m * rows + n] - y[m * rows + n]);
                }
            }
            let product = |left: &[f32], count: usize| {
                let weight = Cpu.matrix(HostTensor::from_f32(&[j, per_token], inputs.clone()).ok_or_else(wrong)?)?;
                let linear = Linear { weight, bias: Cpu.upload([1, j], &vec![0.0; j])? };
                Cpu.download(&Cpu.linear(&Cpu.upload([count, per_token], left)?, &linear, Activation::None, None)?)
            };
            let (squares, missed) = (product(&inputs, j)?, product(&missed, rows)?);
            if !moments.add(&squares, &missed) {
                return Err(wrong());
            }
        }
        let rounded = round(&matrix, &Cpu.download(&layer.bias)?, &moments).ok_or_else(wrong)?;
        eprintln!("{name}: {:.5} nearest {:.5}", rounded.error, rounded.nearest);
        self.matrices.push((weight.clone(), rounded.error, rounded.nearest));
        let wide = HostTensor::from_quantized(rounded.weight.clone()).ok_or_else(wrong)?;
        let linear = Linear { weight: Cpu.matrix(wide)?, bias: Cpu.upload([1, rows], &rounded.bias)? };
        self.changed.insert(crate::weights::store::scale_name(&weight), rounded.weight.scales);
        self.changed.insert(weight.clone(), rounded.weight.codes);
        self.changed.insert(bias, HostTensor::from_f32(&[rows], rounded.bias).ok_or_else(wrong)?);
        Ok(linear)
    }
}

fn report(
    model: &Model<Cpu>,
    batches: &[Batch],
    pictures: usize,
    matrices: Vec<(String, f64, f64)>,
) -> Result<CalibrateReport> {
    let mut report =
        CalibrateReport { pictures, kept: 0, logit_rms: 0.0, logit_max: 0.0, logit_scale: 0.0, matrices };
    let mut count = 0;
    for batch in batches {
        let logits = [model.decoder.logits(&Cpu, &batch.x[0])?, model.decoder.logits(&Cpu, &batch.x[1])?];
        let best = Cpu.argmax(&logits[1])?;
        let width = Cpu.shape(&logits[0])[1];
        let [reference, rounded] = [Cpu.download(&logits[0])?, Cpu.download(&logits[1])?];
        let mut kept = vec![true; batch.shape.batch];
        for (at, next) in batch.next.iter().enumerate() {
            let Some(next) = *next else { continue };
            kept[at / batch.shape.tokens] &= best[at] == next;
            for (a, b) in reference[at * width..][..width].iter().zip(&rounded[at * width..][..width]) {
                let difference = f64::from((a - b).abs());
                report.logit_max = report.logit_max.max(difference);
                report.logit_rms += difference * difference;
                report.logit_scale += f64::from(a * a);
                count += 1;
            }
        }
        report.kept += kept.iter().filter(|&&kept| kept).count();
    }
    let mean = |sum: f64| (sum / count.max(1) as f64).sqrt();
    report.logit_rms = mean(report.logit_rms);
    report.logit_scale = mean(report.logit_scale);
    Ok(report)
}
