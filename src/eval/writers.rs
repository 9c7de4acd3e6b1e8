//! Files written by several threads while their contents are still being made: each is brought to disk before it has its name,
//! and waiting for that would hold up a device.

use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// Threads: writes wait for the disk, not for a core.
const WRITERS: usize = 8;

/// Runs `body` with a function that hands jobs to `write` on other threads. It waits while too many are under way, and returns
/// the first error of an earlier job; the remaining errors are dropped with the jobs that had not begun.
///
/// # Errors
/// The first of a job that `body` has not seen, or that of `body`.
pub(super) fn with_writers<J: Send, R>(
    write: impl Fn(J) -> Result<()> + Sync,
    body: impl FnOnce(&dyn Fn(J) -> Result<()>) -> Result<R>,
) -> Result<R> {
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let take = || failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (sender, receiver) = sync_channel(2 * WRITERS);
    let receiver = Mutex::new(receiver);
    let result = std::thread::scope(|scope| {
        let work = || {
            while let Ok(job) = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv() {
                if let Err(error) = write(job) {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        let start = |_| std::thread::Builder::new().name("im2sp-write".into()).spawn_scoped(scope, work).ok();
        let threads = (0..WRITERS).map_while(start).count();
        let submit = |job| match take() {
            Some(error) => Err(error),
            // A limit of threads leaves none: this one writes.
            None if threads == 0 => write(job),
            None => sender.send(job).map_err(|_| Error::internal("writers that ended early")),
        };
        let result = body(&submit);
        drop(sender);
        result
    });
    take().map_or(result, Err)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

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
}
