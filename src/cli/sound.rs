//! Where sound goes: files, standard output, pipes; whole, or while it is being made.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use clap::ValueEnum;
use im2sp::{CaptionStream, Error, Result, audio, files};

/// How samples are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A WAV file
    Wav,
    /// 16-bit little-endian samples and nothing else
    Pcm,
}

impl Format {
    /// What files of this format are called.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Wav => "wav",
            Format::Pcm => "pcm",
        }
    }

    fn whole(self, samples: &[f32], rate: u32) -> Result<Vec<u8>> {
        match self {
            Format::Wav => audio::wav_bytes(samples, rate),
            Format::Pcm => Ok(audio::pcm_bytes(samples)),
        }
    }
}

/// What a stream has written.
pub struct Written {
    /// All of its samples.
    pub samples: usize,
    /// When the first of them were handed over.
    pub first: Option<Instant>,
}

/// Whether `path` is "-".
pub fn is_standard_output(path: &Path) -> bool {
    path.as_os_str() == OsStr::new("-")
}

/// Writes sound that is complete; a file appears whole or not at all.
pub fn write(path: &Path, format: Format, samples: &[f32], rate: u32) -> Result<()> {
    let bytes = format.whole(samples, rate)?;
    if !is_standard_output(path) {
        return files::write_atomically(path, &bytes);
    }
    match put(&mut io::stdout().lock(), &bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("write", path)(error)),
        _ => Ok(()),
    }
}

/// Writes sound as it comes, where something listens: standard output, a pipe, a device. What is or becomes an ordinary
/// file appears whole, when all is said. A listener who goes away ends it and is no error.
pub fn write_stream(path: &Path, format: Format, stream: &mut CaptionStream) -> Result<Written> {
    let listens = std::fs::metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir());
    let mut out: Box<dyn Write> = match () {
        _ if is_standard_output(path) => Box::new(io::stdout().lock()),
        _ if listens => Box::new(File::options().write(true).open(path).map_err(Error::io("write", path))?),
        _ => {
            let (mut samples, mut first) = (Vec::new(), None);
            for chunk in stream.by_ref() {
                samples.extend(chunk?.samples);
                first.get_or_insert_with(Instant::now);
            }
            write(path, format, &samples, stream.sample_rate())?;
            return Ok(Written { samples: samples.len(), first });
        }
    };
    let mut written = Written { samples: 0, first: None };
    let head = match format {
        Format::Wav => audio::wav_head(stream.sample_rate())?,
        Format::Pcm => Vec::new(),
    };
    let mut sent = put(&mut out, &head);
    while sent.is_ok() {
        let Some(chunk) = stream.next().transpose()? else { break };
        sent = put(&mut out, &audio::pcm_bytes(&chunk.samples));
        written.samples += chunk.samples.len();
        written.first.get_or_insert_with(Instant::now);
    }
    match sent {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("write", path)(error)),
        _ => Ok(written),
    }
}

fn put(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
