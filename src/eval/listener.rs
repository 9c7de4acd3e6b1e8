//! Listeners: what turns a spoken caption into text. Either a recogniser of this crate or any other program, called once for
//! each file.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Recognizer, Result};

/// Process groups of the programs that run.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// How often a program that runs is looked at.
const POLL: Duration = Duration::from_millis(10);
/// Time that the output of a program may take after its end.
const DRAIN: Duration = Duration::from_secs(2);
/// Maximum bytes that are read of a program's output.
const MAX_OUTPUT: u64 = 1 << 20;
/// Characters of a program's message that are passed on.
const SHOWN: usize = 200;

/// Turns sound into text.
pub enum Listener {
    /// A recogniser of this crate.
    Recognizer(Box<Recognizer>),
    /// Another program.
    Program(Program),
}

/// A program that is given the path of a WAV file as its last argument and prints the text on its first line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The command, for a shell.
    pub command: String,
    /// Time that it may take for one file.
    pub timeout: Duration,
    /// Files that are listened to at a time.
    pub jobs: usize,
}

impl Program {
    /// The text of a WAV file, as the program printed it.
    ///
    /// # Errors
    /// If it fails or takes too long.
    pub fn text(&self, wav: &Path) -> Result<String> {
        let fail = |problem: String| Error::Listener { path: wav.to_owned(), problem };
        // Paths that begin with a dash are no options of the program.
        let path: PathBuf = std::path::absolute(wav).map_err(Error::io("find", wav))?;
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{} \"$1\"", self.command), "im2sp"]).arg(&path);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        own_group(&mut command);
        let mut child = start(&mut command)
            .map_err(|error| fail(format!("cannot be started: {error}: fewer --asr-jobs need fewer processes")))?;
        let pipes = drain(child.stdout.take()).and_then(|output| Ok([output, drain(child.stderr.take())?]));
        let pipes = pipes
            .map_err(|error| format!("cannot be read: {error}: fewer --asr-jobs need fewer threads"))
            .and_then(|pipes| self.wait(&mut child).map(|()| pipes));
        // Something that it left behind may hold its output open, and ends with it.
        let status = end(&mut child);
        let (pipes, status) = (pipes.map_err(fail)?, status.map_err(|error| fail(error.to_string()))?);
        let [output, message] = pipes.map(|from| {
            let bytes = from.and_then(|from: Receiver<Vec<u8>>| from.recv_timeout(DRAIN).ok())?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        });
        let message = message.unwrap_or_default();
        if !status.success() {
            let last: String =
                message.trim_end().lines().last().unwrap_or("it said nothing").chars().take(SHOWN).collect();
            return Err(fail(format!("ended with {status}: {last}")));
        }
        output.ok_or_else(|| fail("left something that holds its output open".into()))
    }

    /// Waits for the end of a program; its number stays its own.
    fn wait(&self, child: &mut Child) -> std::result::Result<(), String> {
        let began = Instant::now();
        while !has_ended(child).map_err(|error| error.to_string())? {
            if began.elapsed() >= self.timeout {
                return Err(format!("took longer than {} s: --asr-timeout allows more", self.timeout.as_secs()));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

/// Reads a pipe, if there is one, on a thread of its own.
fn drain(pipe: Option<impl Read + Send + 'static>) -> io::Result<Option<Receiver<Vec<u8>>>> {
    let Some(mut pipe) = pipe else { return Ok(None) };
    let (sender, receiver) = channel();
    let read = move || {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(MAX_OUTPUT).read_to_end(&mut bytes);
        // The rest is read, so that the program does not wait for it, and left.
        let _ = io::copy(&mut pipe, &mut io::sink());
        let _ = sender.send(bytes);
    };
    thread::Builder::new().name("im2sp-drain".into()).spawn(read)?;
    Ok(Some(receiver))
}

/// Gives the program a group of its own, which is ended with it.
fn own_group(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(not(unix))]
    let _ = command;
}

/// Starts a program, to be ended with this process; an interruption comes before or after both.
fn start(command: &mut Command) -> io::Result<Child> {
    let mut running = running();
    let child = command.spawn()?;
    running.insert(child.id());
    Ok(child)
}

/// Whether a program ended. It is not waited for: until then its number, which is that of its group, is no other's.
fn has_ended(child: &mut Child) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(Pid::from_child(child)), options)?.is_some())
    }
    #[cfg(not(unix))]
    child.try_wait().map(|status| status.is_some())
}

/// Ends a program and what it started, and waits for it.
fn end(child: &mut Child) -> io::Result<ExitStatus> {
    end_group(child.id());
    let _ = child.kill();
    // It leaves the list while its number is its own: that of another would be ended by an interruption.
    running().remove(&child.id());
    child.wait()
}

/// Ends all programs that listen, for a process that is about to end: whoever wants to start one after this waits for ever.
pub fn end_all() {
    let running = running();
    running.iter().for_each(|&group| end_group(group));
    std::mem::forget(running);
}

fn end_group(group: u32) {
    #[cfg(unix)]
    if let Some(group) = i32::try_from(group).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    #[cfg(not(unix))]
    let _ = group;
}

/// The groups; a panic elsewhere does not make them wrong.
fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
