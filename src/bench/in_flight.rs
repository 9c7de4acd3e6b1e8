//! `im2sp bench --in-flight N`: images a second when N captions are decoded together, units only and with sound.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;

use crate::generate::GenerateOptions;
use crate::image::Image;
use crate::{CaptionOptions, Engine, Error, Result, Timings};

/// Images in flight, captions and their length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InFlightOptions {
    /// Captions decoded together.
    pub in_flight: usize,
    /// Captions that are timed, after some that are not.
    pub images: usize,
    /// Maximum units of a caption.
    pub units: usize,
}

/// Throughput of one kind of run.
#[derive(Clone, Debug, Serialize)]
pub struct Throughput {
    /// "units only" or "with sound".
    pub kind: &'static str,
    /// Captions a second, from the first image to the last result.
    pub images_per_second: f64,
    /// Mean units of a caption.
    pub units: f64,
    /// Mean seconds of sound of a caption.
    pub seconds_of_sound: f64,
    /// Mean milliseconds that a caption spent in each stage, in their order. Stages of different captions overlap, and vision
    /// and prefill count for every caption that went through together.
    pub stages: Vec<(&'static str, f64)>,
}

/// A whole measurement.
#[derive(Clone, Debug, Serialize)]
pub struct InFlightReport {
    /// Commit of the program.
    pub commit: &'static str,
    /// Name of the device.
    pub device: String,
    /// Type of the weights.
    pub dtype: &'static str,
    /// Description of the model.
    pub model: String,
    /// Captions decoded together.
    pub in_flight: usize,
    /// Captions timed in each run.
    pub images: usize,
    /// Units only, then with sound where the model has a vocoder.
    pub runs: Vec<Throughput>,
}

/// Rounds of full batches before the clock runs: shapes are captured at their second sight and replayed from the third on.
const WARM_UP: usize = 3;

type Stage = (&'static str, fn(&Timings) -> f64);

const STAGES: [Stage; 6] = [
    ("read", |t| t.read),
    ("preprocess", |t| t.preprocess),
    ("vision", |t| t.vision),
    ("prefill", |t| t.prefill),
    ("decode", |t| t.decode),
    ("vocoder", |t| t.vocoder),
];

/// Captions `image` as often as the options say, by [`Engine::caption_many`].
///
/// # Errors
/// If a count is 0 or more than can be in flight, or a caption fails.
pub fn run(
    engine: &Engine,
    image: &Image,
    options: InFlightOptions,
    on_progress: &mut dyn FnMut(usize),
) -> Result<InFlightReport> {
    let InFlightOptions { in_flight, images, units } = options;
    if images == 0 || units == 0 {
        return Err(Error::Option { option: "in-flight", problem: "images and units must be at least 1".into() });
    }
    let generate = GenerateOptions { max_length: units.saturating_add(1), ..Default::default() };
    let mut kinds = vec![("units only", true)];
    kinds.extend(engine.config().vocoder.is_some().then_some(("with sound", false)));
    let mut runs = Vec::with_capacity(kinds.len());
    for (kind, no_audio) in kinds {
        let caption = CaptionOptions { generate, no_audio, ..Default::default() };
        // Every slot is used, and every shape of a full batch seen and captured, before the clock runs.
        captioned(engine, image, &caption, WARM_UP * in_flight, in_flight, &mut |_| {})?;
        let clock = Instant::now();
        let captions = captioned(engine, image, &caption, images, in_flight, on_progress)?;
        runs.push(captions.throughput(kind, clock.elapsed().as_secs_f64()));
    }
    Ok(InFlightReport {
        commit: env!("IM2SP_COMMIT"),
        device: engine.device(),
        dtype: engine.dtype(),
        model: engine.config().description.clone().unwrap_or_else(|| "a model directory".into()),
        in_flight,
        images,
        runs,
    })
}

/// Sums over captions.
#[derive(Default)]
struct Captions {
    count: usize,
    units: usize,
    seconds: f64,
    stages: [f64; STAGES.len()],
}

fn captioned(
    engine: &Engine,
    image: &Image,
    options: &CaptionOptions,
    images: usize,
    in_flight: usize,
    on_progress: &mut dyn FnMut(usize),
) -> Result<Captions> {
    let (mut captions, mut failed) = (Captions::default(), None);
    let source = |index: usize| (index < images).then(|| Ok(image.clone()));
    engine.caption_many(&source, options, in_flight, &mut |_, caption| match caption {
        Ok(caption) => {
            captions.count += 1;
            captions.units += caption.units.len();
            captions.seconds += caption.samples.len() as f64 / f64::from(caption.sample_rate.max(1));
            captions.stages.iter_mut().zip(STAGES).for_each(|(sum, (_, time))| *sum += time(&caption.timings));
            on_progress(captions.count);
            ControlFlow::Continue(())
        }
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(captions), Err)
}

impl Captions {
    fn throughput(&self, kind: &'static str, seconds: f64) -> Throughput {
        let count = self.count as f64;
        Throughput {
            kind,
            images_per_second: count / seconds,
            units: self.units as f64 / count,
            seconds_of_sound: self.seconds / count,
            stages: STAGES.iter().zip(self.stages).map(|((name, _), sum)| (*name, sum / count)).collect(),
        }
    }
}

impl InFlightReport {
    /// The table for people.
    pub fn table(&self) -> String {
        let InFlightReport { commit, device, dtype, model, in_flight, images, runs } = self;
        let mut out = format!(
            "{device}, weights {dtype}: {model}\n{in_flight} captions in flight, {images} images, commit {commit}\n\n{:<12} {:>9} {:>8} {:>9}",
            "", "images/s", "units", "sound s"
        );
        STAGES.iter().for_each(|(name, _)| out += &format!(" {name:>10}"));
        for run in runs {
            let Throughput { kind, images_per_second, units, seconds_of_sound, stages } = run;
            out += &format!("\n{kind:<12} {images_per_second:>9.1} {units:>8.1} {seconds_of_sound:>9.2}");
            stages.iter().for_each(|(_, milliseconds)| out += &format!(" {milliseconds:>10.2}"));
        }
        out + "\n\nstages: mean milliseconds of a caption; stages of different captions overlap\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn both_kinds_are_measured_and_empty_runs_refused() -> Result<()> {
        let engine = Engine::load("tests/scenes", Device::Cpu)?;
        let image = Image::from_rgb(8, 8, vec![90; 8 * 8 * 3])?;
        let options = InFlightOptions { in_flight: 2, images: 3, units: 4 };
        let mut seen = 0;
        let report = run(&engine, &image, options, &mut |n| seen = n)?;
        assert_eq!((seen, report.runs.len()), (3, 2));
        assert!(report.runs.iter().all(|run| run.images_per_second > 0.0 && run.units <= 4.0));
        assert_eq!(report.runs[0].seconds_of_sound, 0.0);
        assert!(report.runs[1].seconds_of_sound > 0.0);
        assert!(report.table().contains("with sound"));
        for options in [InFlightOptions { images: 0, ..options }, InFlightOptions { units: 0, ..options }] {
            assert!(run(&engine, &image, options, &mut |_| {}).is_err());
        }
        Ok(())
    }
}
