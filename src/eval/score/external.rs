//! METEOR and SPICE by their authors' Java programs, as an installed pycocoevalcap calls them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::json;

use super::TokenPair;

/// The Python program: tokens on standard input, scores on standard output. It looks before it calls, since pycocoevalcap would
/// download a parser of 400 MB by itself.
const PROGRAM: &str = include_str!("external.py");
/// Characters of a foreign message that are passed on.
const SHOWN: usize = 200;

/// A score, or the reason that there is none.
pub type Outcome = std::result::Result<f64, String>;

/// Scores of other programs.
#[derive(Clone, Debug, PartialEq)]
pub struct External {
    /// METEOR 1.5.
    pub meteor: Outcome,
    /// SPICE 1.0.
    pub spice: Outcome,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "METEOR")]
    meteor: AnswerScore,
    #[serde(rename = "SPICE")]
    spice: AnswerScore,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AnswerScore {
    Score(f64),
    Problem(String),
}

impl From<AnswerScore> for Outcome {
    fn from(answer: AnswerScore) -> Outcome {
        match answer {
            AnswerScore::Score(score) => Ok(score),
            AnswerScore::Problem(problem) => Err(problem),
        }
    }
}

impl External {
    /// No scores, for one reason.
    pub fn absent(reason: &str) -> External {
        External { meteor: Err(reason.into()), spice: Err(reason.into()) }
    }

    /// Scores the tokens of a set with the pycocoevalcap of `python`.
    pub fn score(python: &Path, pairs: &[TokenPair]) -> External {
        match ask(python, pairs) {
            Ok(answer) => External { meteor: answer.meteor.into(), spice: answer.spice.into() },
            Err(problem) => External::absent(&problem),
        }
    }
}

fn ask(python: &Path, pairs: &[TokenPair]) -> std::result::Result<Answer, String> {
    let mut command = Command::new(python);
    command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{} cannot be started: {error}", python.display()))?;
    let input = json!(pairs.iter().map(|pair| (&pair.caption, &pair.references)).collect::<Vec<_>>());
    let fed = child.stdin.take().map(|mut pipe| pipe.write_all(input.to_string().as_bytes()));
    let output = child.wait_with_output().map_err(|error| format!("{}: {error}", python.display()))?;
    let answer = output.stdout.split(|&byte| byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    serde_json::from_slice(answer).map_err(|_| {
        let message = String::from_utf8_lossy(&output.stderr);
        let last = message.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        let cut = if matches!(fed, Some(Ok(()))) { "" } else { " before it had read everything" };
        let last: String = last.chars().take(SHOWN).collect();
        format!("{} ended with {}{cut}: {last}", python.display(), output.status)
    })
}
