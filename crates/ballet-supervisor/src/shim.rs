//! The process between `ballet` and a service: it sees to it that nothing outlives `ballet`.
//!
//! ```text
//! ballet ──── socket (the shim's stdin) ────> ballet __shim ──── child, leader of a group ────> service ──> its children
//!          stop MS                    started PID                TERM, KILL to the group
//!          end of file: ballet died   failed TEXT
//!                                     exited code N | exited signal N
//! ```
//!
//! The kernel closes the socket however `ballet` dies, so the shim always learns of it. Shim and service have a group
//! each: so a signal to the service's group does not hit the shim, and the terminal's Ctrl-C hits neither. On Linux the shim
//! is also the reaper of every orphan below it: a grandchild with a session of its own is found, and when the shim has no
//! child left, nothing of the service is left. There is no unsafe code: the standard library, `rustix`, and tokio's signal handlers.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, WaitStatus};
use tokio::time::Instant;

use crate::procs;

/// How long the shim tries to end what a service left behind before it gives up and says so by exiting.
const SWEEP: Duration = Duration::from_secs(3);
/// Rest between two rounds of killing.
const SWEEP_STEP: Duration = Duration::from_millis(5);

enum Word {
    /// `ballet` asks for an end within this grace.
    Stop(Duration),
    /// `ballet` is gone.
    Vanished,
    /// The service ended.
    Ended(WaitStatus),
    /// The shim has no child any more.
    Childless,
}

/// Runs the shim; `ballet` calls it when its first argument is `__shim`.
///
/// `args` are what follows: the grace in milliseconds after a vanished `ballet`, the program, its arguments.
/// Returns when the service and all its descendants are gone.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let grace = args.next().and_then(|text| text.to_str()?.parse().ok()).map(Duration::from_millis);
    let (Some(grace), Some(program)) = (grace, args.next()) else {
        eprintln!("ballet starts this itself: __shim GRACE_MS PROGRAM [ARGUMENT…]");
        return ExitCode::from(2);
    };
    let Ok(control) = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else {
        return ExitCode::from(2);
    };
    deafen();
    #[cfg(target_os = "linux")]
    if rustix::process::set_child_subreaper(Some(rustix::process::getpid())).is_err() {
        // Without it orphans go to init, and only the group is left to find them by.
    }

    let (words, heard) = channel();
    let mut tell = &control;
    // The shim's stdin is the socket, so the service gets an empty one; stdout and stderr pass through.
    let child = match Command::new(&program).args(args).stdin(Stdio::null()).process_group(0).spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = writeln!(tell, "failed cannot start `{}`: {error}", program.to_string_lossy());
            return ExitCode::from(1);
        }
    };
    let service = i32::try_from(child.id()).expect("a pid is a positive i32");
    let _ = writeln!(tell, "started {service}");

    if let Ok(ears) = control.try_clone() {
        let words = words.clone();
        std::thread::spawn(move || listen(ears, &words));
    }
    std::thread::spawn(move || reap(service, &words));

    let status = watch(service, grace, &heard);
    let line = match (status.and_then(WaitStatus::exit_status), status.and_then(WaitStatus::terminating_signal)) {
        (Some(code), _) => format!("exited code {code}"),
        (None, Some(signal)) => format!("exited signal {signal}"),
        (None, None) => "exited code 255".to_owned(),
    };
    // First the truth, then the cleaning: it may take a moment.
    let _ = writeln!(tell, "{line}");
    sweep(service, &heard);
    ExitCode::SUCCESS
}

/// Takes the signals with which others end `ballet` as a whole and does nothing: the shim's end is decided by the socket.
/// A caught signal, unlike an ignored one, is back to normal in the service.
fn deafen() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    let _inside = runtime.enter();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()] {
        // tokio never takes a handler back, so it outlives both stream and runtime.
        let _ = signal(kind);
    }
}

fn listen(ears: UnixStream, words: &Sender<Word>) {
    for line in BufReader::new(ears).lines() {
        let Ok(line) = line else { break };
        if let Some(ms) = line.strip_prefix("stop ").and_then(|ms| ms.parse().ok()) {
            let _ = words.send(Word::Stop(Duration::from_millis(ms)));
        }
    }
    let _ = words.send(Word::Vanished);
}

/// Buries every child, adopted orphans included.
fn reap(service: i32, words: &Sender<Word>) {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == service => drop(words.send(Word::Ended(status))),
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => {
                let _ = words.send(Word::Childless);
                return;
            }
        }
    }
}

/// Waits for the service's end, and brings it about when told to.
fn watch(service: i32, grace: Duration, heard: &Receiver<Word>) -> Option<WaitStatus> {
    let mut deadline: Option<Instant> = None;
    loop {
        let word = match deadline {
            Some(at) => heard.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let grace = match word {
            Ok(Word::Stop(asked)) => asked,
            Ok(Word::Vanished) => grace,
            Ok(Word::Ended(status)) => return Some(status),
            Ok(Word::Childless) | Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {
                procs::signal_group(service, Signal::KILL);
                deadline = None;
                continue;
            }
        };
        procs::signal_group(service, Signal::TERM);
        let at = Instant::now() + grace;
        deadline = Some(deadline.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Kills what the service left behind: its group, and on Linux all other descendants.
fn sweep(service: i32, heard: &Receiver<Word>) {
    let own = i32::try_from(std::process::id()).expect("a pid is a positive i32");
    let end = Instant::now() + SWEEP;
    while Instant::now() < end {
        procs::signal_group(service, Signal::KILL);
        for pid in procs::descendants(own) {
            procs::signal(pid, Signal::KILL);
        }
        match heard.recv_timeout(SWEEP_STEP) {
            Ok(Word::Childless) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Word::Stop(_) | Word::Vanished | Word::Ended(_)) | Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
