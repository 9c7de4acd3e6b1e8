//! Threads for decode steps. A step is a few dozen operations of some ten microseconds each, which is what waking a sleeping
//! thread costs; so helpers spin for a while after each job before they sleep, and whoever comes first takes the next task:
//! a helper that the system has stopped holds up nothing but the task it has begun. Everything else runs on rayon.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// How long a helper looks for work before it sleeps: longer than any pause inside a decode loop.
const PATIENCE: Duration = Duration::from_micros(200);
/// Looks at a counter before the system is asked for another thread.
const SPINS: usize = 2000;

/// A job that is shared out. Its number, how many tasks it has and how many were taken are one word, so that a task is only
/// ever taken from the job whose call was read: while it has tasks left, its owner waits and the call stays valid.
struct Job {
    /// Number << 32 | tasks << 16 | taken.
    state: AtomicU64,
    /// `trampoline` of the job's closure, and the closure.
    call: AtomicPtr<()>,
    closure: AtomicPtr<()>,
    finished: AtomicUsize,
    panicked: AtomicBool,
    asleep: AtomicUsize,
}

static JOB: Job = Job {
    state: AtomicU64::new(0),
    call: AtomicPtr::new(std::ptr::null_mut()),
    closure: AtomicPtr::new(std::ptr::null_mut()),
    finished: AtomicUsize::new(0),
    panicked: AtomicBool::new(false),
    asleep: AtomicUsize::new(0),
};
/// One job at a time.
static TURN: Mutex<()> = Mutex::new(());
static HELPERS: OnceLock<Vec<Thread>> = OnceLock::new();

type Call = unsafe fn(*const (), usize);

/// # Safety
/// `closure` has to point to an `F` that is alive.
unsafe fn trampoline<F: Fn(usize) + Sync>(closure: *const (), task: usize) {
    // SAFETY: the caller's promise.
    unsafe { (*closure.cast::<F>())(task) }
}

/// Runs `task(0)` to `task(tasks - 1)`, on the calling thread and on helpers, and returns when all have ended. A task must
/// not call this itself.
pub(super) fn run<F: Fn(usize) + Sync>(tasks: usize, task: F) {
    let helpers: &[Thread] = if tasks > 1 { HELPERS.get_or_init(hire) } else { &[] };
    if helpers.is_empty() || tasks > usize::from(u16::MAX) {
        return (0..tasks).for_each(task);
    }
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    JOB.call.store(trampoline::<F> as Call as *mut (), Ordering::Relaxed);
    JOB.closure.store((&raw const task).cast_mut().cast(), Ordering::Relaxed);
    JOB.finished.store(0, Ordering::Relaxed);
    let number = (JOB.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
    JOB.state.store(number << 32 | (tasks as u64) << 16, Ordering::SeqCst);
    if JOB.asleep.load(Ordering::SeqCst) > 0 {
        helpers.iter().for_each(Thread::unpark);
    }
    while JOB.take() {}
    let mut spins = 0;
    while JOB.finished.load(Ordering::Acquire) < tasks {
        spins += 1;
        if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
    let panicked = JOB.panicked.swap(false, Ordering::Relaxed);
    drop(turn);
    if panicked {
        resume_unwind(Box::new("a task of a decode step panicked"));
    }
}

impl Job {
    /// Takes a task and does it; false when there is none.
    fn take(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        let (call, closure) = (self.call.load(Ordering::Relaxed), self.closure.load(Ordering::Relaxed));
        let (tasks, taken) = (state >> 16 & 0xffff, state & 0xffff);
        if taken == tasks {
            return false;
        }
        if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // Somebody else was quicker; there may be another.
            return true;
        }
        // SAFETY: `call` and `closure` were read while the job was the one that a task was now taken from: they are stored
        // before its state and not again until all of its tasks have finished. Its owner waits for this one.
        let done = catch_unwind(AssertUnwindSafe(|| unsafe {
            std::mem::transmute::<*mut (), Call>(call)(closure, taken as usize);
        }));
        if done.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        self.finished.fetch_add(1, Ordering::Release);
        true
    }
}

/// Starts one helper for each thread of rayon's pool but one. A system that gives fewer is no reason to fail.
fn hire() -> Vec<Thread> {
    let hired = (1..rayon::current_num_threads()).map_while(|n| {
        let thread = std::thread::Builder::new().name(format!("step-{n}")).spawn(help);
        thread.ok().map(|handle| handle.thread().clone())
    });
    hired.collect()
}

/// The life of a helper.
fn help() {
    let mut idle = Instant::now();
    let mut spins = 0;
    loop {
        if JOB.take() {
            spins = 0;
            continue;
        }
        if spins == 0 {
            idle = Instant::now();
        }
        spins += 1;
        std::hint::spin_loop();
        if spins % SPINS == 0 && idle.elapsed() > PATIENCE {
            JOB.asleep.fetch_add(1, Ordering::SeqCst);
            // A job that was begun before this helper was counted has not woken it.
            let state = JOB.state.load(Ordering::SeqCst);
            if state & 0xffff == state >> 16 & 0xffff {
                std::thread::park();
            }
            JOB.asleep.fetch_sub(1, Ordering::SeqCst);
            spins = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every task runs exactly once, whoever calls, and results of one job are there when the next begins.
    #[test]
    fn every_task_runs_once() {
        std::thread::scope(|scope| {
            for caller in 0..3 {
                scope.spawn(move || {
                    for tasks in (0..2000).map(|n| (n * 7 + caller) % 23) {
                        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                        run(tasks, |task| {
                            counts[task].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                    }
                });
            }
        });
        std::thread::sleep(10 * PATIENCE);
        run(2, |_| {});
    }

    #[test]
    fn a_panic_reaches_the_caller_and_nobody_else() {
        let panics = catch_unwind(|| run(9, |task| assert!(task != 5, "as meant")));
        assert!(panics.is_err());
        run(9, |_| {});
    }
}
