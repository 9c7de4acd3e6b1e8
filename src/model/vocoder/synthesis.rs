//! Sound of units that are still coming. A unit's duration depends on its neighbours, a frame's sound on its own, so a
//! chunk waits until both are known; its samples are those of the whole, bit for bit, and its cost does not depend on the
//! length of the whole.

use std::ops::Range;

use super::receptive_field::{self, ReceptiveField, Support};
use super::{Vocoder, Voice};
use crate::Result;
use crate::backend::Backend;
use crate::config::VocoderConfig;

/// Most frames of the first chunk of a stream, and least of any but the last: the first is what a listener waits for. Its
/// margin costs more than itself, and less and less of later ones, each of which may be twice as long as the one before.
const FIRST_FRAMES: usize = 8;
/// Most frames of any other chunk; the last may be up to twice as long.
const MAX_FRAMES: usize = 1024;
/// Most units whose durations are predicted together.
const MAX_UNITS: usize = 1024;

/// Units as they become known, and how much of them has been made sound.
#[derive(Clone, Debug)]
pub struct Synthesis {
    speaker: Option<u32>,
    /// Whether a unit that repeats the one before is spoken too.
    keeps_repeats: bool,
    units: Vec<u32>,
    /// Whether there will be no more.
    complete: bool,
    /// Units whose duration is known.
    timed: usize,
    /// The unit of every frame of those.
    frames: Vec<u32>,
    /// Frames whose sound was handed out.
    emitted_frames: usize,
    /// Most frames of the next chunk.
    chunk: usize,
}

impl Synthesis {
    /// Handed out in chunks, the first as early as possible.
    pub fn in_chunks(config: &VocoderConfig, speaker: Option<u32>) -> Synthesis {
        Synthesis::with_chunks_of(config, speaker, FIRST_FRAMES)
    }

    /// Handed out in as few chunks as memory should hold: in one, up to 2047 frames.
    pub fn whole(config: &VocoderConfig, speaker: Option<u32>) -> Synthesis {
        Synthesis::with_chunks_of(config, speaker, MAX_FRAMES)
    }

    /// The first chunk has `chunk` frames.
    fn with_chunks_of(config: &VocoderConfig, speaker: Option<u32>, chunk: usize) -> Synthesis {
        // A predicted duration covers the repeats, which its vocoder was trained without.
        let keeps_repeats = config.duration.is_none();
        let (units, frames) = (Vec::new(), Vec::new());
        Synthesis { speaker, keeps_repeats, units, complete: false, timed: 0, frames, emitted_frames: 0, chunk }
    }

    /// More units; where durations are predicted, one that repeats the last adds nothing.
    pub fn extend(&mut self, units: &[u32]) {
        for &unit in units {
            if self.keeps_repeats || self.units.last() != Some(&unit) {
                self.units.push(unit);
            }
        }
    }

    /// No more units will come.
    pub fn finish(&mut self) {
        self.complete = true;
    }

    /// Whether all of the sound was handed out.
    pub fn is_done(&self) -> bool {
        self.complete && self.timed == self.units.len() && self.emitted_frames == self.frames.len()
    }

    /// Sets the most frames of the next chunk; each later one may have up to twice as many as the one before.
    pub fn limit_chunk(&mut self, frames: usize) {
        self.chunk = frames.clamp(1, MAX_FRAMES);
    }

    /// Allows the next chunk this many frames, if that is more than it may have.
    pub fn raise_chunk_limit(&mut self, frames: usize) {
        self.chunk = self.chunk.max(frames.min(MAX_FRAMES));
    }

    /// The frames of the next chunk and their receptive field: as many as are certain, if those are enough.
    fn next(&self, config: &VocoderConfig, support: Support) -> Option<(Range<usize>, ReceptiveField)> {
        let (emitted, known) = (self.emitted_frames, self.frames.len());
        let left = known - emitted;
        let field = |count: usize| receptive_field::of_frames(config, emitted..emitted + count, support);
        if self.complete && self.timed == self.units.len() {
            // The rest joins this chunk if it would make a short last one.
            let count = if left < self.chunk.saturating_mul(2) { left } else { self.chunk };
            return (count > 0).then(|| (emitted..emitted + count, field(count)));
        }
        let (mut certain, mut beyond) = (0, left.min(self.chunk) + 1);
        while certain + 1 < beyond {
            let middle = certain.midpoint(beyond);
            *(if field(middle).frames.end <= known { &mut certain } else { &mut beyond }) = middle;
        }
        (certain >= self.chunk.min(FIRST_FRAMES)).then(|| (emitted..emitted + certain, field(certain)))
    }
}

impl<B: Backend> Vocoder<B> {
    /// The next samples of `synthesis`; `None` until more units are known, and after the last.
    pub fn next_chunk(&self, backend: &B, synthesis: &mut Synthesis) -> Result<Option<Vec<f32>>> {
        self.predict_durations(backend, synthesis)?;
        let Some((wanted, field)) = synthesis.next(&self.config, B::conv1d_support) else { return Ok(None) };
        let known = synthesis.frames.len();
        let ids = synthesis.frames[field.frames.start..field.frames.end.min(known)].to_vec();
        synthesis.emitted_frames = wanted.end;
        synthesis.chunk = synthesis.chunk.saturating_mul(2).min(MAX_FRAMES.max(synthesis.chunk));
        let voice = Voice { speaker: synthesis.speaker, pitch: None };
        let samples = match wanted == (0..known) && synthesis.is_done() {
            true => self.whole(backend, ids, voice)?,
            false => self.part(backend, ids, voice, &field, wanted.start)?,
        };
        Ok(Some(samples))
    }

    /// Predicts the durations of units whose neighbours are known.
    fn predict_durations(&self, backend: &B, synthesis: &mut Synthesis) -> Result<()> {
        let (known, timed) = (synthesis.units.len(), synthesis.timed);
        let duration = self.config.duration.as_ref();
        let field = |units: Range<usize>| receptive_field::of_durations(duration, units, B::conv1d_support);
        let few = known.min(timed + MAX_UNITS);
        let end = if synthesis.complete {
            few
        } else {
            (timed..few)
                .take_while(|&unit| field(unit..unit + 1).units.end <= known)
                .last()
                .map_or(timed, |unit| unit + 1)
        };
        if end == timed {
            return Ok(());
        }
        let field = field(timed..end);
        let read = &synthesis.units[field.units.start..field.units.end.min(known)];
        let durations = self.durations_of(backend, read, &field)?;
        for (&unit, &frames) in synthesis.units[timed..end].iter().zip(&durations[timed - field.layers[1].start..]) {
            synthesis.frames.extend(std::iter::repeat_n(unit, frames));
        }
        synthesis.timed = end;
        Ok(())
    }
}
