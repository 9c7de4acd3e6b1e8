//! `im2sp bench`: the time of each stage of a caption, its cost, and its share of the machine's measured peaks. The figures come
//! from [`Engine::caption`] and [`Engine::speak`], the paths that users take.

mod in_flight;

use std::time::Instant;

use serde::Serialize;

use crate::backend::Peaks;
use crate::backend::cpu::Cpu;
#[cfg(any(feature = "cuda", feature = "emulator"))]
use crate::backend::cuda::Cuda;
use crate::cost::{self, Cost};
use crate::generate::GenerateOptions;
use crate::image::Image;
#[cfg(any(feature = "cuda", feature = "emulator"))]
use crate::tensor::DType;
use crate::{CaptionOptions, Device, Engine, Error, Result, Timings};

pub use in_flight::run as run_in_flight;
pub use in_flight::{InFlightOptions, InFlightReport, Throughput};

/// Extent of a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BenchOptions {
    /// Units of a caption; one that ends by itself may be shorter.
    pub units: usize,
    /// Captions that are timed.
    pub repeat: usize,
}

/// One stage.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub stage: &'static str,
    /// Milliseconds: median, min, max.
    pub median: f64,
    /// The fastest.
    pub min: f64,
    /// The slowest.
    pub max: f64,
    /// Floating-point operations of one run.
    pub flops: f64,
    /// Bytes of the weights of one run.
    pub bytes: f64,
    /// Share of the peak that binds it; none where there is nothing to compare.
    pub share: Option<f64>,
    /// Reason why the share is above 1, if it is.
    pub remark: Option<&'static str>,
}

/// Runs before the clock runs: a sequence is captured at the second sight of its shape, and replayed from the third on.
const WARM_UP: usize = 2;
/// A device that streams its weights and computes every operation that is counted cannot exceed its peaks.
const IMPOSSIBLE: &str = "more than the measured peak. The time or the peak is wrong: do not quote this figure";
/// A CPU may: its shares are of the memory's bandwidth and of direct convolutions.
const CACHED: &str = "more than the measured peak: weights that stay in the CPU's caches are read faster than from memory, and \
                      Winograd's convolutions compute less than what is counted";

/// A whole measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Commit of the program.
    pub commit: &'static str,
    /// The device in words.
    pub device: String,
    /// Type of the weights.
    pub dtype: &'static str,
    /// Description of the model.
    pub model: String,
    /// Units of each caption.
    pub units: usize,
    /// Seconds of speech of each caption.
    pub seconds: f64,
    /// Captions timed.
    pub repeat: usize,
    /// Measured peaks of the machine; `None` where they could not be measured, as on the emulator.
    pub peaks: Option<Peaks>,
    /// Problem that kept the peaks from being measured.
    pub peaks_problem: Option<String>,
    /// The stages in their order, and the whole.
    pub rows: Vec<Row>,
}

/// Captions `image` a few times to warm up, then `repeat` times. `device` is the engine's, whose peaks are measured.
pub fn run(
    engine: &Engine,
    device: Device,
    image: &Image,
    options: BenchOptions,
    on_progress: &mut dyn FnMut(usize),
) -> Result<Report> {
    if options.units == 0 || options.repeat == 0 {
        return Err(Error::Option { option: "units", problem: "and repeat must be at least 1".into() });
    }
    let generate = GenerateOptions { max_length: options.units + 1, ..Default::default() };
    let caption = CaptionOptions { generate, ..Default::default() };
    let (peaks, peaks_problem) = match peaks(engine, device) {
        Ok(peaks) => (peaks, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let warm = engine.caption(image, &CaptionOptions { no_audio: true, ..caption })?;
    // As many units as the caption has tokens, none twice in a row: a model of random weights repeats itself, and what is
    // repeated is spoken once.
    let known = engine.config().vocoder.as_ref().map_or(0, |vocoder| vocoder.num_embeddings as u32);
    let units: Vec<u32> = (0..warm.tokens.len() as u32 - 1).map(|n| n * 7 % known.max(1)).collect();
    let mut runs = Vec::with_capacity(WARM_UP + options.repeat);
    let mut samples = 0;
    for n in 0..WARM_UP + options.repeat {
        on_progress(n.saturating_sub(WARM_UP));
        let clock = Instant::now();
        let mut timings = engine.caption(image, &CaptionOptions { no_audio: true, ..caption })?.timings;
        if known > 1 {
            let speech = engine.speak(&units, None)?;
            (samples, timings.vocoder) = (speech.samples.len(), speech.vocoder);
        }
        runs.push((timings, clock.elapsed().as_secs_f64() * 1e3));
    }
    runs.drain(..WARM_UP);
    let steps = warm.tokens.len().saturating_sub(1);
    Ok(Report {
        commit: env!("IM2SP_COMMIT"),
        device: engine.device(),
        dtype: engine.dtype(),
        model: engine.config().description.clone().unwrap_or_else(|| "a model directory".into()),
        units: steps,
        seconds: samples as f64 / f64::from(warm.sample_rate.max(1)),
        repeat: options.repeat,
        peaks,
        peaks_problem,
        rows: rows(engine, &runs, steps, samples, peaks),
    })
}

/// Peaks of the engine's device.
#[cfg_attr(not(any(feature = "cuda", feature = "emulator")), allow(unused_variables, clippy::unnecessary_wraps))]
fn peaks(engine: &Engine, device: Device) -> Result<Option<Peaks>> {
    if engine.memory().is_none() {
        return Ok(Some(Cpu.peaks()));
    }
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    {
        let cuda = Cuda::new(device.driver()?, DType::BF16)?;
        if !cuda.is_emulated() {
            return cuda.peaks().map(Some);
        }
    }
    Ok(None)
}

/// The stages of every run, with the cost of each.
fn rows(engine: &Engine, runs: &[(Timings, f64)], steps: usize, samples: usize, peaks: Option<Peaks>) -> Vec<Row> {
    let (config, types) = (engine.config(), engine.precisions());
    let on_cpu = engine.memory().is_none();
    // The CPU's cache and convolutions are in f32, whatever the matrices are.
    let activation = if on_cpu { size_of::<f32>() } else { types.vision.size() };
    let step = cost::step(config, [types.step.size(), types.vision.size(), activation]);
    let vocoder = config.vocoder.as_ref().map_or(Cost::default(), |vocoder| {
        let hop: usize = vocoder.upsample_rates.iter().product();
        cost::vocoder(vocoder, samples / hop.max(1), activation)
    });
    type Stage = (&'static str, fn(&(Timings, f64)) -> f64, Cost);
    let stages: [Stage; 6] = [
        ("preprocess", |run| run.0.preprocess, Cost::default()),
        ("vision", |run| run.0.vision, cost::vision(config, types.vision.size())),
        ("prefill", |run| run.0.prefill, cost::prefill(config, types.prefill.size())),
        ("per unit", |run| run.0.per_unit, step),
        ("vocoder", |run| run.0.vocoder, vocoder),
        ("image to samples", |run| run.1, Cost::default()),
    ];
    let mut rows: Vec<Row> = stages.map(|(stage, time, cost)| row(stage, runs.iter().map(time), cost, peaks)).into();
    let decode = Cost { flops: step.flops * steps as f64, bytes: step.bytes * steps as f64 };
    rows.insert(4, row("all units", runs.iter().map(|run| run.0.decode), decode, peaks));
    let remark = if on_cpu { CACHED } else { IMPOSSIBLE };
    rows.into_iter().map(|row| row.remarked(remark)).collect()
}

fn row(stage: &'static str, times: impl Iterator<Item = f64>, cost: Cost, peaks: Option<Peaks>) -> Row {
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    let share = peaks.filter(|_| cost.flops > 0.0).map(|peaks| {
        let floor = (cost.flops / peaks.flops).max(cost.bytes / peaks.bytes);
        floor * 1e3 / median
    });
    let (min, max) = (times.first().copied().unwrap_or(median), times.last().copied().unwrap_or(median));
    Row { stage, median, min, max, flops: cost.flops, bytes: cost.bytes, share, remark: None }
}

impl Row {
    /// The row with `remark`, if it is above a peak.
    fn remarked(mut self, remark: &'static str) -> Row {
        self.remark = self.share.is_some_and(|share| share > 1.0).then_some(remark);
        self
    }
}

impl Report {
    /// The table for people.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{}, weights {}: {}\n{} units, {:.2} s of speech, median of {} runs, commit {}\n\n{:<20} {:>10} {:>20} {:>12} {:>12} {:>8}\n",
            self.device,
            self.dtype,
            self.model,
            self.units,
            self.seconds,
            self.repeat,
            self.commit,
            "stage",
            "ms",
            "min - max",
            "GFLOP/s",
            "GB/s",
            "share"
        );
        for row in &self.rows {
            let rate = |amount: f64| match amount {
                0.0 => "-".to_string(),
                amount => format!("{:.1}", amount / row.median / 1e6),
            };
            let share = row.share.map_or("-".into(), |share| format!("{:.0} %", share * 100.0));
            let mark = if row.remark.is_some() { " !" } else { "" };
            let range = format!("{:.2} - {:.2}", row.min, row.max);
            out += &format!(
                "{:<20} {:>10.2} {range:>20} {:>12} {:>12} {share:>8}{mark}\n",
                row.stage,
                row.median,
                rate(row.flops),
                rate(row.bytes)
            );
        }
        if let Some(Peaks { flops, bytes }) = self.peaks {
            let (flops, bytes) = (flops / 1e9, bytes / 1e9);
            out += &format!(
                "\npeaks measured here: {flops:.0} GFLOP/s, {bytes:.1} GB/s; share is of the one that binds\n"
            );
        }
        if let Some(problem) = &self.peaks_problem {
            out += &format!("\npeaks were not measured: {problem}\n");
        }
        for (stage, remark) in self.rows.iter().filter_map(|row| Some((row.stage, row.remark?))) {
            out += &format!("\n! {stage}: {remark}.\n");
        }
        out
    }

    /// The latency budget as a drawing: one bar, a stretch for each stage.
    pub fn plot(&self) -> String {
        const COLOURS: [&str; 5] = ["#7f7f7f", "#4477aa", "#66ccee", "#228833", "#ee6677"];
        const WIDTH: f64 = 720.0;
        let stages: Vec<&Row> =
            self.rows.iter().filter(|row| row.stage != "per unit" && row.stage != "image to samples").collect();
        let total: f64 = stages.iter().map(|row| row.median).sum();
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"170\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"760\" height=\"170\" fill=\"white\"/>\n<text x=\"20\" y=\"26\">Image to speech: {total:.1} ms for {} units, \
             {:.2} s of sound. {}, {}</text>\n",
            self.units,
            self.seconds,
            escaped(&self.device),
            self.dtype
        );
        let (mut x, mut legend) = (20.0, 20.0);
        for (row, colour) in stages.iter().zip(COLOURS) {
            let width = WIDTH * row.median / total;
            out += &format!("<rect x=\"{x:.1}\" y=\"44\" width=\"{width:.1}\" height=\"44\" fill=\"{colour}\"/>\n");
            out += &format!("<rect x=\"{legend}\" y=\"106\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n");
            out += &format!("<text x=\"{}\" y=\"117\">{}</text>\n", legend + 17.0, row.stage);
            out += &format!("<text x=\"{}\" y=\"136\" fill=\"#555\">{:.1} ms</text>\n", legend + 17.0, row.median);
            x += width;
            legend += 145.0;
        }
        out + &format!(
            "<text x=\"20\" y=\"160\" fill=\"#555\">commit {}, median of {} runs</text>\n</svg>\n",
            self.commit, self.repeat
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_over_the_peak_is_marked() {
        let peaks = Some(Peaks { bytes: 1e9, flops: 1e12 });
        let cost = Cost { flops: 1e12, bytes: 1.0 };
        let rows = [row("vision", [500.0].into_iter(), cost, peaks), row("prefill", [2000.0].into_iter(), cost, peaks)];
        let rows = rows.map(|row| row.remarked(IMPOSSIBLE)).into();
        let report = Report {
            commit: "",
            device: "a device".into(),
            dtype: "f32",
            model: "a model".into(),
            units: 1,
            seconds: 1.0,
            repeat: 1,
            peaks,
            peaks_problem: None,
            rows,
        };
        let table = report.table();
        assert!(table.contains("200 % !") && table.contains("! vision: more than the measured peak"), "{table}");
        assert!(table.contains("50 %\n") && !table.contains("! prefill"), "{table}");
    }
}
