//! `im2sp transcribe`: recordings to text.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use im2sp::{OnRecordings, Recognizer, Result};
use serde_json::json;

use super::print::{offer_json, offer_line, shown};
use super::recordings::{self, SpeechArgs};

/// Turn recordings into text
///
/// A recogniser (wav2vec 2.0 with CTC) is decoded greedily. WAV and FLAC are read at any rate. A folder gives a line for each
/// recording: its path, a tab and its text.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp transcribe speech.wav --weights models/wav2vec2
  im2sp transcribe wavs/ --weights models/wav2vec2 --json > texts.jsonl")]
pub struct Transcribe {
    /// A recording, or a folder, which is searched with all folders inside it
    #[arg(value_name = "AUDIO|DIR")]
    audio: PathBuf,
    /// Print one JSON object a line per recording
    #[arg(long)]
    json: bool,
    /// Directory of a recogniser made by `im2sp convert`
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    weights: PathBuf,
    #[command(flatten)]
    model: SpeechArgs,
}

impl Transcribe {
    /// Reads, recognises and prints. A recording that cannot be read is reported and does not stop the others.
    pub fn run(self) -> Result<ExitCode> {
        let all = recordings::of(&self.audio)?;
        let recognizer = Recognizer::load(&self.weights, self.model.options())?;
        let many = |paths: &[&Path], on_texts: OnRecordings<'_, String>| recognizer.texts_of_many(paths, on_texts);
        recordings::each("transcribe", &all, many, &|_, _| Ok(()), &mut |recording, (text, samples)| {
            let path = &recording.path;
            if self.json {
                let audio = path.to_string_lossy();
                return offer_json(&json!({ "audio": audio, "text": text, "duration": recordings::seconds(samples) }));
            }
            if self.audio.is_dir() { offer_line(format_args!("{}\t{text}", shown(path))) } else { offer_line(text) }
        })
    }
}
