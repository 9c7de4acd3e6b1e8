//! The learning rate of every update. Source: the reference's training script: linear warm-up, then a cosine to zero.

use serde::{Deserialize, Serialize};

/// Course of the learning rate over updates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// The largest rate.
    pub rate: f64,
    /// Updates of the linear warm-up W; the first of all has a rate of zero. 0 leaves it out.
    pub warmup: u64,
    /// Shape after the warm-up.
    pub decay: Decay,
}

/// Course after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a cosine down to zero at the last update.
    #[default]
    Cosine,
    /// The largest rate.
    Constant,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule { rate: 5e-5, warmup: 10_000, decay: Decay::Cosine }
    }
}

impl Schedule {
    /// The rate of update `update`, counted from 1, of `total`.
    pub fn rate(&self, update: u64, total: u64) -> f64 {
        let (done, warmup) = (update.saturating_sub(1) as f64, self.warmup as f64);
        match self.decay {
            _ if done <= warmup && self.warmup > 0 => self.rate * done / warmup,
            Decay::Constant => self.rate,
            Decay::Cosine => {
                let rest = (total as f64 - warmup).max(1.0);
                let share = ((done - warmup) / rest).min(1.0);
                self.rate * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values by the formula of the reference, which counts k = n - 1: k <= W: lr k / W, else lr (1 + cos(pi (k - W) / (T - W))) / 2.
    #[test]
    fn rates_are_those_of_the_reference() {
        let schedule = Schedule { rate: 0.5, warmup: 4, decay: Decay::Cosine };
        let rates: Vec<f64> = (1..=13).map(|update| schedule.rate(update, 12)).collect();
        assert_eq!(rates[..5], [0.0, 0.125, 0.25, 0.375, 0.5]);
        assert!((rates[8] - 0.25).abs() < 1e-12 && (rates[12]).abs() < 1e-12, "{rates:?}");
        let falls = rates[4..].windows(2).all(|pair| pair[1] < pair[0]);
        assert!(falls, "{rates:?}");
    }

    #[test]
    fn without_a_warm_up_the_first_rate_is_the_largest() {
        let schedule = Schedule { rate: 1.0, warmup: 0, decay: Decay::Cosine };
        assert_eq!(schedule.rate(1, 10), 1.0);
        assert_eq!(Schedule { decay: Decay::Constant, ..schedule }.rate(7, 10), 1.0);
    }
}
