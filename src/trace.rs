//! A record of what ran when, for `im2sp bench --profile`: spans of stages, operations and kernels, a row for each
//! thread, in the format of Chrome's trace viewer. While nothing is recorded a span costs one load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use serde_json::json;

use crate::Result;

static ON: AtomicBool = AtomicBool::new(false);
static SPANS: Mutex<Vec<Recorded>> = Mutex::new(Vec::new());

struct Recorded {
    name: &'static str,
    thread: u64,
    start: f64,
    end: f64,
}

/// Runs until it is dropped.
pub struct Span(Option<(&'static str, f64)>);

/// Begins a span; it ends when what is returned is dropped.
pub fn span(name: &'static str) -> Span {
    Span(on().then(|| (name, microseconds())))
}

/// Whether spans are recorded at present: devices that work in the background then wait after each kernel.
pub fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some((name, start)) = self.0 {
            spans().push(Recorded { name, thread: thread(), start, end: microseconds() });
        }
    }
}

/// Records everything that happens during `work`, in this process; gives the trace as JSON.
pub fn record<T>(work: impl FnOnce() -> Result<T>) -> Result<String> {
    spans().clear();
    ON.store(true, Ordering::Relaxed);
    let result = work();
    ON.store(false, Ordering::Relaxed);
    result?;
    let events: Vec<serde_json::Value> = std::mem::take(&mut *spans())
        .iter()
        .map(|s| json!({"name": s.name, "ph": "X", "ts": s.start, "dur": s.end - s.start, "pid": 1, "tid": s.thread}))
        .collect();
    Ok(json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string())
}

fn spans() -> MutexGuard<'static, Vec<Recorded>> {
    SPANS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number of the calling thread, in the order in which threads end their first span.
fn thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
    NUMBER.with(|number| *number)
}

fn microseconds() -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64() * 1e6
}
