//! `im2sp export`: a model directory's captioner to a checkpoint for PyTorch.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use im2sp::Result;
use im2sp::weights::{ExportFormat, ExportOptions, export};

use super::print::note;
use super::print_line;
use super::progress::Bar;

/// Make a checkpoint for PyTorch from a model directory
///
/// The captioner's weights, bit for bit, under the names that they have there; `im2sp convert` reads the result again. The
/// vocoder, an image tokenizer and its codebook are not part of it; a captioner that sees image units has no form for
/// transformers. Weights in eight bits are not exported: export the model they were made of.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp export models/ours --format hf -o git-units        GitForCausalLM.from_pretrained(\"git-units\")
  im2sp export models/ours --format reference -o Im2Sp.ckpt")]
pub struct Export {
    /// The model directory, of f32 or bf16 weights
    #[arg(value_name = "DIR")]
    source: PathBuf,
    /// Form of the result
    #[arg(long, value_name = "FORMAT")]
    format: Format,
    /// The directory (hf) or file (reference) to make
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Replace what an earlier export made
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A Hugging Face directory: weights, model, generation and image processor
    Hf,
    /// The reference implementation's .ckpt, in PyTorch's zip container
    Reference,
}

impl Export {
    /// Exports and says what was written.
    pub fn run(self) -> Result<ExitCode> {
        let format = match self.format {
            Format::Hf => ExportFormat::HuggingFace,
            Format::Reference => ExportFormat::Reference,
        };
        let options = ExportOptions { source: self.source, format, output: self.output, force: self.force };
        let mut bar = Bar::new();
        let report = export(&options, &mut |done, total| bar.show("export", done >> 20, total >> 20))?;
        drop(bar);
        if !report.left_out.is_empty() {
            note(format_args!("not part of the result: {}", report.left_out.join(", ")));
        }
        print_line(format_args!(
            "{}: {} tensors, {} parameters, {:.1} MB",
            options.output.display(),
            report.tensors,
            report.parameters,
            report.bytes as f64 / 1e6
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
