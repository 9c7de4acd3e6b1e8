//! `im2sp info`: what a model directory holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use im2sp::Result;
use im2sp::config::{Resize, SpeechKind, UnitInput};
use im2sp::weights::directory::ModelFiles;
use im2sp::weights::embedded;
use im2sp::weights::speech::{SPEECH, SpeechFiles};
use serde_json::json;

use super::{SMALL, print_json, print_line};

/// Show what a model directory holds
#[derive(Args)]
pub struct Info {
    /// Model directory; without it the small embedded model is described
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Print a JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Info {
    /// Opens the files, which checks them, and prints.
    pub fn run(self) -> Result<ExitCode> {
        let files = match &self.directory {
            Some(directory) if directory.join(SPEECH).is_file() => return self.speech(directory),
            Some(directory) => ModelFiles::open(directory)?,
            None => embedded::files()?,
        };
        let config = &files.config;
        let tokenizer = files.tokenizer.as_ref();
        let stores = std::iter::once(&files.captioner).chain(&files.vocoder).chain(tokenizer.map(|files| &files.store));
        let (mut parameters, mut bytes, mut types) = (0, 0, BTreeMap::new());
        for (_, tensor) in stores.flat_map(|store| store.iter()) {
            parameters += tensor.len();
            bytes += tensor.bytes().len();
            *types.entry(tensor.dtype().name()).or_insert(0) += tensor.bytes().len();
        }
        if self.json {
            print_json(&json!({ "config": config, "parameters": parameters, "bytes": bytes, "types": types }))?;
            return Ok(ExitCode::SUCCESS);
        }
        print_line(format_args!("{}", config.description.as_deref().unwrap_or("a model without a description")))?;
        if let Some(domain) = &config.domain {
            print_line(format_args!("knows      {domain}"))?;
        }
        if self.directory.is_none() {
            print_line(format_args!("note       {SMALL}"))?;
        }
        print_line(format_args!("size       {parameters} parameters, {:.1} MB", bytes as f64 / 1e6))?;
        let types: Vec<String> =
            types.into_iter().map(|(name, bytes)| format!("{name} {:.1} MB", bytes as f64 / 1e6)).collect();
        print_line(format_args!("weights    {}", types.join(", ")))?;
        let (image, vision, decoder) = (&config.image, &config.vision, &config.decoder);
        let resize = match image.resize {
            Resize::ShortSide => "short side",
            Resize::Square => "both sides",
        };
        print_line(format_args!(
            "image      {0}x{0} pixels, {resize} resized to {1} ({2:?}), mean {3:?}, std {4:?}",
            image.size,
            image.resized(),
            image.filter,
            image.mean,
            image.std
        ))?;
        if let Some(units) = &vision.units {
            let made = if tokenizer.is_some() { "made by its tokenizer" } else { "stored ones only" };
            let UnitInput { grid, crop, codes, .. } = units;
            print_line(format_args!("units      {grid}x{grid} of {codes} codes, {crop}x{crop} seen, {made}"))?;
        }
        match &vision.efficient_net {
            Some(net) => print_line(format_args!(
                "vision     EfficientNet-lite, {} blocks, {} channels, {} tokens",
                net.blocks().count(),
                vision.width,
                config.image_tokens()
            ))?,
            None => print_line(format_args!(
                "vision     {} layers, {} channels, {} heads, patches of {}, {} tokens",
                vision.layers,
                vision.width,
                vision.heads,
                vision.patch,
                config.image_tokens()
            ))?,
        }
        print_line(format_args!(
            "decoder    {} layers, {} channels, {} heads, {} tokens, {} positions",
            decoder.layers, decoder.width, decoder.heads, decoder.vocabulary, decoder.max_positions
        ))?;
        match &config.vocoder {
            Some(vocoder) => print_line(format_args!(
                "vocoder    {} units, {} samples a frame at {} Hz, {} channels, durations {}",
                vocoder.num_embeddings,
                vocoder.hop(),
                vocoder.sampling_rate,
                vocoder.upsample_initial_channel,
                if vocoder.duration.is_some() { "predicted" } else { "of one frame" }
            ))?,
            None => print_line(format_args!("vocoder    none"))?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The same for a speech model.
    fn speech(&self, directory: &Path) -> Result<ExitCode> {
        let SpeechFiles { config, tensors } = SpeechFiles::open(directory, true)?;
        let (mut parameters, mut bytes) = (0, 0);
        for (_, tensor) in tensors.iter() {
            parameters += tensor.len();
            bytes += tensor.bytes().len();
        }
        if self.json {
            print_json(&json!({ "config": config, "parameters": parameters, "bytes": bytes }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let kind = match config.kind {
            SpeechKind::SpeechEncoder => "a speech encoder, for im2sp units",
            SpeechKind::Ctc => "a recogniser, for im2sp transcribe",
        };
        print_line(format_args!("{}", config.description.as_deref().unwrap_or(kind)))?;
        print_line(format_args!("size       {parameters} parameters, {:.1} MB", bytes as f64 / 1e6))?;
        print_line(format_args!("frames     {} samples, {} apart", config.window(), config.hop()))?;
        print_line(format_args!("layers     {} of {} channels, {} heads", config.layers, config.width, config.heads))?;
        if let Some(vocabulary) = &config.vocabulary {
            print_line(format_args!("symbols    {}", vocabulary.symbols.len()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
