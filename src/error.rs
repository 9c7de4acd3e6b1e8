//! The one error type of the crate. Every variant names what was being read or done, which part of it was wrong, and,
//! in `problem`, what to do about it. Nothing a user, a file or a network can cause ends in a panic.

use std::any::Any;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, grouped by the thing the reader of the message has to look at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read, map, write or rename a file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The attempted action: "read", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason the system gave.
        source: std::io::Error,
    },
    /// A file was read, but its content is not an image this crate can use.
    #[error("{}: {problem}", path.display())]
    Image {
        /// The image, or what stands in for its name.
        path: PathBuf,
        /// The problem and its remedy.
        problem: String,
    },
    /// A file was read, but its content is no recording this crate can use.
    #[error("{}: {problem}", path.display())]
    Audio {
        /// The recording.
        path: PathBuf,
        /// The problem and its remedy.
        problem: String,
    },
    /// A checkpoint, a model directory or one field of them is malformed.
    #[error("{}: {field}: {problem}", path.display())]
    Weights {
        /// The checkpoint or model file.
        path: PathBuf,
        /// The tensor, the configuration field or the part of the container.
        field: String,
        /// The problem and its remedy.
        problem: String,
    },
    /// Speech units that the model cannot speak.
    #[error("units: {problem}")]
    Units {
        /// The problem and its remedy.
        problem: String,
    },
    /// The requested device cannot be used.
    #[error("device {device}: {problem}")]
    Device {
        /// As the user named it.
        device: String,
        /// The problem and its remedy.
        problem: String,
    },
    /// An option has a value that makes no sense here.
    #[error("option {option}: {problem}")]
    Option {
        /// The option's name, without dashes.
        option: &'static str,
        /// The problem and its remedy.
        problem: String,
    },
    /// An operation was handed tensors that do not fit together.
    #[error("{op}: {problem}")]
    Shape {
        /// The operation of the backend.
        op: &'static str,
        /// The shapes, and what was expected.
        problem: String,
    },
    /// A training run cannot go on.
    #[error("training: {problem}")]
    Training {
        /// The problem and its remedy.
        problem: String,
    },
    /// A program that listens to recordings failed.
    #[error("{}: the listener {problem}", path.display())]
    Listener {
        /// The recording.
        path: PathBuf,
        /// The problem and its remedy.
        problem: String,
    },
    /// A request was cancelled before it was done.
    #[error("the request was cancelled")]
    Cancelled,
    /// A request was not done in time.
    #[error("deadline: the request was not done in time: allow it more time, or fewer units")]
    Deadline,
    /// A mistake of this crate.
    #[error("internal error: {problem}: please report it, with what led to it")]
    Internal {
        /// Description of the problem.
        problem: String,
    },
    /// The model produced something that is not a number.
    #[error("{stage}: the model produced NaN; its weights are damaged: convert the checkpoint again")]
    NotANumber {
        /// Where it was noticed.
        stage: &'static str,
    },
}

impl Error {
    /// An [`Error::Io`] in the form `map_err` wants.
    pub fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + use<'a> {
        move |source| Error::Io { action, path: path.to_owned(), source }
    }

    /// An [`Error::Weights`].
    pub fn weights(path: &Path, field: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Weights { path: path.to_owned(), field: field.into(), problem: problem.into() }
    }

    /// An [`Error::Image`].
    pub fn image(path: &Path, problem: impl Into<String>) -> Error {
        Error::Image { path: path.to_owned(), problem: problem.into() }
    }

    /// An [`Error::Audio`].
    pub fn audio(path: &Path, problem: impl Into<String>) -> Error {
        Error::Audio { path: path.to_owned(), problem: problem.into() }
    }

    /// An [`Error::Internal`].
    pub fn internal(problem: impl Into<String>) -> Error {
        Error::Internal { problem: problem.into() }
    }

    /// The same error again, for another of the requests that it ends.
    pub fn duplicate(&self) -> Error {
        match self {
            Error::Io { action, path, source } => {
                let source = std::io::Error::new(source.kind(), source.to_string());
                Error::Io { action, path: path.clone(), source }
            }
            Error::Image { path, problem } => Error::Image { path: path.clone(), problem: problem.clone() },
            Error::Audio { path, problem } => Error::audio(path, problem),
            Error::Weights { path, field, problem } => Error::weights(path, field, problem),
            Error::Units { problem } => Error::Units { problem: problem.clone() },
            Error::Device { device, problem } => Error::Device { device: device.clone(), problem: problem.clone() },
            Error::Option { option, problem } => Error::Option { option, problem: problem.clone() },
            Error::Shape { op, problem } => Error::shape(op, problem),
            Error::Training { problem } => Error::Training { problem: problem.clone() },
            Error::Listener { path, problem } => Error::Listener { path: path.clone(), problem: problem.clone() },
            Error::Cancelled => Error::Cancelled,
            Error::Deadline => Error::Deadline,
            Error::Internal { problem } => Error::internal(problem),
            Error::NotANumber { stage } => Error::NotANumber { stage },
        }
    }

    /// An [`Error::Shape`].
    pub fn shape(op: &'static str, problem: impl Into<String>) -> Error {
        Error::Shape { op, problem: problem.into() }
    }
}

/// Message of a panic, from its payload.
pub fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_panic_has_a_message() {
        let number = std::hint::black_box(7);
        let payloads = [
            std::panic::catch_unwind(|| panic!("plain")),
            std::panic::catch_unwind(|| panic!("number {number}")),
            std::panic::catch_unwind(|| std::panic::panic_any(number)),
        ];
        let messages = payloads
            .each_ref()
            .map(|payload: &std::thread::Result<()>| panic_message(&**payload.as_ref().unwrap_err()));
        assert_eq!(messages, ["plain", "number 7", "a panic without a message"]);
    }
}
