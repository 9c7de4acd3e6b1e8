//! `im2sp score`: captions and units against those of people.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use im2sp::Result;
use im2sp::eval::score::external::{External, Outcome};
use im2sp::eval::score::references::References;
use im2sp::eval::score::{TokenPair, predictions, score, unit_error_rate};
use serde_json::{Value, json};

use super::print::{note, print_json, print_line};

/// Score captions against those that people wrote
///
/// BLEU-1 to 4, ROUGE-L and CIDEr (CIDEr-D) are those of pycocoevalcap, sacreBLEU is sacrebleu's corpus BLEU in percent, the
/// others are fractions. METEOR and SPICE come from an installed pycocoevalcap, which needs Java, or are left out. Only the
/// images that have a prediction are scored; CIDEr depends on which these are.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp score --pred transcripts/ --ref captions_val2014.json
  im2sp score --pred results.json --ref dataset_flickr8k.json --split test --json
  im2sp score --pred transcripts/ --ref Flickr8k.token.txt --pred-units units/ --ref-units Hubert_units/")]
pub struct Score {
    /// A folder of NAME.txt, the transcript of image NAME, or COCO's results: [{\"image_id\": 42, \"caption\": \"a dog\"}]
    #[arg(long, value_name = "DIR|JSON", required_unless_present = "pred_units", requires = "reference")]
    pred: Option<PathBuf>,
    /// Captions of people: COCO's captions_*.json, Karpathy's dataset_*.json or Flickr8k.token.txt
    #[arg(long = "ref", value_name = "FILE", requires = "pred", id = "reference")]
    reference: Option<PathBuf>,
    /// Part of Karpathy's file that has to be predicted, all of it and nothing else: test, val, ...
    #[arg(long, value_name = "NAME", requires = "pred")]
    split: Option<String>,
    /// Units to be scored: a folder of NAME.unit, or lists of units with names
    #[arg(long, value_name = "DIR|FILE", requires = "ref_units")]
    pred_units: Option<PathBuf>,
    /// True units: NAME.unit, or NAME_0.unit where an image has several captions, or lists of units with names
    #[arg(long, value_name = "DIR|FILE", requires = "pred_units")]
    ref_units: Option<PathBuf>,
    #[command(flatten)]
    external: ExternalArgs,
    /// Print a JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Options of METEOR and SPICE.
#[derive(Args)]
pub(super) struct ExternalArgs {
    /// Python with pycocoevalcap, for METEOR and SPICE
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// Leave METEOR and SPICE out, which take longer than all others together
    #[arg(long)]
    native: bool,
}

impl ExternalArgs {
    /// The scores of tokens, or why there are none.
    pub(super) fn score(&self, pairs: &[TokenPair]) -> External {
        if self.native { External::absent("left out") } else { External::score(&self.python, pairs) }
    }
}

impl Score {
    /// Reads, scores and prints.
    pub fn run(self) -> Result<ExitCode> {
        let mut scores: Vec<(String, Value)> = Vec::new();
        if let (Some(pred), Some(reference)) = (&self.pred, &self.reference) {
            let pairs = References::read(reference)?.pair(pred, predictions::read(pred)?, self.split.as_deref())?;
            let scored = score(&pairs)?;
            scores.push(("images".into(), pairs.len().into()));
            for (order, bleu) in scored.scores.bleu.into_iter().enumerate() {
                scores.push((format!("Bleu_{}", order + 1), bleu.into()));
            }
            scores.push(("ROUGE_L".into(), scored.scores.rouge_l.into()));
            scores.push(("CIDEr".into(), scored.scores.cider.into()));
            scores.push(("sacreBLEU".into(), scored.scores.sacrebleu.into()));
            let external = self.external.score(&scored.tokens);
            insert(&mut scores, "METEOR", external.meteor);
            insert(&mut scores, "SPICE", external.spice);
        }
        if let (Some(pred), Some(reference)) = (&self.pred_units, &self.ref_units) {
            let rate = unit_error_rate::score(pred, &unit_error_rate::read(pred)?, unit_error_rate::read(reference)?)?;
            scores.push(("unit_error_rate".into(), rate.into()));
        }
        if self.json {
            print_json(&Value::Object(scores.into_iter().collect()))?;
            return Ok(ExitCode::SUCCESS);
        }
        for (name, value) in scores {
            match (value.as_f64(), value.get("not_computed").and_then(Value::as_str)) {
                (Some(number), _) if value.is_f64() => print_line(format_args!("{name:<16} {number:.4}"))?,
                (_, Some(reason)) => note(format_args!("{name} is not computed: {reason}")),
                _ => print_line(format_args!("{name:<16} {value}"))?,
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Enters the score of another program, or why there is none.
fn insert(scores: &mut Vec<(String, Value)>, name: &str, outcome: Outcome) {
    let value = outcome.map_or_else(|reason| json!({ "not_computed": reason }), Value::from);
    scores.push((name.into(), value));
}
