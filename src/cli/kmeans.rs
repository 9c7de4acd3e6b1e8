//! `im2sp kmeans`: centres of the features of recordings.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use im2sp::files::AtomicFile;
use im2sp::train::kmeans::{KMeansOptions, Reservoir, kmeans};
use im2sp::weights::centres;
use im2sp::{Error, OnRecordings, Result};
use serde_json::json;

use super::print::{note, print_json, print_line};
use super::progress::Bar;
use super::recordings::{self, FeatureArgs};

/// Find centres of k-means on recordings, for `im2sp units`
///
/// Features are those of a layer of a speech encoder. The first centres are drawn by k-means++; Lloyd's iterations follow until
/// no frame changes its centre. The same recordings and seed give the same centres.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp kmeans wavs/ --weights models/hubert --clusters 200 -o km.npy")]
pub struct KMeans {
    /// A recording, or a folder, which is searched with all folders inside it
    #[arg(value_name = "AUDIO|DIR")]
    audio: PathBuf,
    /// The .npy file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Centres
    #[arg(long, default_value_t = 200, value_name = "K")]
    clusters: usize,
    /// Iterations at most
    #[arg(long, default_value_t = 100, value_name = "N")]
    iterations: usize,
    /// Frames at most; of more, as many are drawn
    #[arg(long, default_value_t = 500_000, value_name = "N")]
    max_frames: usize,
    /// Seed of all that is drawn
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Print a JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    features: FeatureArgs,
}

impl KMeans {
    /// Reads, encodes, finds centres and writes them. A recording that cannot be read is reported and left out.
    pub fn run(self) -> Result<ExitCode> {
        self.check()?;
        let all = recordings::of(&self.audio)?;
        let extractor = self.features.features()?;
        let mut sample = Reservoir::new(extractor.width(), self.max_frames, self.seed);
        let many =
            |paths: &[&Path], on_features: OnRecordings<'_, Vec<f32>>| extractor.features_of_many(paths, on_features);
        let status = recordings::each("features", &all, many, &|_, _| Ok(()), &mut |_, (features, _)| {
            sample.add(&features);
            Ok(ControlFlow::Continue(()))
        })?;
        if sample.seen() == 0 {
            return Err(Error::audio(&self.audio, "no recording could be read: there is nothing to find centres of"));
        }
        if sample.seen() > self.max_frames {
            note(format_args!("drew {} of {} frames (--max-frames)", self.max_frames, sample.seen()));
        }
        let options = KMeansOptions { clusters: self.clusters, iterations: self.iterations, seed: self.seed };
        let mut bar = Bar::new();
        let found = kmeans(sample.rows(), extractor.width(), options, &mut |done| {
            bar.show("k-means", done as u64, self.iterations as u64);
        })?;
        drop(bar);
        centres::write(&self.output, &found.centres, [self.clusters, extractor.width()])?;
        if self.json {
            print_json(&json!({
                "output": self.output.to_string_lossy(),
                "clusters": self.clusters,
                "frames": sample.seen().min(self.max_frames),
                "iterations": found.iterations,
                "distance": found.distance,
            }))?;
        } else {
            print_line(format_args!(
                "{}: {} centres, mean squared distance {:.4} after {} iterations",
                self.output.display(),
                self.clusters,
                found.distance,
                found.iterations
            ))?;
        }
        Ok(status)
    }

    /// An error for what would only show after all recordings were encoded.
    fn check(&self) -> Result<()> {
        if self.clusters == 0 || self.max_frames < self.clusters {
            let problem = format!("is {}, expected 1 to the most frames, {}", self.clusters, self.max_frames);
            return Err(Error::Option { option: "clusters", problem });
        }
        AtomicFile::create(&self.output).map(drop)
    }
}
