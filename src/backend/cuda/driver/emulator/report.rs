//! Findings of the emulator in words: places in the kernels' source for addresses of the host's code.

use std::ffi::c_void;

/// Frames of a stack that are looked at.
const MAX_FRAMES: usize = 24;
/// Maximum number of reported places of one access, innermost first.
const MAX_PLACES: usize = 3;

/// Something that no kernel may do. The places are looked up when it is described: that takes more stack than a thread has.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    /// The finding; `{here}` and `{there}` stand where the places go, `{who}` where the thread does.
    what: String,
    here: Vec<usize>,
    there: Option<usize>,
}

impl Finding {
    /// Done by the running thread.
    pub(super) fn here(what: String) -> Finding {
        Finding { what: format!("{what}{{here}}, by {{who}}"), here: stack(), there: None }
    }

    /// Done by a thread at this address of the host's code.
    pub(super) fn interrupted(what: String, program: usize) -> Finding {
        Finding { what: format!("{what}{{here}}, by {{who}}"), here: vec![program + 1], there: None }
    }

    /// Done by the running thread in a place that is known.
    pub(super) fn at(what: String, place: String) -> Finding {
        let place = place.rfind("kernels/").map_or(&place[..], |at| &place[at..]);
        Finding { what: format!("{what} at {place}, by {{who}}"), here: Vec::new(), there: None }
    }

    /// Done by the running thread; `what` says where `{here}` and the place of the other access, `{there}`, go.
    pub(super) fn with(what: String, there: Option<usize>) -> Finding {
        Finding { what, here: stack(), there }
    }

    /// In words; `who` did it.
    pub(super) fn describe(&self, who: &str) -> String {
        let here = in_words(&self.here);
        let there = self.there.map(|place| in_words(&[place])).unwrap_or_default();
        self.what.replace("{who}", who).replace("{here}", &here).replace("{there}", &there)
    }
}

/// Addresses to return to, innermost first.
fn stack() -> Vec<usize> {
    let mut frames = Vec::with_capacity(MAX_FRAMES);
    backtrace::trace(|frame| {
        frames.push(frame.ip() as usize);
        frames.len() < MAX_FRAMES
    });
    frames
}

/// ` at kernels/mma.cuh:98, called at kernels/linear.cu:210`, or nothing where the binary does not say.
fn in_words(frames: &[usize]) -> String {
    let mut places: Vec<String> = Vec::new();
    for &frame in frames {
        // The address behind a call may belong to the next line.
        backtrace::resolve(frame.wrapping_sub(1) as *mut c_void, |symbol| {
            let Some((file, line)) = symbol.filename().zip(symbol.lineno()) else { return };
            let file = file.to_string_lossy();
            if let Some(at) = file.rfind("kernels/").filter(|_| file.ends_with(".cu") || file.ends_with(".cuh")) {
                places.push(format!("{}:{line}", &file[at..]));
            }
        });
    }
    places.dedup();
    places.truncate(MAX_PLACES);
    match places.is_empty() {
        true => String::new(),
        false => format!(" at {}", places.join(", called at ")),
    }
}
