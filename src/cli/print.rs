//! Everything the program says. Results go to standard output; remarks and errors to standard error, whose loss costs
//! nothing: it may be closed, full or a pipe that nobody reads.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::path::Path;

use im2sp::{Error, Result};
use serde_json::{Map, Value};

use super::output;

/// Prints one remark on standard error.
pub fn note(message: impl Display) {
    let line = format!("im2sp: {}\n", one_line(&message.to_string()));
    // There is nowhere to report that reports cannot be written.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Prints one error on standard error.
pub fn print_error(error: impl Display) {
    note(format_args!("error: {error}"));
}

/// Prints one line of JSON, as [`print_line`] does.
pub fn print_json(value: &Value) -> Result<()> {
    offer_json(value).map(drop)
}

/// Prints one line on standard output. A closed pipe is no error, a full disk is one.
pub fn print_line(line: impl Display) -> Result<()> {
    offer_line(line).map(drop)
}

/// Prints one line of JSON, as [`offer_line`] does. It is a result: a standard output that is closed is an error.
pub fn offer_json(value: &Value) -> Result<ControlFlow<()>> {
    output::check_standard_output()?;
    offer_line(value)
}

/// Prints one line on standard output. Breaks where nobody reads any more: those who print nothing else can end.
pub fn offer_line(line: impl Display) -> Result<ControlFlow<()>> {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(Error::io("write", Path::new("standard output"))(error)),
    }
}

/// A path as people read it, on one line.
pub fn shown(path: &Path) -> String {
    one_line(&path.to_string_lossy())
}

/// Enters `path` under `key` into a JSON object. A name that is not UTF-8 comes with its bytes, under `key` and `_bytes`.
pub fn insert_path(object: &mut Map<String, Value>, key: &str, path: &Path) {
    object.insert(key.into(), path.to_string_lossy().into());
    if path.to_str().is_none() {
        object.insert(format!("{key}_bytes"), path.as_os_str().as_encoded_bytes().into());
    }
}

/// `text` with its control characters, which names of files may hold, as escapes.
fn one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default())
        } else {
            line.push(c)
        }
        line
    })
}
