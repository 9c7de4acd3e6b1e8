//! The unit vocoder: a code HiFi-GAN with duration prediction, optional speakers and optional quantised f0.
//! Source: Polyak et al., "Speech Resynthesis from Discrete Disentangled Self-Supervised Representations" (2021), and
//! fairseq's CodeHiFiGANVocoder, whose tensor names are kept (weight norm folded).

mod receptive_field;
mod synthesis;

use std::ops::Range;

use self::receptive_field::{DurationField, ReceptiveField, StepSpans};
use super::loader::Loader;
use crate::backend::{
    Activation, Backend, ConvActivation, ConvEpilogue, Device, GraphId, LayerNormWeights, LinearWeights,
};
use crate::config::{DurationConfig, VocoderConfig};
use crate::{Error, Result};

pub use synthesis::Synthesis;

/// Slope of the leaky ReLUs inside the stages.
const SLOPE: f32 = 0.1;
/// Slope before the last convolution: the framework's default.
const LAST_SLOPE: f32 = 0.01;
/// Taps of the first and the last convolution.
const OUTER_TAPS: usize = 7;
/// Epsilon of the duration predictor's norms.
const DURATION_EPS: f32 = 1e-5;
/// Frames that no single unit lasts (20 seconds at 50 a second); more means damaged weights.
const MAX_DURATION: f32 = 1000.0;

/// Weights of the vocoder; E embedding channels.
pub struct Vocoder<B: Backend> {
    config: VocoderConfig,
    units: B::Matrix,            // (K, E)
    speakers: Option<B::Matrix>, // (speakers, E)
    pitch: Option<B::Matrix>,    // (bins, E)
    duration: Option<DurationPredictor<B>>,
    pre: B::ConvWeights, // model_in_dim to upsample_initial_channel
    stages: Vec<Stage<B>>,
    post: B::ConvWeights, // to one channel
    graph: GraphId,
}

struct DurationPredictor<B: Backend> {
    layers: [ConvNorm<B>; 2],
    projection: LinearWeights<B>, // (1, hidden)
}

/// `norm(max(conv(x), 0))`.
type ConvNorm<B> = (<B as Device>::ConvWeights, LayerNormWeights<B>);

struct Stage<B: Backend> {
    upsample: B::ConvWeights,
    blocks: Vec<ResidualBlock<B>>,
}

/// Three or so residual steps, one after the other.
type ResidualBlock<B> = Vec<ResidualStep<B>>;

/// `x + plain(leaky(dilated(leaky(x))))`.
struct ResidualStep<B: Backend> {
    dilated: B::ConvWeights,
    dilation: usize,
    plain: B::ConvWeights,
}

/// A sequence (C, S) from one of its positions on.
struct Segment<B: Backend> {
    x: B::Tensor,
    start: usize,
}

/// Parameters of a voice: all of the vocoder's input but the units.
#[derive(Clone, Copy, Debug, Default)]
pub struct Voice<'a> {
    /// Row of the speaker table; 0 when a multi-speaker model is given none.
    pub speaker: Option<u32>,
    /// Bin of f0 for every frame after expansion, or a divisor's worth of them.
    pub pitch: Option<&'a [u32]>,
}

impl<B: Backend> Vocoder<B> {
    /// Takes every tensor of `vocoder.safetensors`.
    pub fn load(loader: &mut Loader<'_, B>, config: &VocoderConfig) -> Result<Vocoder<B>> {
        let width = config.embedding_dim;
        let table = |loader: &mut Loader<'_, B>, name: &str, rows: Option<usize>| {
            rows.map(|rows| loader.matrix(name, [rows, width])).transpose()
        };
        let last = config.stage_channels(config.upsample_rates.len() - 1);
        Ok(Vocoder {
            units: loader.matrix("dict.weight", [config.num_embeddings, width])?,
            speakers: table(loader, "spkr.weight", config.num_speakers)?,
            pitch: table(loader, "f0_quant_embed.weight", config.f0_bins)?,
            duration: config
                .duration
                .as_ref()
                .map(|duration| DurationPredictor::load(loader, duration, width))
                .transpose()?,
            pre: loader.conv_weights("conv_pre", [config.upsample_initial_channel, config.model_in_dim, OUTER_TAPS])?,
            stages: (0..config.upsample_rates.len())
                .map(|stage| Stage::load(loader, config, stage))
                .collect::<Result<_>>()?,
            post: loader.conv_weights("conv_post", [1, last, OUTER_TAPS])?,
            graph: GraphId::new(),
            config: config.clone(),
        })
    }

    /// The dimensions.
    pub fn config(&self) -> &VocoderConfig {
        &self.config
    }

    /// Frames that each unit lasts: predicted, or one where the model has no predictor.
    pub fn durations(&self, backend: &B, units: &[u32]) -> Result<Vec<usize>> {
        if units.is_empty() {
            return Ok(Vec::new());
        }
        let all = receptive_field::of_durations(self.config.duration.as_ref(), 0..units.len(), B::conv1d_support);
        self.durations_of(backend, units, &all)
    }

    /// Frames that each unit lasts from the first result of `field` on; `units` are those in it.
    fn durations_of(&self, backend: &B, units: &[u32], field: &DurationField) -> Result<Vec<usize>> {
        let Some(predictor) = &self.duration else { return Ok(vec![1; units.len()]) };
        self.check_units(units)?;
        let x = backend.embed_frames(&[(&self.units, units)])?;
        let logs = backend.download(&predictor.forward(backend, x, field)?)?;
        logs.into_iter()
            .map(|log| {
                let frames = (log.exp() - 1.0).round_ties_even().max(1.0);
                match frames {
                    _ if log.is_nan() => Err(Error::NotANumber { stage: "duration predictor" }),
                    _ if frames > MAX_DURATION => Err(Error::Units {
                        problem: format!(
                            "the vocoder wants one unit to last {frames} frames; its weights are damaged: convert the \
                             checkpoint again"
                        ),
                    }),
                    _ => Ok(frames as usize),
                }
            })
            .collect()
    }

    /// Speaks `units`, each for its `durations` frames: hop * frames samples in -1..1.
    pub fn synthesize(&self, backend: &B, units: &[u32], durations: &[usize], voice: Voice<'_>) -> Result<Vec<f32>> {
        if units.is_empty() || units.len() != durations.len() {
            let problem = format!("{} units with {} durations cannot be spoken", units.len(), durations.len());
            return Err(Error::Units { problem });
        }
        let ids = units.iter().zip(durations).flat_map(|(&unit, &frames)| std::iter::repeat_n(unit, frames)).collect();
        self.whole(backend, ids, voice)
    }

    /// The sound of frames of these units.
    fn whole(&self, backend: &B, ids: Vec<u32>, voice: Voice<'_>) -> Result<Vec<f32>> {
        let x = self.frames(backend, ids, voice)?;
        let frames = backend.shape(&x)[1];
        let field = receptive_field::of_frames(&self.config, 0..frames, B::conv1d_support);
        let body = |backend: &B, x: &B::Tensor| self.generator(backend, x, &field);
        reject_nan(backend.download(&backend.captured(&self.graph, &x, &body)?)?)
    }

    /// The sound of the frames from `first` on whose receptive field is `field`; `ids` are the units of the frames in it.
    fn part(
        &self,
        backend: &B,
        ids: Vec<u32>,
        voice: Voice<'_>,
        field: &ReceptiveField,
        first: usize,
    ) -> Result<Vec<f32>> {
        let x = self.frames(backend, ids, voice)?;
        let mut samples = backend.download(&self.generator(backend, &x, field)?)?;
        samples.drain(..first * self.config.hop() - field.post.start);
        reject_nan(samples)
    }

    /// Embedded frames (model_in_dim, S) of a receptive field to its samples (1, ..).
    fn generator(&self, backend: &B, x: &B::Tensor, field: &ReceptiveField) -> Result<B::Tensor> {
        let x = Segment::<B> { x: x.clone(), start: field.frames.start };
        let mut x = x.conv1d(backend, &self.pre, 1, &field.pre, ConvEpilogue::default())?;
        for ((stage, rate), spans) in self.stages.iter().zip(&self.config.upsample_rates).zip(&field.stages) {
            let upsampled = backend.conv_transpose1d(&x.x, &stage.upsample, SLOPE)?;
            x = stage.residual_blocks(backend, &Segment { x: upsampled, start: x.start * rate }, spans)?;
        }
        let last = ConvEpilogue { slope: LAST_SLOPE, activation: ConvActivation::Tanh, ..Default::default() };
        Ok(x.conv1d(backend, &self.post, 1, &field.post, last)?.x)
    }

    /// The generator's input (model_in_dim, S): unit, pitch and speaker embeddings of every frame, stacked.
    fn frames(&self, backend: &B, mut ids: Vec<u32>, voice: Voice<'_>) -> Result<B::Tensor> {
        self.check_units(&ids)?;
        let pitch = match (&self.pitch, voice.pitch) {
            (None, None) => None,
            (Some(table), Some(bins)) => {
                let (stretched, bins) = stretch(ids, bins.to_vec())?;
                ids = stretched;
                Some((table, bins))
            }
            (Some(_), None) => return Err(needs_pitch()),
            (None, Some(_)) => {
                return Err(Error::Units { problem: "f0 was given to a vocoder that takes none".into() });
            }
        };
        let speaker = speaker_row(&self.config, voice.speaker)?;
        let speaker = self.speakers.as_ref().zip(speaker).map(|(table, row)| (table, vec![row; ids.len()]));
        let mut tables = vec![(&self.units, &ids[..])];
        tables.extend(pitch.as_ref().map(|(table, bins)| (*table, &bins[..])));
        tables.extend(speaker.as_ref().map(|(table, ids)| (*table, &ids[..])));
        backend.embed_frames(&tables)
    }

    /// An error if a unit is none of this vocoder's.
    fn check_units(&self, units: &[u32]) -> Result<()> {
        let known = self.config.num_embeddings;
        match units.iter().find(|&&unit| unit as usize >= known) {
            None => Ok(()),
            Some(unit) => {
                let problem = format!("unit {unit} is out of range: this vocoder knows 0 to {}", known - 1);
                Err(Error::Units { problem })
            }
        }
    }
}

/// An error unless this vocoder can speak captions, which have no f0, with this speaker.
pub fn check_voice(config: &VocoderConfig, speaker: Option<u32>) -> Result<()> {
    match config.f0_bins {
        Some(_) => Err(needs_pitch()),
        None => speaker_row(config, speaker).map(|_| ()),
    }
}

fn needs_pitch() -> Error {
    Error::Units { problem: "this vocoder needs f0 bins, which captions do not have".into() }
}

/// Row of the speaker table, the first by default; `None` for a vocoder of a single speaker.
fn speaker_row(config: &VocoderConfig, speaker: Option<u32>) -> Result<Option<u32>> {
    let problem = match (config.num_speakers, speaker) {
        (None, None) => return Ok(None),
        (Some(speakers), _) if (speaker.unwrap_or(0) as usize) < speakers => return Ok(Some(speaker.unwrap_or(0))),
        (Some(speakers), _) => format!("expected 0 to {}", speakers.saturating_sub(1)),
        (None, Some(_)) => "this vocoder has a single speaker".into(),
    };
    Err(Error::Option { option: "speaker", problem })
}

/// Samples, or an error if one is NaN.
fn reject_nan(samples: Vec<f32>) -> Result<Vec<f32>> {
    if samples.iter().any(|s| s.is_nan()) { Err(Error::NotANumber { stage: "vocoder" }) } else { Ok(samples) }
}

/// Repeats the elements of the shorter sequence so that both are equally long, as the reference does with its columns.
fn stretch(a: Vec<u32>, b: Vec<u32>) -> Result<(Vec<u32>, Vec<u32>)> {
    let repeat = |ids: &[u32], to: usize| -> Result<Vec<u32>> {
        if ids.is_empty() || !to.is_multiple_of(ids.len()) {
            let problem = format!("{} f0 bins do not divide {to} frames", ids.len());
            return Err(Error::Units { problem });
        }
        Ok(ids.iter().flat_map(|&id| std::iter::repeat_n(id, to / ids.len())).collect())
    };
    let longest = a.len().max(b.len());
    Ok((repeat(&a, longest)?, repeat(&b, longest)?))
}

impl<B: Backend> DurationPredictor<B> {
    fn load(loader: &mut Loader<'_, B>, config: &DurationConfig, inputs: usize) -> Result<Self> {
        let hidden = config.hidden;
        let mut layer = |n: usize, inputs: usize| -> Result<_> {
            let kernel = loader.conv_weights(&format!("dur_predictor.conv{n}.0"), [hidden, inputs, config.kernel])?;
            Ok((kernel, loader.norm(&format!("dur_predictor.ln{n}"), hidden, DURATION_EPS)?))
        };
        let layers = [layer(1, inputs)?, layer(2, hidden)?];
        Ok(DurationPredictor { layers, projection: loader.linear("dur_predictor.proj", 1, hidden)? })
    }

    /// Embeddings (E, ..) of a receptive field to log(frames + 1) of its results, (T, 1).
    fn forward(&self, backend: &B, x: B::Tensor, field: &DurationField) -> Result<B::Tensor> {
        let x = Segment::<B> { x, start: field.units.start };
        let [first, second] = &self.layers;
        let (hidden, start) = (conv_norm(backend, &x, first, &field.layers[0])?, field.layers[0].start);
        let x = Segment::<B> { x: backend.transpose(&hidden)?, start };
        let hidden = conv_norm(backend, &x, second, &field.layers[1])?;
        backend.linear(&hidden, &self.projection, Activation::None, None)
    }
}

/// These results of one layer of the duration predictor, row by row: (T, hidden).
fn conv_norm<B: Backend>(
    backend: &B,
    x: &Segment<B>,
    (conv, norm): &ConvNorm<B>,
    results: &Range<usize>,
) -> Result<B::Tensor> {
    let relu = ConvEpilogue { activation: ConvActivation::Relu, ..Default::default() };
    let rows = backend.transpose(&x.conv1d(backend, conv, 1, results, relu)?.x)?;
    backend.layer_norm(&rows, norm)
}

impl<B: Backend> Stage<B> {
    fn load(loader: &mut Loader<'_, B>, config: &VocoderConfig, stage: usize) -> Result<Self> {
        let channels = config.stage_channels(stage);
        let (rate, taps) = (config.upsample_rates[stage], config.upsample_kernel_sizes[stage]);
        let inputs = config.upsample_initial_channel >> stage;
        let weight = loader.store.take(&format!("ups.{stage}.weight"), &[inputs, channels, taps])?;
        let bias = loader.store.take(&format!("ups.{stage}.bias"), &[channels])?;
        let blocks = config.resblock_kernel_sizes.len();
        let block = |(j, (&taps, dilations)): (usize, (&usize, &Vec<usize>))| {
            let name = format!("resblocks.{}", stage * blocks + j);
            let shape = [channels, channels, taps];
            dilations
                .iter()
                .enumerate()
                .map(|(n, &dilation)| {
                    let dilated = loader.conv_weights(&format!("{name}.convs1.{n}"), shape)?;
                    let plain = loader.conv_weights(&format!("{name}.convs2.{n}"), shape)?;
                    Ok(ResidualStep { dilated, dilation, plain })
                })
                .collect::<Result<Vec<_>>>()
        };
        let sizes = config.resblock_kernel_sizes.iter().zip(&config.resblock_dilation_sizes);
        let blocks = sizes.enumerate().map(block).collect::<Result<Vec<_>>>()?;
        Ok(Stage { upsample: loader.backend.conv_transpose_weights(&weight, &bias, rate)?, blocks })
    }

    /// The mean of the stage's residual blocks, each three times `x + conv(leaky(conv(leaky(x))))`, over `spans`. The mean is
    /// taken by the last convolution of each block.
    fn residual_blocks(&self, backend: &B, x: &Segment<B>, spans: &[Vec<StepSpans>]) -> Result<Segment<B>> {
        let mut sum: Option<Segment<B>> = None;
        for (j, (block, spans)) in self.blocks.iter().zip(spans).enumerate() {
            let mut y = x.clone();
            for (n, (step, spans)) in block.iter().zip(spans).enumerate() {
                let inner = ConvEpilogue { slope: SLOPE, ..Default::default() };
                let hidden = y.conv1d(backend, &step.dilated, step.dilation, &spans.dilated, inner)?;
                let last = n + 1 == block.len();
                let mean = last && j + 1 == self.blocks.len();
                let outer = ConvEpilogue {
                    slope: SLOPE,
                    residual: Some((&y.x, spans.plain.start - y.start)),
                    sum: sum.as_ref().filter(|_| last).map(|sum| &sum.x),
                    scale: if mean { 1.0 / self.blocks.len() as f32 } else { 1.0 },
                    ..Default::default()
                };
                y = hidden.conv1d(backend, &step.plain, 1, &spans.plain, outer)?;
            }
            sum = Some(y);
        }
        // The configuration has at least one block.
        Ok(sum.unwrap_or_else(|| x.clone()))
    }
}

impl<B: Backend> Segment<B> {
    /// The results of a convolution at these positions, as far as the sequence goes.
    fn conv1d(
        &self,
        backend: &B,
        kernel: &B::ConvWeights,
        dilation: usize,
        results: &Range<usize>,
        epilogue: ConvEpilogue<'_, B>,
    ) -> Result<Segment<B>> {
        let end = (results.end - self.start).min(backend.shape(&self.x)[1]);
        let x = backend.conv1d(&self.x, kernel, dilation, results.start - self.start..end, epilogue)?;
        Ok(Segment { x, start: results.start })
    }
}

impl<B: Backend> Clone for Segment<B> {
    fn clone(&self) -> Segment<B> {
        Segment { x: self.x.clone(), start: self.start }
    }
}
