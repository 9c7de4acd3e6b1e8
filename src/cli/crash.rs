//! Panics: mistakes of this program, reported like its other errors.

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use im2sp::Result;
use im2sp::error::panic_message;

use super::print::print_error;

/// The last panic: its place and message.
static LAST: Mutex<String> = Mutex::new(String::new());

/// Runs a command. A panic becomes an error of one line; `RUST_BACKTRACE=1` shows its trace too. A panic that is caught
/// on the way, in a library that reads one file, is that file's error and nothing is printed for it here.
pub fn report_panics(command: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    let default = panic::take_hook();
    let trace = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let message = panic_message(info.payload());
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = format!("{place}: {message}");
        if trace {
            default(info);
        }
    }));
    panic::catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|_| {
        let last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        print_error(format_args!("internal error at {last}; please report it, with the command"));
        Ok(ExitCode::FAILURE)
    })
}
