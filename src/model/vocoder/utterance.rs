//! Sound of units that are still coming. A unit's duration depends on its neighbours, a frame's sound on its own, so a
//! chunk waits until both are known; its samples are those of the whole, bit for bit.

use std::ops::Range;

use super::context::{self, Reach};
use super::{Vocoder, Voice};
use crate::backend::Backend;
use crate::config::VocoderConfig;
use crate::{Error, Result};

/// Most frames of the first chunk of a stream, and least of any but the last: the first is what a listener waits for. Its
/// margin costs more than itself, and less and less of later ones, each of which may be twice as long as the one before.
const FIRST_FRAMES: usize = 8;
const MAX_FRAMES: usize = 1024;

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
    /// Most frames of the next chunk.
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

    /// The next chunk may have this many frames, if that is more than twice as many as the last.
    pub fn at_most(&mut self, frames: usize) {
        self.chunk = self.chunk.max(frames.min(MAX_FRAMES));
    }

    /// No more units will come.
    pub fn finish(&mut self) {
        self.complete = true;
    }

    /// The next chunk has at most this many frames, and each later one up to twice as many as the one before.
    pub fn next_chunk(&mut self, frames: usize) {
        self.chunk = frames.clamp(1, MAX_FRAMES);
    }

    /// The next chunk and what goes into it: as much as is certain, if that is enough.
    fn next(&self, config: &VocoderConfig, period: usize) -> Option<(Range<usize>, Reach)> {
        let (spoken, known) = (self.spoken, self.frames.len());
        let left = known - spoken;
        let reach = |count: usize| context::of_frames(config, spoken..spoken + count, period);
        if self.complete && self.timed == self.units.len() {
            // What would be left over for a short last chunk joins this one.
            let count = if left < self.chunk.saturating_mul(2) { left } else { self.chunk };
            return (count > 0).then(|| (spoken..spoken + count, reach(count)));
        }
        let (mut certain, mut beyond) = (0, left.min(self.chunk) + 1);
        while certain + 1 < beyond {
            let middle = certain.midpoint(beyond);
            *(if reach(middle).frames.end <= known { &mut certain } else { &mut beyond }) = middle;
        }
        (certain >= self.chunk.min(FIRST_FRAMES)).then(|| (spoken..spoken + certain, reach(certain)))
    }
}

impl<B: Backend> Vocoder<B> {
    /// The next samples of `utterance`; `None` until more units are known, and after the last.
    pub fn advance(&self, backend: &B, utterance: &mut Utterance) -> Result<Option<Vec<f32>>> {
        self.time(backend, utterance)?;
        let next = utterance.next(&self.config, B::CONVOLUTION_PERIOD);
        let Some((wanted, reach)) = next else { return Ok(None) };
        let known = utterance.frames.len();
        let ids = utterance.frames[reach.frames.start..reach.frames.end.min(known)].to_vec();
        utterance.spoken = wanted.end;
        utterance.chunk = utterance.chunk.saturating_mul(2).min(MAX_FRAMES.max(utterance.chunk));
        let voice = Voice { speaker: utterance.speaker, pitch: None };
        let samples = match wanted == (0..known) {
            true => self.whole(backend, ids, voice)?,
            false => self.part(backend, ids, voice, &reach, wanted.start)?,
        };
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
