//! Reports on captions: a sentence, the units, or JSON.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use im2sp::{Caption as Spoken, CaptionStream, Engine, Result, files};
use serde_json::{Map, Value, json};

use super::super::output::{self, Destination, Written};
use super::super::print::{insert_path, note, offer_json, offer_line, shown};
use super::Caption;
use super::jobs::Job;

/// Writes the result of one caption. Gives back what to print about it.
pub fn finish(args: &Caption, engine: &Engine, job: &Job, caption: &mut Spoken) -> Result<Output> {
    let clock = Instant::now();
    let seconds = caption.samples.len() as f64 / f64::from(caption.sample_rate.max(1));
    let units = || caption.units.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    match &job.destination {
        Some(Destination::File(path)) if args.no_audio => {
            files::write_atomically(path, format!("{}\n", units()).as_bytes())?;
        }
        Some(destination) => {
            let (samples, sample_rate) = (std::mem::take(&mut caption.samples), caption.sample_rate);
            output::write_whole(destination, args.format, samples, sample_rate)?;
        }
        None => (),
    }
    let write = clock.elapsed().as_secs_f64() * 1e3;
    let timings = &caption.timings;
    if args.json {
        let mut object = head(job);
        object.extend(fields(json!({
            "tokens": caption.tokens,
            "units": caption.units,
            "duration_s": seconds,
            "device": engine.device(),
            "dtype": engine.dtype(),
            "timings": {
                "decode_image": timings.read,
                "preprocess": timings.preprocess,
                "vision": timings.vision,
                "prefill": timings.prefill,
                "decode": timings.decode,
                "per_unit": timings.per_unit,
                "vocoder": timings.vocoder,
                "write": write,
            },
        })));
        return Ok(Output::Json(object.into()));
    }
    let Some(destination) = &job.destination else { return Ok(Output::Line(units())) };
    let total =
        timings.read + timings.preprocess + timings.vision + timings.prefill + timings.decode + timings.vocoder + write;
    let made = if args.no_audio { String::new() } else { format!("{seconds:.2} s of speech from ") };
    Ok(sentence(job, destination, &format!("{made}{} units in {total:.0} ms", caption.units.len())))
}

/// Report on a streamed caption; the program began at `started`.
pub fn streamed(
    args: &Caption,
    engine: &Engine,
    job: &Job,
    stream: &CaptionStream,
    written: &Written,
    started: Instant,
) -> Output {
    let first = written.first.map(|at| at.duration_since(started).as_secs_f64() * 1e3);
    let total = started.elapsed().as_secs_f64() * 1e3;
    let seconds = written.samples as f64 / f64::from(stream.sample_rate().max(1));
    if args.json {
        let mut object = head(job);
        object.extend(fields(json!({
            "tokens": stream.tokens(),
            "units": stream.units(),
            "duration_s": seconds,
            "device": engine.device(),
            "dtype": engine.dtype(),
            "timings": { "first_sound": first, "total": total },
        })));
        return Output::Json(object.into());
    }
    let first = first.map_or("none".into(), |first| format!("{first:.0} ms"));
    let units = stream.units().len();
    let made = format!("{seconds:.2} s of speech from {units} units in {total:.0} ms, the first sound after {first}");
    sentence(job, job.destination.as_ref().unwrap_or(&Destination::Standard), &made)
}

/// The names of a job as JSON.
fn head(job: &Job) -> Map<String, Value> {
    let mut object = Map::new();
    insert_path(&mut object, "image", &job.image);
    match &job.destination {
        Some(destination) => insert_path(&mut object, "output", destination.path()),
        None => drop(object.insert("output".into(), Value::Null)),
    }
    object
}

fn fields(value: Value) -> Map<String, Value> {
    if let Value::Object(fields) = value { fields } else { Map::new() }
}

fn sentence(job: &Job, destination: &Destination, made: &str) -> Output {
    let line = format!("{} -> {}: {made}", shown(output::input_name(&job.image)), shown(destination.path()));
    if *destination == Destination::Standard { Output::Remark(line) } else { Output::Line(line) }
}

/// One thing to print.
pub enum Output {
    Json(Value),
    /// On standard output.
    Line(String),
    /// On standard error, since standard output carries sound.
    Remark(String),
}

impl Output {
    /// Prints it. Breaks where nobody reads standard output any more.
    pub fn print(&self) -> Result<ControlFlow<()>> {
        match self {
            Output::Json(value) => offer_json(value),
            Output::Line(line) => offer_line(line),
            Output::Remark(line) => {
                note(line);
                Ok(ControlFlow::Continue(()))
            }
        }
    }
}

/// Outputs printed in the order of the images, whatever the order in which they become known.
#[derive(Default)]
pub struct OrderedOutput {
    next: usize,
    waiting: BTreeMap<usize, Option<Output>>,
}

impl OrderedOutput {
    /// Takes the output about image `index`, if there is any, and prints those whose turn it is. Breaks where nobody reads
    /// standard output any more.
    pub fn put(&mut self, index: usize, output: Option<Output>) -> Result<ControlFlow<()>> {
        self.waiting.insert(index, output);
        while let Some(output) = self.waiting.remove(&self.next) {
            self.next += 1;
            if let Some(output) = output
                && output.print()?.is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
