//! The threads that compute. Where a limit allows fewer than there are processors (`ulimit -u`, a pids cgroup), the
//! program works with fewer, down to one.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use im2sp::{Error, Result};
use rayon::{ThreadBuilder, ThreadPoolBuilder};

/// Threads left for reading images, decoding, speaking and signals, as far as the limit allows.
const OTHERS: usize = 8;
/// Limits from this on are not met but by accident.
const LARGE: u64 = 4096;
/// Time between two looks at threads that are ending.
const POLL: Duration = Duration::from_micros(200);

/// Starts as many threads of rayon's global pool as there may be. Returns whether a further thread may be started.
///
/// # Errors
/// If there may be no thread at all.
pub fn start() -> Result<bool> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let wanted =
        std::env::var("RAYON_NUM_THREADS").ok().and_then(|count| count.parse().ok()).filter(|&count| count > 0);
    let wanted = wanted.unwrap_or(processors);
    // The pool can be built only once, so the threads are there before it is: each waits for a worker to become, and
    // those that get none end.
    let (send, workers) = channel::<ThreadBuilder>();
    let workers = Arc::new(Mutex::new(workers));
    let mut refused = None;
    let mut started = Vec::new();
    // To start threads only to see whether they may be started takes milliseconds: it is done where there is a limit.
    let probed = if is_limited() { OTHERS } else { 0 };
    while started.len() < wanted + probed && refused.is_none() {
        let workers = workers.clone();
        match thread::Builder::new().name("im2sp-compute".into()).spawn(move || become_worker(&workers)) {
            Ok(thread) => started.push(thread),
            Err(error) => refused = Some(error),
        }
    }
    let fail = |problem: String| Error::Device { device: "cpu".into(), problem };
    if let (true, Some(error)) = (started.is_empty(), &refused) {
        return Err(fail(format!("no thread can be started ({error}): raise the limit (ulimit -u, pids.max)")));
    }
    let others = if refused.is_some() { OTHERS } else { probed };
    let count = wanted.min(started.len().saturating_sub(others).max(1));
    ThreadPoolBuilder::new()
        .num_threads(count)
        .spawn_handler(|worker| send.send(worker).map_err(|_| io::Error::other("it has ended")))
        .build_global()
        .map_err(|error| fail(format!("its threads cannot be started: {error}")))?;
    drop(send);
    // Under a limit, the others need the room of those that end.
    while refused.is_some() && started.iter().filter(|thread| thread.is_finished()).count() < started.len() - count {
        thread::sleep(POLL);
    }
    Ok(refused.is_none())
}

/// Whether the number of threads has a limit that this program may meet.
#[cfg(target_os = "linux")]
fn is_limited() -> bool {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nproc).current.into_iter().chain(cgroup_limits()).any(|limit| limit < LARGE)
}

#[cfg(not(target_os = "linux"))]
fn is_limited() -> bool {
    true
}

/// Limits of the pids controller: of the cgroup of this process, and of those around it.
#[cfg(target_os = "linux")]
fn cgroup_limits() -> Vec<u64> {
    use std::path::Path;

    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut limits = Vec::new();
    for line in cgroups.lines() {
        let Some((controllers, path)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':')) else {
            continue;
        };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            "pids" => "/sys/fs/cgroup/pids",
            _ => continue,
        };
        for folder in Path::new(path.trim_start_matches('/')).ancestors() {
            let limit = std::fs::read_to_string(Path::new(root).join(folder).join("pids.max"));
            limits.extend(limit.ok().and_then(|limit| limit.trim().parse::<u64>().ok()));
        }
    }
    limits
}

fn become_worker(workers: &Mutex<Receiver<ThreadBuilder>>) {
    let worker = workers.lock().unwrap_or_else(PoisonError::into_inner).recv();
    if let Ok(worker) = worker {
        worker.run();
    }
}
