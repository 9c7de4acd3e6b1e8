//! The end of the program from outside: what is temporary is removed before a signal ends it. `SIGKILL` and a loss of power
//! cannot be answered, and leave `.im2sp-*`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Whether a signal is about to end the program.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Lets a signal that is being answered end the program: its work may have failed only because what is temporary was removed.
pub fn give_way() {
    /// Longer than removing takes.
    const MAX_WAITS: usize = 1000;
    for _ in (0..MAX_WAITS).take_while(|_| ENDING.load(Ordering::Acquire)) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Registers the program's answers to signals. Without a free thread only that to SIGXFSZ: the others need one.
#[cfg(unix)]
pub fn prepare(has_free_thread: bool) {
    use std::sync::Arc;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};

    // A file larger than the limit is an error of the write instead of the end of the program.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    if !has_free_thread {
        return;
    }
    let ignored = ignored();
    // What is ignored stays ignored: nohup, and a shell's commands in the background.
    let answered: Vec<i32> =
        [SIGINT, SIGTERM, SIGHUP, SIGQUIT].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect();
    // From here on a signal is kept, though the thread that answers it may begin later than the work.
    let Ok(mut signals) = signal_hook::iterator::Signals::new(&answered) else { return };
    let answer = move || {
        if let Some(signal) = signals.forever().next() {
            ENDING.store(true, Ordering::Release);
            im2sp::eval::listener::end_all();
            im2sp::files::remove_unfinished();
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    };
    if std::thread::Builder::new().name("im2sp-signal".into()).spawn(answer).is_err() {
        for signal in answered {
            let _ = signal_hook::flag::register_conditional_default(signal, Arc::new(AtomicBool::new(true)));
        }
    }
}

/// A flag that the first SIGINT or SIGTERM sets; the second ends the program.
pub fn stop_flag() -> std::sync::Arc<AtomicBool> {
    let flag = std::sync::Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // In this order: the first time, the flag is not set yet when the default is asked.
        let _ = signal_hook::flag::register_conditional_default(signal, flag.clone());
        let _ = signal_hook::flag::register(signal, flag.clone());
    }
    flag
}

/// Signals that the process was started to ignore, a bit each; none where the system does not say.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// There are no signals.
#[cfg(not(unix))]
pub fn prepare(_: bool) {}
