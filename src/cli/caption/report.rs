//! What is said about captions: a sentence, the units, or JSON.

use std::collections::BTreeMap;
use std::time::Instant;

use im2sp::{Caption as Spoken, CaptionStream, Engine, Result};
use serde_json::json;

use super::super::sound::{self, Written};
use super::super::{print_json, print_line};
use super::Caption;
use super::work::Item;

/// Writes the sound of one caption. Gives back what is to be said about it, when its turn has come.
pub fn finish(asked: &Caption, engine: &Engine, item: &Item, caption: &Spoken) -> Result<Said> {
    let clock = Instant::now();
    if let Some(target) = &item.target {
        sound::write(target, asked.format, &caption.samples, caption.sample_rate)?;
    }
    let write = clock.elapsed().as_secs_f64() * 1e3;
    let seconds = caption.samples.len() as f64 / f64::from(caption.sample_rate.max(1));
    let timings = &caption.timings;
    if asked.json {
        return Ok(Said::Json(json!({
            "image": item.image.to_string_lossy(),
            "output": item.target.as_ref().map(|target| target.to_string_lossy()),
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
    }
    let Some(target) = &item.target else {
        let units: Vec<String> = caption.units.iter().map(u32::to_string).collect();
        return Ok(Said::Line(units.join(" ")));
    };
    let total =
        timings.read + timings.preprocess + timings.vision + timings.prefill + timings.decode + timings.vocoder + write;
    let said = format!(
        "{} -> {}: {seconds:.2} s of speech from {} units in {total:.0} ms",
        item.image.display(),
        target.display(),
        caption.units.len()
    );
    Ok(if sound::is_standard_output(target) { Said::Aside(said) } else { Said::Line(said) })
}

/// About a caption that was heard while it was made; it began at `started`.
pub fn streamed(
    asked: &Caption,
    engine: &Engine,
    item: &Item,
    stream: &CaptionStream,
    written: &Written,
    started: Instant,
) -> Said {
    let first = written.first.map(|at| at.duration_since(started).as_secs_f64() * 1e3);
    let total = started.elapsed().as_secs_f64() * 1e3;
    let seconds = written.samples as f64 / f64::from(stream.sample_rate().max(1));
    let target = item.target.clone().unwrap_or_default();
    if asked.json {
        return Said::Json(json!({
            "image": item.image.to_string_lossy(),
            "output": target.to_string_lossy(),
            "tokens": stream.tokens(),
            "units": stream.units(),
            "duration_s": seconds,
            "device": engine.device(),
            "dtype": engine.dtype(),
            "timings": { "first_sound": first, "total": total },
        }));
    }
    let first = first.map_or("none".into(), |first| format!("{first:.0} ms"));
    let said = format!(
        "{} -> {}: {seconds:.2} s of speech from {} units in {total:.0} ms, the first sound after {first}",
        item.image.display(),
        target.display(),
        stream.units().len()
    );
    if sound::is_standard_output(&target) { Said::Aside(said) } else { Said::Line(said) }
}

/// Something to be said.
pub enum Said {
    Json(serde_json::Value),
    /// On standard output.
    Line(String),
    /// On standard error, since standard output carries sound.
    Aside(String),
}

impl Said {
    pub fn say(&self) -> Result<()> {
        match self {
            Said::Json(value) => print_json(value)?,
            Said::Line(line) => print_line(line)?,
            Said::Aside(line) => eprintln!("im2sp: {line}"),
        }
        Ok(())
    }
}

/// Things said in the order of the pictures, whatever the order in which they become known.
#[derive(Default)]
pub struct InOrder {
    next: usize,
    waiting: BTreeMap<usize, Option<Said>>,
}

impl InOrder {
    /// What is said about picture `index`, if anything.
    pub fn put(&mut self, index: usize, said: Option<Said>) -> Result<()> {
        self.waiting.insert(index, said);
        while let Some(said) = self.waiting.remove(&self.next) {
            self.next += 1;
            if let Some(said) = said {
                said.say()?;
            }
        }
        Ok(())
    }
}
