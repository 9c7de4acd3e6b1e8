//! `im2sp plot`: curves of training runs as an SVG drawing.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use im2sp::train::journal::{self, Record};
use im2sp::train::plot::{Curve, svg};
use im2sp::{Error, Result, files};

/// Draw the curves of training runs
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp plot runs/scenes -o loss.svg
  im2sp plot runs/a runs/b --metric error -o error.svg")]
pub struct Plot {
    /// Run directories of `im2sp train`
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The drawing
    #[arg(short, long, default_value = "loss.svg", value_name = "FILE")]
    output: PathBuf,
    /// Quantity to draw
    #[arg(long, default_value = "loss", value_name = "METRIC")]
    metric: Metric,
}

#[derive(Clone, Copy, ValueEnum)]
enum Metric {
    /// Mean loss of a token
    Loss,
    /// Share of wrong tokens in training, unit error rate in validation
    Error,
    /// Learning rate
    Rate,
}

impl Metric {
    /// Names of the curves of training and of validation.
    fn names(self) -> [&'static str; 2] {
        match self {
            Metric::Loss => ["training", "validation"],
            Metric::Error => ["wrong tokens in training", "unit error rate in validation"],
            Metric::Rate => ["learning rate", ""],
        }
    }

    fn axis(self) -> &'static str {
        match self {
            Metric::Loss => "loss of a token",
            Metric::Error => "error",
            Metric::Rate => "learning rate",
        }
    }

    /// The value in a line of training, or in one of validation.
    fn of(self, record: &Record) -> [Option<f64>; 2] {
        match (self, record) {
            (Metric::Loss, Record::Update(r)) => [Some(r.loss), None],
            (Metric::Loss, Record::Validation(r)) => [None, Some(r.loss)],
            (Metric::Error, Record::Update(r)) => [Some(r.error), None],
            (Metric::Error, Record::Validation(r)) => [None, Some(r.unit_error_rate)],
            (Metric::Rate, Record::Update(r)) => [Some(r.rate), None],
            (Metric::Rate, Record::Validation(_)) => [None, None],
        }
    }
}

impl Plot {
    /// Reads the journals and writes the drawing.
    pub fn run(self) -> Result<ExitCode> {
        let mut named = Vec::new();
        for run in &self.runs {
            let records = journal::read(run)?;
            let of = |part: usize| {
                let point = |record: &Record| Some((record.update() as f64, self.metric.of(record)[part]?));
                records.iter().filter_map(point).collect::<Vec<_>>()
            };
            for (part, name) in self.metric.names().into_iter().enumerate() {
                let name = if self.runs.len() > 1 { format!("{}: {name}", run.display()) } else { name.to_string() };
                named.push((name, of(part)));
            }
        }
        named.retain(|(_, points)| !points.is_empty());
        if named.is_empty() {
            let problem = "its journal holds no line of this kind yet: let the run do an update first";
            return Err(Error::weights(&self.runs[0].join(journal::JOURNAL), "lines", problem));
        }
        let curves: Vec<Curve<'_>> =
            named.iter().map(|(name, points)| Curve { name, points: points.clone() }).collect();
        let title = self.runs.iter().map(|run| run.display().to_string()).collect::<Vec<_>>().join(", ");
        let drawing = svg(&title, ["update", self.metric.axis()], &curves);
        files::write_atomically(&self.output, drawing.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}
