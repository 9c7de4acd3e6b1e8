//! The report of an evaluation: all numbers as JSON, a summary in Markdown, and one HTML page with images, players and
//! transcripts.

mod html;
mod markdown;

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::run::Run;
use super::score::external::External;
use super::score::unit_error_rate::Rate;
use super::score::{ImageScores, Pair, Scored};
use crate::{Error, Result};

pub use html::html;
pub use markdown::markdown;

/// An evaluated image.
pub struct Case {
    /// Its name.
    pub name: String,
    /// The image file.
    pub image: PathBuf,
    /// Its waveform.
    pub wav: PathBuf,
    /// Its units.
    pub units: Vec<u32>,
    /// The transcript of its waveform.
    pub transcript: String,
    /// Captions that people wrote.
    pub references: Vec<String>,
    /// Its scores.
    pub scores: ImageScores,
}

/// Everything that a report says.
pub struct Report {
    /// The configuration.
    pub config: Map<String, Value>,
    /// Names and values of the scores of the set; text where one was not computed.
    pub scores: Vec<(String, Value)>,
    /// The images with a transcript, the worst by CIDEr first.
    pub cases: Vec<Case>,
    /// Images without a transcript.
    pub missing: Vec<String>,
}

impl Report {
    /// The report on the captions of a run that have a transcript.
    ///
    /// # Errors
    /// If there is none, or a transcript cannot be read.
    pub fn new(
        run: &Run,
        config: Map<String, Value>,
        unit_error_rate: Option<Rate>,
        external: impl FnOnce(&Scored) -> External,
    ) -> Result<Report> {
        let captions = run.captions()?;
        let pairs: Vec<Pair> = captions
            .iter()
            .map(|(at, caption)| {
                let item = &run.items[*at];
                Pair { image: item.name.clone(), caption: caption.clone(), references: item.references.clone() }
            })
            .collect();
        if pairs.is_empty() {
            let problem = "no image has a transcript: see the errors above, and run the same command again".into();
            return Err(Error::Units { problem });
        }
        let scored = super::score::score(&pairs)?;
        let mut scores: Vec<(String, Value)> = Vec::new();
        for (order, bleu) in scored.scores.bleu.into_iter().enumerate() {
            scores.push((format!("BLEU-{}", order + 1), bleu.into()));
        }
        scores.push(("ROUGE-L".into(), scored.scores.rouge_l.into()));
        scores.push(("CIDEr".into(), scored.scores.cider.into()));
        scores.push(("sacreBLEU (percent)".into(), scored.scores.sacrebleu.into()));
        let External { meteor, spice } = external(&scored);
        for (name, outcome) in [("METEOR", meteor), ("SPICE", spice)] {
            scores.push((
                name.into(),
                outcome.map_or_else(|reason| format!("not computed: {reason}").into(), Value::from),
            ));
        }
        if let Some(Rate { mean, captions }) = unit_error_rate {
            let absent = "not computed: no image has true units";
            scores.push(("unit error rate".into(), mean.map_or_else(|| absent.into(), Value::from)));
            scores.push(("images of that rate".into(), captions.into()));
        }
        let mut cases: Vec<Case> = captions
            .into_iter()
            .zip(&scored.images)
            .map(|((at, transcript), scores)| {
                let item = &run.items[at];
                Case {
                    name: item.name.clone(),
                    image: item.file.clone(),
                    wav: run.wav(item),
                    units: run.units.get(&item.name).cloned().unwrap_or_default(),
                    transcript,
                    references: item.references.clone(),
                    scores: *scores,
                }
            })
            .collect();
        cases.sort_by(|a, b| a.scores.cider.total_cmp(&b.scores.cider).then_with(|| a.name.cmp(&b.name)));
        let missing =
            run.items.iter().filter(|item| !run.transcript(item).exists()).map(|item| item.name.clone()).collect();
        Ok(Report { config, scores, cases, missing })
    }

    /// All of it as JSON, images by name.
    pub fn json(&self) -> Value {
        let scores: Map<String, Value> = self.scores.iter().cloned().collect();
        let mut cases: Vec<&Case> = self.cases.iter().collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        let image = |case: &Case| {
            json!({
                "image": case.name,
                "units": case.units,
                "transcript": case.transcript,
                "references": case.references,
                "scores": case.scores,
            })
        };
        let images: Vec<Value> = cases.into_iter().map(image).collect();
        json!({ "configuration": self.config, "scores": scores, "images": images, "missing": self.missing })
    }

    /// The worst and the best cases, `count` of each and none twice; the best begin with the best.
    pub fn extremes(&self, count: usize) -> (Vec<&Case>, Vec<&Case>) {
        let worst = count.min(self.cases.len().div_ceil(2));
        let best = count.min(self.cases.len() - worst);
        (self.cases[..worst].iter().collect(), self.cases.iter().rev().take(best).collect())
    }

    /// How many images were scored.
    fn sentence(&self) -> String {
        let (scored, missing) = (self.cases.len(), self.missing.len());
        match missing {
            0 => format!("{scored} images were scored."),
            _ => format!("{scored} images were scored; {missing} have no transcript and are left out."),
        }
    }
}

/// A score as people read it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{:.4}", number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}
