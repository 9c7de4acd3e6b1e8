//! A captioner in training: its parameters in one block, the frozen part as it is in inference, forward and backward passes that
//! add gradients, and updates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::buckets::OnFinal;
use super::decoder::{DecoderPlaces, DecoderView, Dropout, Sequences};
use super::parameters::Layout;
use super::vision::{Encoder, EncoderPlaces, Projection, ProjectionPlaces};
use crate::backend::{AdamWStep, BlockPart, Train};
use crate::config::ModelConfig;
use crate::model::loader::Loader;
use crate::model::vision::Vision;
use crate::tensor::{DType, HostTensor};
use crate::units::PAD;
use crate::weights::store::TensorStore;
use crate::{Error, Result};

/// The part of a captioner that is not trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// None of it.
    None,
    /// The image encoder.
    Encoder,
    /// The image encoder and the projection, as the reference has it.
    #[default]
    Vision,
}

/// Images of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Images<'a> {
    /// (B, 3, side, side), normalised; or the code vectors (B, W, side, side) of image units.
    Pixels(&'a [f32]),
    /// The frozen part's output (B*T, width), by [`TrainedCaptioner::features`].
    Features(&'a [f32]),
}

/// Sums over the valid tokens of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Sum of the losses.
    pub loss: f64,
    /// Tokens whose target was the likeliest.
    pub correct: u64,
    /// Valid tokens.
    pub tokens: u64,
}

/// A captioner in training on a backend.
pub struct TrainedCaptioner<B: Train> {
    weights: Weights<B>,
    gradients: B::Gradients,
}

/// All of it but the gradients, to which a backward pass adds while it reads the rest.
struct Weights<B: Train> {
    backend: B,
    config: ModelConfig,
    layout: Layout,
    encoder: Option<EncoderPlaces>,
    projection: Option<ProjectionPlaces>,
    decoder: DecoderPlaces,
    /// The frozen encoder, with its projection.
    vision: Option<Vision<B>>,
    freeze: Freeze,
    /// Tensors of the model that are not trained, by name.
    frozen: BTreeMap<String, HostTensor>,
    block: B::Block,
}

impl<B: Train> TrainedCaptioner<B> {
    /// Takes every tensor of `store`. The frozen part is read in `dtype`, or as it is stored.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous or of another shape than `config` says, or the encoder is an EfficientNet and is to be
    /// trained.
    pub fn load(
        backend: B,
        config: &ModelConfig,
        mut store: TensorStore,
        freeze: Freeze,
        dtype: Option<DType>,
    ) -> Result<TrainedCaptioner<B>> {
        if freeze == Freeze::None && config.vision.efficient_net.is_some() {
            let problem = "is none, but an EfficientNet is not trained: choose encoder, or vision";
            return Err(Error::Option { option: "freeze", problem: problem.into() });
        }
        let mut layout = Layout::default();
        let encoder = (freeze == Freeze::None).then(|| EncoderPlaces::new(&mut layout, config));
        let projection = (freeze != Freeze::Vision).then(|| ProjectionPlaces::new(&mut layout, config));
        let decoder = DecoderPlaces::new(&mut layout, &config.decoder);
        let is_trained = |name: &str| layout.entries().iter().any(|entry| entry.name == name);
        let all: BTreeMap<_, _> = store.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        let vision = match freeze {
            Freeze::None => None,
            _ => {
                let mut frozen = TensorStore::new(store.path(), all.clone());
                let loader = &mut Loader { backend: &backend, store: &mut frozen, dtype };
                Some(Vision::load(loader, config)?)
            }
        };
        let values = layout.take(&mut store)?;
        let frozen = all.into_iter().filter(|(name, _)| !is_trained(name)).collect();
        let (block, gradients) = (backend.parameter_block(&values)?, backend.gradients(layout.len())?);
        let config = config.clone();
        let weights = Weights { backend, config, layout, encoder, projection, decoder, vision, freeze, frozen, block };
        Ok(TrainedCaptioner { weights, gradients })
    }

    /// The dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.weights.config
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.weights.backend
    }

    /// The trained parameters.
    pub fn layout(&self) -> &Layout {
        &self.weights.layout
    }

    /// Columns of the frozen part's output; `None` where nothing is frozen.
    pub fn feature_width(&self) -> Option<usize> {
        self.weights.feature_width()
    }

    /// Names and bytes of the tensors that are not trained.
    pub fn frozen_bytes(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.weights.frozen.iter().map(|(name, tensor)| (name.as_str(), &**tensor.bytes()))
    }

    /// The frozen part's output (B*T, width) for pixels of `batch` images.
    ///
    /// # Errors
    /// If nothing is frozen, or the pixels do not fit.
    pub fn features(&self, pixels: &[f32], batch: usize) -> Result<Vec<f32>> {
        self.weights.backend.download(&self.weights.encoded(pixels, batch)?)
    }

    /// Forward and backward passes over a batch; gradients are added.
    ///
    /// # Errors
    /// If shapes do not fit, or the loss is not a finite number: the gradients are of no use then.
    pub fn pass(&mut self, images: Images<'_>, sequences: &Sequences<'_>, dropout: Dropout) -> Result<Losses> {
        self.pass_reporting(images, sequences, dropout, &mut |_, _| Ok(()))
    }

    /// The same; `on_final` is called whenever more of the gradients are final.
    ///
    /// # Errors
    /// As [`TrainedCaptioner::pass`], and those of `on_final`.
    pub fn pass_reporting(
        &mut self,
        images: Images<'_>,
        sequences: &Sequences<'_>,
        dropout: Dropout,
        on_final: &mut OnFinal<'_, B::Gradients>,
    ) -> Result<Losses> {
        let TrainedCaptioner { weights, gradients } = self;
        let (backend, tokens) = (&weights.backend, weights.image_tokens(images, sequences.batch)?);
        let decoder = weights.decoder()?;
        let pass = decoder.forward(backend, &tokens.values, sequences, dropout)?;
        let losses = losses(&backend.download(&pass.loss.rows)?, sequences.targets)?;
        let dimage = decoder.backward(backend, pass, sequences.inputs, dropout, gradients, on_final)?;
        if let Some(projection) = tokens.projection {
            let dx = projection.backward(backend, &dimage, tokens.encoder.is_some(), gradients, on_final)?;
            if let Some((encoder, dx)) = tokens.encoder.zip(dx) {
                encoder.backward(backend, &dx, gradients, on_final)?;
            }
        }
        Ok(losses)
    }

    /// Losses of a batch without dropout or gradients.
    ///
    /// # Errors
    /// As [`TrainedCaptioner::pass`].
    pub fn evaluate(&self, images: Images<'_>, sequences: &Sequences<'_>) -> Result<Losses> {
        let backend = &self.weights.backend;
        let tokens = self.weights.image_tokens(images, sequences.batch)?;
        let pass = self.weights.decoder()?.forward(backend, &tokens.values, sequences, Dropout::NONE)?;
        losses(&backend.download(&pass.loss.rows)?, sequences.targets)
    }

    /// Euclidean norm of the gradients.
    pub fn gradient_norm(&self) -> Result<f64> {
        self.weights.backend.gradient_norm(&self.gradients)
    }

    /// One step of the optimizer over all parameters; sets the gradients to zero.
    pub fn update(&mut self, step: AdamWStep) -> Result<()> {
        self.weights.backend.adamw(&mut self.weights.block, &self.gradients, step)?;
        self.zero_gradients()
    }

    /// Sets the gradients to zero.
    pub fn zero_gradients(&mut self) -> Result<()> {
        self.weights.backend.zero_gradients(&mut self.gradients)
    }

    /// The gradients, for sums over ranks.
    pub fn gradients(&mut self) -> &mut B::Gradients {
        &mut self.gradients
    }

    /// The gradients, in the order of the block.
    pub fn read_gradients(&self) -> Result<Vec<f32>> {
        self.weights.backend.read_gradients(&self.gradients)
    }

    /// Overwrites the gradients.
    pub fn write_gradients(&mut self, values: &[f32]) -> Result<()> {
        self.weights.backend.write_gradients(&mut self.gradients, values)
    }

    /// An array of the block.
    pub fn read(&self, part: BlockPart) -> Result<Vec<f32>> {
        self.weights.backend.read_block(&self.weights.block, part)
    }

    /// Overwrites an array of the block.
    pub fn write(&mut self, part: BlockPart, values: &[f32]) -> Result<()> {
        self.weights.backend.write_block(&mut self.weights.block, part, values)
    }

    /// All tensors of the model as it is now, by their names in a model directory.
    pub fn tensors(&self) -> Result<BTreeMap<String, HostTensor>> {
        let mut tensors = self.weights.layout.tensors(&self.read(BlockPart::Values)?)?;
        tensors.extend(self.weights.frozen.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
        Ok(tensors)
    }
}

impl<B: Train> Weights<B> {
    fn decoder(&self) -> Result<DecoderView<'_, B>> {
        DecoderView::new(&self.backend, &self.block, &self.decoder, &self.config.decoder)
    }

    fn feature_width(&self) -> Option<usize> {
        match self.freeze {
            Freeze::None => None,
            Freeze::Encoder => Some(self.config.vision.width),
            Freeze::Vision => Some(self.config.decoder.width),
        }
    }

    /// The frozen part's output.
    fn encoded(&self, pixels: &[f32], batch: usize) -> Result<B::Tensor> {
        let vision = self.vision.as_ref().ok_or_else(|| Error::internal("features of an encoder that is trained"))?;
        match self.freeze {
            Freeze::Vision => vision.tokens(&self.backend, pixels, batch),
            _ => vision.encode(&self.backend, &vision.upload(&self.backend, pixels, batch)?),
        }
    }

    /// Image tokens of a batch, through the trained part of the way to them.
    fn image_tokens(&self, images: Images<'_>, batch: usize) -> Result<ImageTokens<'_, B>> {
        let Weights { backend, config, block, .. } = self;
        let rows = batch * config.image_tokens();
        let (x, encoder) = match (images, &self.encoder) {
            (Images::Pixels(pixels), Some(places)) => {
                let pixels = backend.upload([batch, config.vision_values()], pixels)?;
                let (x, encoder) = Encoder::forward(backend, block, places, config, pixels)?;
                (x, Some(encoder))
            }
            (Images::Pixels(pixels), None) => (self.encoded(pixels, batch)?, None),
            (Images::Features(values), _) => {
                let width = self.feature_width().ok_or_else(|| Error::internal("features of a trained encoder"))?;
                (backend.upload([rows, width], values)?, None)
            }
        };
        match self.projection {
            None => Ok(ImageTokens { values: x, projection: None, encoder }),
            Some(places) => {
                let (values, projection) = Projection::forward(backend, block, places, config, x)?;
                Ok(ImageTokens { values, projection: Some(projection), encoder })
            }
        }
    }
}

/// Image tokens, and the trained operations that made them.
struct ImageTokens<'a, B: Train> {
    values: B::Tensor, // (B*T, W)
    projection: Option<Projection<B>>,
    encoder: Option<Encoder<'a, B>>,
}

/// Sums of rows (loss, correct) whose target is no padding, in their order.
fn losses(rows: &[f32], targets: &[u32]) -> Result<Losses> {
    let mut sums = Losses::default();
    for (row, _) in rows.chunks_exact(2).zip(targets).filter(|(_, target)| **target != PAD) {
        sums.loss += f64::from(row[0]);
        sums.correct += u64::from(row[1] > 0.5);
        sums.tokens += 1;
    }
    if sums.loss.is_finite() { Ok(sums) } else { Err(Error::NotANumber { stage: "training" }) }
}
