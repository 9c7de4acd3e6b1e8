//! A progress bar that appears on a terminal when something takes longer than a second, and never in a pipe.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Waiting time before anything is shown.
const PATIENCE: Duration = Duration::from_secs(1);

/// Progress of one command.
pub struct Bar {
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Nothing is shown yet.
    pub fn new() -> Bar {
        Bar { started: Instant::now(), bar: None }
    }

    /// `done` of `total` units of work named `stage`.
    pub fn show(&mut self, stage: &str, done: u64, total: u64) {
        if self.bar.is_none() && self.started.elapsed() > PATIENCE && std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template("{msg:12} [{bar:32}] {pos}/{len} {elapsed}") {
                bar.set_style(style);
            }
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_message(stage.to_string());
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
