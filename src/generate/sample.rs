//! Sampling: temperature, then top-k, then top-p (nucleus), then one draw, in the order transformers applies them.
//! Random numbers are SplitMix64's, one stream per image, so that a seed gives the same caption on every machine and
//! in every batch.

use super::Sampling;
use crate::Result;
use crate::backend::rows::{log_softmax, top};
use crate::backend::{Backend, TopValue};

/// Candidates that the samplings of a step need from its logits.
#[derive(Default)]
pub(super) struct Draws {
    /// The largest top-k.
    top_k: usize,
    /// Whether one of them looks at all tokens.
    all: bool,
}

/// Logits of a step (R, V), as far as its samplings need them.
pub(super) struct Read {
    tops: Vec<Vec<TopValue>>,
    all: Vec<f32>,
    vocabulary: usize,
}

impl Draws {
    /// Another sampling of the step.
    pub fn include(&mut self, sampling: &Sampling) {
        self.top_k = self.top_k.max(sampling.top_k);
        self.all |= sampling.top_k == 0;
    }

    /// Reads what is needed of `logits` (R, V).
    pub fn read<B: Backend>(&self, backend: &B, logits: &B::Tensor) -> Result<Read> {
        let vocabulary = backend.shape(logits)[1];
        let tops = match self.top_k {
            0 => Vec::new(),
            count => backend.top_k(logits, count.min(vocabulary))?,
        };
        let all = if self.all { backend.download(logits)? } else { Vec::new() };
        Ok(Read { tops, all, vocabulary })
    }
}

impl Read {
    /// The next token of `row`, by its sampling and the state of its random numbers.
    pub fn draw(&self, row: usize, sampling: &Sampling, state: &mut u64) -> Result<u32> {
        Ok(pick(&sampling.candidates(&self.likeliest(row, sampling)?)?, uniform(state)))
    }

    /// The logits that top-k leaves of a row, likeliest first.
    fn likeliest(&self, row: usize, sampling: &Sampling) -> Result<Vec<TopValue>> {
        if sampling.top_k > 0 {
            return Ok(self.tops[row][..sampling.top_k.min(self.vocabulary)].to_vec());
        }
        let row = &self.all[row * self.vocabulary..][..self.vocabulary];
        let order = top(&log_softmax(&sampling.scaled(row.iter().copied()))?, self.vocabulary);
        Ok(order.into_iter().map(|column| TopValue { value: row[column], column: column as u32 }).collect())
    }
}

impl Sampling {
    fn scaled(&self, logits: impl Iterator<Item = f32>) -> Vec<f32> {
        logits.map(|logit| logit / self.temperature).collect()
    }

    /// Tokens that may be drawn, likeliest first, with their probabilities.
    fn candidates(&self, likeliest: &[TopValue]) -> Result<Vec<(u32, f64)>> {
        let kept = log_softmax(&self.scaled(likeliest.iter().map(|top| top.value)))?;
        let mut before = 0.0f64;
        let mut candidates = Vec::new();
        for (top, log) in likeliest.iter().zip(kept) {
            // A token stays while those before it do not reach top_p, so at least one does.
            if before >= f64::from(self.top_p) && !candidates.is_empty() {
                break;
            }
            let probability = f64::from(log).exp();
            candidates.push((top.column, probability));
            before += probability;
        }
        Ok(candidates)
    }
}

/// The candidate at `uniform` (0..1) of the total probability.
fn pick(candidates: &[(u32, f64)], uniform: f64) -> u32 {
    let mut left = uniform * candidates.iter().map(|(_, p)| p).sum::<f64>();
    for &(token, probability) in candidates {
        left -= probability;
        if left < 0.0 {
            return token;
        }
    }
    candidates.last().map_or(0, |&(token, _)| token)
}

/// The next number in 0..1 of a SplitMix64 stream (Steele, Lea and Flood, 2014), 53 bits.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{Cpu, Tensor};
    use crate::backend::prelude::*;

    fn row(logits: &[f32]) -> Result<Tensor> {
        Cpu.upload([1, logits.len()], logits)
    }

    fn read(logits: &Tensor, sampling: &Sampling) -> Result<Read> {
        let mut draws = Draws::default();
        draws.include(sampling);
        draws.read(&Cpu, logits)
    }

    fn sampling(top_k: usize, top_p: f32, temperature: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, seed: 7 }
    }

    #[test]
    fn frequencies_follow_the_softmax() -> Result<()> {
        let logits = row(&[0.0, 2.0f32.ln(), 5.0f32.ln()])?;
        let (sampling, mut state) = (sampling(0, 1.0, 1.0), 7);
        let mut counts = [0; 3];
        let read = read(&logits, &sampling)?;
        for _ in 0..8000 {
            counts[read.draw(0, &sampling, &mut state)? as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([1000.0, 2000.0, 5000.0]) {
            // Five standard deviations of a binomial count.
            assert!((f64::from(count) - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
        Ok(())
    }

    #[test]
    fn filters_keep_the_likeliest() -> Result<()> {
        let logits = row(&[0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()])?;
        let tokens = |s: &Sampling| -> Result<Vec<u32>> {
            let likeliest = read(&logits, s)?.likeliest(0, s)?;
            Ok(s.candidates(&likeliest)?.into_iter().map(|(token, _)| token).collect())
        };
        assert_eq!(tokens(&sampling(2, 1.0, 1.0))?, [1, 2]);
        assert_eq!(tokens(&sampling(9, 1.0, 1.0))?, [1, 2, 0], "more than there are keeps all");
        assert_eq!(tokens(&sampling(0, 0.5, 1.0))?, [1]);
        assert_eq!(tokens(&sampling(0, 0.7, 1.0))?, [1, 2]);
        assert_eq!(tokens(&sampling(0, 1.0, 0.01))?.first(), Some(&1));
        Ok(())
    }
}
