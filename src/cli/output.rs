//! Places for results: files, standard output, pipes and devices; whole, or while they are being made.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use im2sp::files::{self, AtomicFile, FileId};
use im2sp::{AudioChunk, Error, Result, audio};
use tempfile::SpooledTempFile;

use super::closed::standard_output_was_closed;

/// Bytes of sound for standard output that stay in memory before they take a disk.
const SPOOL_BYTES: usize = 1 << 26;

/// The name of standard output in errors.
const STANDARD_OUTPUT: &str = "standard output";

/// Encoding of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A WAV file
    Wav,
    /// 16-bit little-endian samples and nothing else
    Pcm,
}

impl Format {
    /// The suffix of files of this format.
    pub fn suffix(self) -> &'static str {
        match self {
            Format::Wav => "wav",
            Format::Pcm => "pcm",
        }
    }

    /// Header before the samples; `None` while their number is not known.
    fn header(self, rate: u32, samples: Option<usize>) -> Result<Vec<u8>> {
        match self {
            Format::Wav => audio::wav_header(rate, samples),
            Format::Pcm => Ok(Vec::new()),
        }
    }
}

/// One place for one result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output, under whatever name.
    Standard,
    File(PathBuf),
}

impl Destination {
    /// The place that `path` names: "-", `/dev/stdout` and every other path to the file that standard output is are
    /// standard output.
    ///
    /// # Errors
    /// If it is "-" and standard output cannot be used.
    pub fn of(path: &Path) -> Result<Destination> {
        let standard = standard_output().and_then(|file| FileId::of_open(&file));
        if is_dash(path) {
            return standard.map(|_| Destination::Standard).map_err(Error::io("write", Path::new(STANDARD_OUTPUT)));
        }
        let same = FileId::of(path).is_some_and(|id| standard.is_ok_and(|standard| standard == Some(id)));
        Ok(if same { Destination::Standard } else { Destination::File(path.to_owned()) })
    }

    /// The path, as the user would write it.
    pub fn path(&self) -> &Path {
        match self {
            Destination::Standard => Path::new("-"),
            Destination::File(path) => path,
        }
    }
}

/// Samples that were written.
#[derive(Default)]
pub struct Written {
    /// Number of samples.
    pub samples: usize,
    /// Arrival of the first of them.
    pub first: Option<Instant>,
}

/// An error if standard output is closed.
pub fn check_standard_output() -> Result<()> {
    standard_output().map(drop).map_err(Error::io("write", Path::new(STANDARD_OUTPUT)))
}

/// Whether `path` is "-".
pub fn is_dash(path: &Path) -> bool {
    path.as_os_str() == OsStr::new("-")
}

/// The folder that `path` names, if it is one or ends in a slash: such a folder is made.
pub fn folder(path: &Path) -> Result<Option<PathBuf>> {
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
    }
    Ok(path.is_dir().then(|| path.to_owned()))
}

/// The content of the file at `path`, or of standard input for "-".
pub fn read_input(path: &Path, max: u64) -> Result<Vec<u8>> {
    if is_dash(path) {
        files::read_stream(io::stdin().lock(), input_name(path), max)
    } else {
        files::read_at_most(path, max)
    }
}

/// The name of an input in messages.
pub fn input_name(path: &Path) -> &Path {
    if is_dash(path) { Path::new("standard input") } else { path }
}

/// Writes sound: `live` as it comes where something listens (standard output, a pipe, a device), otherwise whole or not at
/// all. A listener who goes away ends it and is no error.
pub fn write_sound(
    destination: &Destination,
    format: Format,
    rate: u32,
    live: bool,
    chunks: &mut dyn Iterator<Item = Result<AudioChunk>>,
) -> Result<Written> {
    let path = match destination {
        Destination::Standard => Path::new(STANDARD_OUTPUT),
        Destination::File(path) => path,
    };
    let mut sound = Sound { format, rate, chunks, written: Written::default() };
    let sent = match destination {
        Destination::Standard => {
            let out = standard_output().map_err(Error::io("write", path))?;
            match sink(&out) {
                Sink::Seekable(start) if live => sound.send_and_complete(out, start),
                Sink::Pipe if live => sound.send(&out),
                _ => sound.spool(&out),
            }
        }
        Destination::File(path) if live && listens(path) => {
            File::options().append(true).open(path).map_err(Failure::Write).and_then(|out| sound.send(&out))
        }
        Destination::File(path) => {
            let mut file = AtomicFile::create(path)?;
            sound.send_whole(&mut file).and_then(|()| file.commit().map_err(Failure::Other))
        }
    };
    match sent {
        Err(Failure::Other(error)) if !is_broken_pipe(&error) => Err(error),
        Err(Failure::Write(error)) if error.kind() != ErrorKind::BrokenPipe => Err(Error::io("write", path)(error)),
        _ => Ok(sound.written),
    }
}

/// Writes sound that is there already.
pub fn write_whole(destination: &Destination, format: Format, samples: Vec<f32>, sample_rate: u32) -> Result<Written> {
    let chunk = AudioChunk { samples, sample_rate };
    write_sound(destination, format, sample_rate, false, &mut std::iter::once(Ok(chunk)))
}

fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::BrokenPipe)
}

/// Reason a sound ends early.
enum Failure {
    Write(io::Error),
    Other(Error),
}

/// A sound that is being made.
struct Sound<'a> {
    format: Format,
    rate: u32,
    chunks: &'a mut dyn Iterator<Item = Result<AudioChunk>>,
    written: Written,
}

impl Sound<'_> {
    /// Sends header and samples as they come.
    fn send(&mut self, mut out: impl Write) -> std::result::Result<(), Failure> {
        let header = self.format.header(self.rate, None).map_err(Failure::Other)?;
        put(&mut out, &header)?;
        for chunk in &mut *self.chunks {
            let chunk = chunk.map_err(Failure::Other)?;
            put(&mut out, &audio::pcm_bytes(&chunk.samples))?;
            self.written.samples += chunk.samples.len();
            self.written.first.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// As [`Sound::send`], then the header again with the lengths that are known by then.
    fn send_whole(&mut self, out: &mut (impl Write + Seek)) -> std::result::Result<(), Failure> {
        self.send(&mut *out)?;
        let header = self.format.header(self.rate, Some(self.written.samples)).map_err(Failure::Other)?;
        out.rewind().map_err(Failure::Write)?;
        put(out, &header)
    }

    /// As [`Sound::send`], into a file whose next byte is `start`; the lengths are completed after an error too.
    fn send_and_complete(&mut self, mut out: File, start: u64) -> std::result::Result<(), Failure> {
        let sent = self.send(&out);
        let header = self.format.header(self.rate, Some(self.written.samples)).map_err(Failure::Other)?;
        // The next writer continues after the samples.
        let end = out.stream_position().map_err(Failure::Write)?;
        let completed = out.seek(SeekFrom::Start(start)).map_err(Failure::Write).and_then(|_| put(&mut out, &header));
        let returned = out.seek(SeekFrom::Start(end)).map_err(Failure::Write).map(drop);
        sent.and(completed).and(returned)
    }

    /// Sends the sound when all of it is there.
    fn spool(&mut self, mut out: impl Write) -> std::result::Result<(), Failure> {
        let mut spool = SpooledTempFile::new(SPOOL_BYTES);
        self.send_whole(&mut spool)?;
        spool.rewind().map_err(Failure::Write)?;
        io::copy(&mut spool, &mut out).map_err(Failure::Write).map(drop)
    }
}

fn put(out: &mut impl Write, bytes: &[u8]) -> std::result::Result<(), Failure> {
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::Write)
}

/// Whether something takes what is written to `path` as it comes.
fn listens(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir())
}

/// Kind of standard output.
enum Sink {
    /// A pipe, a terminal or a device.
    Pipe,
    /// A file whose next byte is this one.
    Seekable(u64),
    /// A file that takes bytes at its end only.
    AppendOnly,
}

#[cfg(unix)]
fn sink(out: &File) -> Sink {
    use rustix::fs::{OFlags, fcntl_getfl};
    let is_file = out.metadata().is_ok_and(|about| about.is_file());
    let appends = fcntl_getfl(out).is_ok_and(|flags| flags.contains(OFlags::APPEND));
    match (&mut &*out).stream_position() {
        _ if !is_file => Sink::Pipe,
        Ok(position) if !appends => Sink::Seekable(position),
        _ => Sink::AppendOnly,
    }
}

#[cfg(not(unix))]
fn sink(_: &File) -> Sink {
    Sink::Pipe
}

/// Standard output, without a buffer; an error if the program began without one.
#[cfg(unix)]
fn standard_output() -> io::Result<File> {
    use std::os::fd::AsFd;
    if standard_output_was_closed() {
        return Err(io::Error::other("it is closed: send it to a file or a pipe"));
    }
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

#[cfg(not(unix))]
fn standard_output() -> io::Result<File> {
    use std::os::windows::io::AsHandle;
    Ok(File::from(io::stdout().as_handle().try_clone_to_owned()?))
}

/// Whether an error says that the next file could not be written either.
pub fn is_full(error: &Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error, Error::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
}
