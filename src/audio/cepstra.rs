//! Cepstra: features of speech that need no model, which a small model's units can be made of. A frame of 20 ms has the first
//! coefficients of the discrete cosine transform of its log-mel spectrum, alone or with those of its neighbours.

use rayon::prelude::*;
use realfft::RealFftPlanner;

use crate::config::SPEECH_RATE;

/// Samples between the starts of two frames.
pub const HOP: usize = 320;

/// How a frame's features are made of cepstra.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cepstra {
    /// Those of five frames, weighted: units of them are steady, and blur short sounds.
    #[default]
    Context,
    /// Those of one frame, the k-th (from 0) times the root of k + 1, which are of like size: units of any words, and the embedded
    /// model's.
    Frame,
}

impl Cepstra {
    /// Values of a frame.
    pub fn width(self) -> usize {
        match self {
            Cepstra::Context => CEPSTRA * CONTEXT.len(),
            Cepstra::Frame => CEPSTRA,
        }
    }
}

/// Samples of a window, in whose middle a frame lies.
const WINDOW: usize = 800;
/// Samples of a transform: the window and zeros.
const TRANSFORM: usize = 1024;
/// Mel bands.
const BANDS: usize = 40;
/// Coefficients of a frame.
const CEPSTRA: usize = 16;
/// Weights of the frames around a frame.
const CONTEXT: [f32; 5] = [0.5, 0.8, 1.0, 0.8, 0.5];
/// Edges of the mel bands, in hertz.
const RANGE: [f64; 2] = [60.0, 8000.0];
/// Added to powers before their logarithm.
const FLOOR: f32 = 1e-3;

/// Features (T, [`Cepstra::width`]) of samples, 16,000 a second; T is the number of whole hops.
pub fn cepstra(kind: Cepstra, samples: &[f32]) -> Vec<f32> {
    let frames = frames(samples);
    match kind {
        Cepstra::Context => with_neighbours(&frames),
        Cepstra::Frame => {
            let weights: [f32; CEPSTRA] = std::array::from_fn(|k| ((k + 1) as f32).sqrt());
            frames.iter().flat_map(|frame| frame.iter().zip(weights).map(|(value, weight)| value * weight)).collect()
        }
    }
}

/// Cepstra of every frame.
fn frames(samples: &[f32]) -> Vec<[f32; CEPSTRA]> {
    let frames = samples.len() / HOP;
    let (filters, cosines) = (mel_filters(), cosines());
    let window: Vec<f32> = (0..WINDOW).map(|n| hann(n) as f32).collect();
    let transform = RealFftPlanner::<f32>::new().plan_fft_forward(TRANSFORM);
    (0..frames)
        .into_par_iter()
        .map_init(
            || (transform.make_input_vec(), transform.make_output_vec()),
            |(input, spectrum), frame| {
                input.fill(0.0);
                let start = (frame * HOP) as isize - ((WINDOW - HOP) / 2) as isize;
                for ((n, x), weight) in (0isize..).zip(input.iter_mut()).zip(&window) {
                    let at = usize::try_from(start + n).ok();
                    *x = weight * at.and_then(|at| samples.get(at)).copied().unwrap_or(0.0);
                }
                // It fails only for buffers of other lengths.
                let done = transform.process(input, spectrum);
                debug_assert!(done.is_ok());
                let powers: Vec<f32> = spectrum.iter().map(|value| value.norm_sqr()).collect();
                let dot = |filter: &Vec<f32>| filter.iter().zip(&powers).map(|(f, p)| f * p).sum::<f32>();
                let bands: Vec<f32> = filters.iter().map(|filter| (dot(filter) + FLOOR).ln()).collect();
                std::array::from_fn(|k| cosines[k].iter().zip(&bands).map(|(c, b)| c * b).sum())
            },
        )
        .collect()
}

/// Weighted cepstra of the frames around each frame, which are repeated before the first and after the last.
fn with_neighbours(frames: &[[f32; CEPSTRA]]) -> Vec<f32> {
    let around = CONTEXT.len() / 2;
    let neighbours = |frame: usize| {
        let at = move |n: usize| (frame + n).saturating_sub(around).min(frames.len() - 1);
        (0..CONTEXT.len()).map(move |n| (at(n), CONTEXT[n]))
    };
    let all = (0..frames.len()).flat_map(neighbours);
    all.flat_map(|(frame, weight)| frames[frame].map(|value| weight * value)).collect()
}

/// Hann window, symmetric.
fn hann(n: usize) -> f64 {
    0.5 - 0.5 * (2.0 * std::f64::consts::PI * n as f64 / (WINDOW - 1) as f64).cos()
}

/// Triangular filters, evenly spaced on the mel scale, for each of the transform's powers.
fn mel_filters() -> Vec<Vec<f32>> {
    let mel = |hertz: f64| (1.0 + hertz / 700.0).log10();
    let [low, high] = RANGE.map(mel);
    let edge = |n: usize| 700.0 * (10f64.powf(low + (high - low) * n as f64 / (BANDS + 1) as f64) - 1.0);
    let hertz = |k: usize| k as f64 * f64::from(SPEECH_RATE) / TRANSFORM as f64;
    let filter = |band: usize| {
        let [from, middle, to] = [edge(band), edge(band + 1), edge(band + 2)];
        let value = |f: f64| ((f - from) / (middle - from)).min((to - f) / (to - middle)).max(0.0) as f32;
        (0..=TRANSFORM / 2).map(|k| value(hertz(k))).collect()
    };
    (0..BANDS).map(filter).collect()
}

/// First rows of the orthonormal discrete cosine transform of type 2.
fn cosines() -> Vec<Vec<f32>> {
    let count = BANDS as f64;
    let row = |k: usize| {
        let scale = if k == 0 { 1.0 / count } else { 2.0 / count }.sqrt();
        let value = |n: usize| scale * (std::f64::consts::PI * k as f64 * (n as f64 + 0.5) / count).cos();
        (0..BANDS).map(|n| value(n) as f32).collect()
    };
    (0..CEPSTRA).map(row).collect()
}
