//! Files written by several threads while their contents are still being made: each is brought to disk before it has its name,
//! and waiting for that would hold up a device.

use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Result};

/// Threads: more than there are cores, since writes wait for the disk.
const WRITERS: usize = 8;

/// Runs `body` with a function that hands jobs to `write` on other threads. It waits while too many are under way, and returns
/// the first error of an earlier job; the remaining errors are dropped with the jobs that had not begun.
///
/// # Errors
/// The first of a job that `body` has not seen, or that of `body`.
///
/// # Panics
/// If `write` panics, with the payload of that panic.
pub(super) fn with_writers<J: Send, R>(
    write: impl Fn(J) -> Result<()> + Sync,
    body: impl FnOnce(&dyn Fn(J) -> Result<()>) -> Result<R>,
) -> Result<R> {
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let take = || failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (sender, receiver) = sync_channel(2 * WRITERS);
    let receiver = Arc::new(Mutex::new(receiver));
    let result = std::thread::scope(|scope| {
        let (write, failed) = (&write, &failed);
        let start = |_| {
            let receiver = Arc::clone(&receiver);
            let work = move || {
                loop {
                    // A statement of its own: the lock ends with it, and others take jobs while this one is written.
                    let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { break };
                    if let Err(error) = write(job) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            };
            std::thread::Builder::new().name("im2sp-write".into()).spawn_scoped(scope, work).ok()
        };
        let threads: Vec<_> = (0..WRITERS).map_while(start).collect();
        // The writers alone hold it: when the last of them ends by a panic, jobs are refused instead of waiting for ever.
        drop(receiver);
        // It goes with this scope, by a panic of `body` too, and the writers end.
        let sender = sender;
        let submit = |job| match take() {
            Some(error) => Err(error),
            // A limit of threads leaves none: this one writes.
            None if threads.is_empty() => write(job),
            None => sender.send(job).map_err(|_| Error::internal("writers that ended early")),
        };
        let result = body(&submit);
        drop(sender);
        for thread in threads {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
        result
    });
    take().map_or(result, Err)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Condvar;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::error::panic_message;

    #[test]
    fn every_job_is_done_and_the_first_error_reported() {
        let done = AtomicUsize::new(0);
        let count = |n: usize| {
            done.fetch_add(n, Ordering::Relaxed);
            Ok(())
        };
        let all = with_writers(count, |submit| (0..100).try_for_each(submit).map(|()| 7));
        assert_eq!((all.unwrap(), done.into_inner()), (7, 99 * 50));
        let odd = |n: usize| if n == 3 { Err(Error::internal("three")) } else { Ok(()) };
        let error = with_writers(odd, |submit| (0..1000).try_for_each(submit)).unwrap_err();
        assert!(error.to_string().contains("three"), "{error}");
        // An error of the last job, which no later one reports.
        assert!(with_writers(odd, |submit| submit(3)).is_err());
    }

    #[test]
    fn jobs_are_written_at_the_same_time() {
        let (begun, changed) = (Mutex::new(0), Condvar::new());
        // Each ends when both have begun.
        let meet = |_| {
            let mut begun = begun.lock().unwrap();
            *begun += 1;
            changed.notify_all();
            let waited = changed.wait_timeout_while(begun, Duration::from_secs(30), |begun| *begun < 2).unwrap();
            if waited.1.timed_out() { Err(Error::internal("a job alone")) } else { Ok(()) }
        };
        with_writers(meet, |submit| (0..2).try_for_each(submit)).unwrap();
    }

    #[test]
    fn a_panic_of_a_writer_is_that_of_the_call() {
        // More jobs than writers and those that wait: the last writer ends, and nothing waits for it.
        let all = |number: usize| -> Result<()> { panic!("job {number}") };
        let last = |number: usize| if number == 49 { panic!("job {number}") } else { Ok(()) };
        let run = |write: &(dyn Fn(usize) -> Result<()> + Sync)| {
            let call = AssertUnwindSafe(|| with_writers(write, |submit| (0..50).try_for_each(submit)));
            let panic = catch_unwind(call).unwrap_err();
            panic_message(&*panic).to_owned()
        };
        assert!(run(&all).starts_with("job "));
        assert_eq!(run(&last), "job 49");
        let body = AssertUnwindSafe(|| with_writers(|_: usize| Ok(()), |_| -> Result<()> { panic!("the body") }));
        assert_eq!(panic_message(&*catch_unwind(body).unwrap_err()), "the body");
    }
}
