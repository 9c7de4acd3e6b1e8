//! Sound: samples between -1 and 1 as a mono 16-bit WAV file. Samples are rounded as the reference's writer rounds them:
//! floor(32768 x), clamped. [`read`] takes recordings in, [`folder`] finds them.

pub mod cepstra;
pub mod folder;
pub mod read;

use std::path::Path;

use crate::{Error, Result, files};

/// Maximum samples of one file: its header counts bytes in 32 bits.
const MAX_SAMPLES: usize = (u32::MAX as usize - 64) / 2;

/// Bytes before the first sample.
const HEADER_BYTES: u32 = 44;

/// Maximum samples per second.
pub const MAX_RATE: u32 = 384_000;

/// A sample as it stands in the file; 0 for NaN.
pub fn to_i16(sample: f32) -> i16 {
    (sample * 32768.0).floor() as i16 // the cast clamps
}

/// A whole WAV file.
pub fn wav_bytes(samples: &[f32], rate: u32) -> Result<Vec<u8>> {
    let mut bytes = wav_header(rate, Some(samples.len()))?;
    bytes.extend(samples.iter().flat_map(|&sample| to_i16(sample).to_le_bytes()));
    Ok(bytes)
}

/// The header of a WAV file, before [`pcm_bytes`] of `samples` samples; the same length for any number of them. `None` is for
/// a pipe, where the number is not known yet: players take the lengths in it for "to the end".
pub fn wav_header(rate: u32, samples: Option<usize>) -> Result<Vec<u8>> {
    if let Some(count) = samples.filter(|&count| count > MAX_SAMPLES) {
        let problem = format!("{count} samples are too many for a WAV file: write it in parts");
        return Err(Error::Shape { op: "wav", problem });
    }
    if rate == 0 || rate > MAX_RATE {
        let problem = format!("{rate} samples per second are not possible: give 1 to {MAX_RATE}");
        return Err(Error::Shape { op: "wav", problem });
    }
    let mut header = Vec::with_capacity(HEADER_BYTES as usize);
    header.extend(b"RIFF");
    header.extend(samples.map_or(u32::MAX, |count| HEADER_BYTES - 8 + 2 * count as u32).to_le_bytes());
    header.extend(b"WAVEfmt ");
    header.extend(16u32.to_le_bytes()); // bytes of this chunk
    header.extend(1u16.to_le_bytes()); // PCM
    header.extend(1u16.to_le_bytes()); // mono
    header.extend(rate.to_le_bytes());
    header.extend((2 * rate).to_le_bytes()); // bytes a second
    header.extend(2u16.to_le_bytes()); // bytes a sample
    header.extend(16u16.to_le_bytes()); // bits a sample
    header.extend(b"data");
    header.extend(samples.map_or(u32::MAX, |count| 2 * count as u32).to_le_bytes());
    Ok(header)
}

/// Samples as they stand in a WAV file: 16 bits each, little-endian.
pub fn pcm_bytes(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|&sample| to_i16(sample).to_le_bytes()).collect()
}

/// Writes a WAV file at `path`, all of it or nothing.
pub fn write_wav(path: impl AsRef<Path>, samples: &[f32], rate: u32) -> Result<()> {
    files::write_atomically(path.as_ref(), &wav_bytes(samples, rate)?)
}
