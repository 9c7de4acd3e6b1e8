//! Sound of units that are still coming. A unit's duration depends on its neighbours, a frame's sound on its own, so a
//! chunk waits until both are known; its samples are those of the whole, bit for bit.

use std::ops::Range;

use super::{Vocoder, Voice, context};
use crate::backend::Backend;
use crate::{Error, Result};

/// Frames of the first chunk of a stream; each of the later ones has twice as many as the one before, up to the most.
/// The first is what a listener waits for. Its margin costs more than itself, and less and less of later ones.
const FIRST_FRAMES: usize = 8;
const MOST_FRAMES: usize = 256;

/// What is spoken: units as they become known, and how much of them has been made sound.
#[derive(Clone, Debug)]
pub struct Utterance {
    speaker: Option<u32>,
    /// Without repetitions.
    units: Vec<u32>,
    /// Whether there will be no more.
    complete: bool,
    /// Units whose duration is known.
    timed: usize,
    /// The unit of every frame of those.
    frames: Vec<u32>,
    /// Frames whose sound was handed out.
    spoken: usize,
    /// Frames of the next chunk.
    chunk: usize,
}

impl Utterance {
    /// Handed out in chunks, the first as early as possible.
    pub fn in_chunks(speaker: Option<u32>) -> Utterance {
        Utterance::with_chunks_of(speaker, FIRST_FRAMES)
    }

    /// Handed out in one piece.
    pub fn whole(speaker: Option<u32>) -> Utterance {
        Utterance::with_chunks_of(speaker, usize::MAX)
    }

    /// The first chunk has `frames` frames.
    fn with_chunks_of(speaker: Option<u32>, frames: usize) -> Utterance {
        let (units, frames_so_far) = (Vec::new(), Vec::new());
        Utterance { speaker, units, complete: false, timed: 0, frames: frames_so_far, spoken: 0, chunk: frames }
    }

    /// Another unit; one that repeats the last adds nothing.
    pub fn push(&mut self, unit: u32) {
        if self.units.last() != Some(&unit) {
            self.units.push(unit);
        }
    }

    /// No more units will come.
    pub fn finish(&mut self) {
        self.complete = true;
    }

    /// The next chunk has this many frames, and later ones twice as many as the one before.
    pub fn next_chunk(&mut self, frames: usize) {
        self.chunk = frames.max(1);
    }

    /// Frames of the next chunk, if they are there.
    fn wanted(&self) -> Range<usize> {
        let left = self.frames.len() - self.spoken;
        let ends = self.complete && self.timed == self.units.len();
        // What would be left over for a short last chunk joins this one.
        let count = if ends && left < self.chunk.saturating_mul(2) { left } else { self.chunk };
        self.spoken..self.spoken.saturating_add(count)
    }
}

impl<B: Backend> Vocoder<B> {
    /// The next samples of `utterance`; `None` until more units are known, and after the last.
    pub fn advance(&self, backend: &B, utterance: &mut Utterance) -> Result<Option<Vec<f32>>> {
        self.time(backend, utterance)?;
        let wanted = utterance.wanted();
        if wanted.is_empty() || wanted.end > utterance.frames.len() {
            return Ok(None);
        }
        let cut = context::of_frames(&self.config, wanted.clone(), B::CONVOLUTION_PERIOD);
        let known = utterance.frames.len();
        let ends = utterance.complete && utterance.timed == utterance.units.len();
        if cut.end > known && !ends {
            return Ok(None);
        }
        let cut = cut.start..cut.end.min(known);
        let voice = Voice { speaker: utterance.speaker, pitch: None };
        let hop = self.config.hop();
        let kept = (wanted.start - cut.start) * hop..(wanted.end - cut.start) * hop;
        let samples = self.sound(backend, utterance.frames[cut].to_vec(), voice, kept)?;
        utterance.spoken = wanted.end;
        utterance.chunk = utterance.chunk.saturating_mul(2).min(MOST_FRAMES.max(utterance.chunk));
        Ok(Some(samples))
    }

    /// Durations of all units whose neighbours are known.
    fn time(&self, backend: &B, utterance: &mut Utterance) -> Result<()> {
        let (known, timed) = (utterance.units.len(), utterance.timed);
        let reach = |units: Range<usize>| match &self.config.duration {
            Some(duration) => {
                let hidden = context::convolution(units, duration.kernel, 1, B::CONVOLUTION_PERIOD);
                let read = context::convolution(hidden, duration.kernel, 1, B::CONVOLUTION_PERIOD);
                read.start - read.start % B::CONVOLUTION_PERIOD..read.end
            }
            None => units,
        };
        let end = if utterance.complete {
            known
        } else {
            (timed..known).take_while(|&unit| reach(unit..unit + 1).end <= known).last().map_or(timed, |unit| unit + 1)
        };
        if end == timed {
            return Ok(());
        }
        let cut = reach(timed..end);
        let cut = cut.start..cut.end.min(known);
        let durations = self.durations(backend, &utterance.units[cut.clone()])?;
        for (&unit, &frames) in utterance.units[timed..end].iter().zip(&durations[timed - cut.start..]) {
            utterance.frames.extend(std::iter::repeat_n(unit, frames));
        }
        utterance.timed = end;
        Ok(())
    }

    /// An error if a unit is none of this vocoder's.
    pub(super) fn check_units(&self, units: &[u32]) -> Result<()> {
        let most = self.config.num_embeddings;
        match units.iter().find(|&&unit| unit as usize >= most) {
            None => Ok(()),
            Some(unit) => {
                let problem = format!("unit {unit} is out of range: this vocoder knows 0 to {}", most - 1);
                Err(Error::Units { problem })
            }
        }
    }
}
