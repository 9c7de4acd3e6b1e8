//! Standard output as the program finds it. Before `main`, Rust's runtime opens /dev/null in place of closed standard streams, and
//! from then on nothing tells them from a /dev/null that was given, as Python's `subprocess.DEVNULL` gives it.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether the program began with a closed standard output. Known on Linux and macOS.
pub fn standard_output_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

// SAFETY: the loader calls every function of this section before the runtime, with the C calling convention. This one makes one
// system call and stores one word; it needs nothing that is set up later, and cannot panic.
#[cfg(any(target_os = "linux", target_os = "macos"))]
#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static LOOK: extern "C" fn() = look;

#[cfg(any(target_os = "linux", target_os = "macos"))]
extern "C" fn look() {
    let closed = rustix::io::fcntl_getfd(rustix::stdio::stdout()).is_err();
    CLOSED.store(closed, Ordering::Relaxed);
}
