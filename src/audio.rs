//! Sound: samples between -1 and 1 as a mono 16-bit WAV file. Samples are rounded as the reference's writer rounds them:
//! floor(32768 x), clamped.

use std::io::Cursor;
use std::path::Path;

use crate::{Error, Result, files};

/// Most samples of one file: its header counts bytes in 32 bits.
const MAX_SAMPLES: usize = (u32::MAX as usize - 64) / 2;

/// Most samples per second.
pub const MAX_RATE: u32 = 384_000;

/// A sample as it stands in the file; 0 for NaN.
pub fn to_i16(sample: f32) -> i16 {
    (sample * 32768.0).floor() as i16 // the cast clamps
}

/// A whole WAV file.
pub fn wav_bytes(samples: &[f32], rate: u32) -> Result<Vec<u8>> {
    if samples.len() > MAX_SAMPLES {
        let problem = format!("{} samples are too many for a WAV file: write it in parts", samples.len());
        return Err(Error::Shape { op: "wav", problem });
    }
    if rate == 0 || rate > MAX_RATE {
        let problem = format!("{rate} samples per second are not possible: give 1 to {MAX_RATE}");
        return Err(Error::Shape { op: "wav", problem });
    }
    let spec =
        hound::WavSpec { channels: 1, sample_rate: rate, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
    encode(samples, spec).map_err(|error| Error::Shape { op: "wav", problem: error.to_string() })
}

/// The head of a WAV file whose length is not known yet, as it stands before samples in a pipe: [`pcm_bytes`] follow it.
/// Players take the lengths in it for "to the end".
pub fn wav_head(rate: u32) -> Result<Vec<u8>> {
    let mut head = wav_bytes(&[], rate)?;
    let unknown = u32::MAX.to_le_bytes();
    // After "RIFF", and after "data" at the end.
    head[4..8].copy_from_slice(&unknown);
    let end = head.len();
    head[end - 4..].copy_from_slice(&unknown);
    Ok(head)
}

/// Samples as they stand in a WAV file: 16 bits each, little-endian.
pub fn pcm_bytes(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|&sample| to_i16(sample).to_le_bytes()).collect()
}

/// Writes a WAV file at `path`, all of it or nothing.
pub fn write_wav(path: impl AsRef<Path>, samples: &[f32], rate: u32) -> Result<()> {
    files::write_atomically(path.as_ref(), &wav_bytes(samples, rate)?)
}

fn encode(samples: &[f32], spec: hound::WavSpec) -> hound::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(44 + 2 * samples.len());
    let mut wav = hound::WavWriter::new(Cursor::new(&mut bytes), spec)?;
    for sample in samples {
        wav.write_sample(to_i16(*sample))?;
    }
    wav.finalize()?;
    Ok(bytes)
}
