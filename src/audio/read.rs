//! Recordings: WAV (8 to 32 bits, float, any rate) and FLAC, decoded by symphonia, to one channel at the rate a model takes,
//! resampled by rubato. Channels are averaged. A file that ends early, or whose checksum is wrong, is refused.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler};
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as Problem;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

use crate::{Error, Result, files};

/// Rates that recordings may have.
const RATES: std::ops::RangeInclusive<u32> = 1_000..=768_000;
/// Longest recording. A few bytes of FLAC can stand for seconds of silence, so the size of a file says little.
const MAX_SECONDS: u64 = 8 * 3600;
/// Frames that are resampled together.
const RESAMPLED: usize = 1 << 14;

/// The samples of the recording at `path`, between -1 and 1, of one channel at `rate` samples a second.
///
/// # Errors
/// If it cannot be read, is neither WAV nor FLAC, holds no samples or one that is not finite, or ends early.
pub fn read(path: &Path, rate: u32) -> Result<Vec<f32>> {
    let (samples, own) = decode(path)?;
    if samples.is_empty() {
        return Err(Error::audio(path, "holds no samples"));
    }
    if let Some(at) = samples.iter().position(|sample| !sample.is_finite()) {
        return Err(Error::audio(path, format!("sample {at} is no finite number: the recording is damaged")));
    }
    resample(path, samples, own, rate)
}

/// The average of all channels, and the samples a second.
fn decode(path: &Path) -> Result<(Vec<f32>, u32)> {
    let file = open(path)?;
    let fail = |problem: Problem| match problem {
        Problem::IoError(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::audio(path, "ends early: copy or download it again")
        }
        Problem::IoError(source) => Error::io("read", path)(source),
        other => Error::audio(path, format!("cannot be decoded ({other}): save it as 16-bit WAV or as FLAC")),
    };
    let stream = MediaSourceStream::new(Box::new(file), Default::default());
    let mut format = symphonia::default::get_probe()
        .probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default())
        .map_err(fail)?;
    let track = format.default_track(TrackType::Audio);
    let (id, frames, parameters) = track
        .and_then(|track| Some((track.id, track.num_frames, track.codec_params.as_ref()?.audio()?)))
        .ok_or_else(|| Error::audio(path, "holds no sound"))?;
    let rate = parameters.sample_rate.filter(|rate| RATES.contains(rate)).ok_or_else(|| {
        let rate = parameters.sample_rate.map_or("an unknown number of".into(), |rate| rate.to_string());
        let problem = format!("has {rate} samples a second, expected {} to {}", RATES.start(), RATES.end());
        Error::audio(path, problem)
    })?;
    let options = AudioDecoderOptions::default().verify(true);
    let mut decoder = symphonia::default::get_codecs().make_audio_decoder(parameters, &options).map_err(fail)?;
    let most = MAX_SECONDS * u64::from(rate);
    let samples = mono(&mut *format, &mut *decoder, id, frames.is_none(), most).map_err(fail)?;
    if samples.len() as u64 > most {
        return Err(Error::audio(path, format!("is longer than {} hours: cut it", MAX_SECONDS / 3600)));
    }
    if let Some(expected) = frames.filter(|&expected| (samples.len() as u64) < expected) {
        let problem = format!("ends after {} of {expected} samples: copy or download it again", samples.len());
        return Err(Error::audio(path, problem));
    }
    if decoder.finalize().verify_ok == Some(false) {
        return Err(Error::audio(path, "its samples do not match its checksum: copy or download it again"));
    }
    Ok((samples, rate))
}

/// The file, unless its content is clearly no recording.
fn open(path: &Path) -> Result<File> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(Error::io("read", path))?;
    let about = file.metadata().map_err(Error::io("read", path))?;
    if about.is_dir() {
        return Err(Error::audio(path, "is a folder: give one file of it"));
    }
    if !about.is_file() {
        return Err(Error::audio(path, "is a pipe or a device: write the recording to a file first"));
    }
    file.take(1 << 12).read_to_end(&mut start).map_err(Error::io("read", path))?;
    let known = [&b"RIFF"[..], b"fLaC", b"ID3"].iter().any(|magic| start.starts_with(magic));
    if start.is_empty() {
        return Err(Error::audio(path, "is empty"));
    }
    if !known {
        let other = files::mistaken_content(&start);
        return Err(Error::audio(path, other.unwrap_or_else(|| "is neither WAV nor FLAC: convert it to one".into())));
    }
    File::open(path).map_err(Error::io("read", path))
}

/// The average of the channels of all packets of a track; of one that is `open`, as it came out of a pipe and does not say its
/// length, up to the end of the file. Stops at the first packet that makes more than `most`.
fn mono(
    format: &mut dyn FormatReader,
    decoder: &mut dyn AudioDecoder,
    track: u32,
    open: bool,
    most: u64,
) -> std::result::Result<Vec<f32>, Problem> {
    let (mut samples, mut packet_samples) = (Vec::new(), Vec::new());
    while samples.len() as u64 <= most {
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(Problem::IoError(end)) if open && end.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(problem) => return Err(problem),
        };
        if packet.track_id != track {
            continue;
        }
        let packet = decoder.decode(&packet)?;
        let channels = packet.num_planes().max(1);
        packet.copy_to_vec_interleaved::<f32>(&mut packet_samples);
        if channels == 1 {
            samples.extend_from_slice(&packet_samples);
        } else {
            let frames = packet_samples.chunks_exact(channels);
            samples.extend(frames.map(|frame| frame.iter().sum::<f32>() / channels as f32));
        }
    }
    Ok(samples)
}

/// Samples at another rate, as many as last equally long.
fn resample(path: &Path, samples: Vec<f32>, from: u32, to: u32) -> Result<Vec<f32>> {
    if from == to {
        return Ok(samples);
    }
    let fail = |problem: String| Error::audio(path, format!("cannot be resampled from {from} to {to}: {problem}"));
    let mut resampler = Fft::<f32>::new(from as usize, to as usize, RESAMPLED, 1, FixedSync::Input)
        .map_err(|problem| fail(problem.to_string()))?;
    let count = samples.len();
    let input = InterleavedSlice::new(&samples, 1, count).map_err(|problem| fail(problem.to_string()))?;
    let output = resampler.process_all(&input, count, None).map_err(|problem| fail(problem.to_string()))?;
    Ok(output.take_data())
}
