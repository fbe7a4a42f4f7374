//! A command under its shim, from our side: started, watched, stopped, its output pumped, its pid on disk.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::logs::{Logs, Source, Watch};
use crate::procs::{self, Ident, MARKER};
use crate::state;

/// Longest wait for a shim's word that the service runs.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for a shim's own end after its service's.
const SHIM_END: Duration = Duration::from_secs(5);
/// Longest wait for the last lines in the pipes after everybody who could write is gone.
const PIPE_END: Duration = Duration::from_secs(1);
/// How long a leftover shim may take to clean up by itself.
const LEFTOVER_END: Duration = Duration::from_secs(1);
const RUN_SUFFIX: &str = ".process.json";

/// What to run.
pub(crate) struct Order {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) cwd: PathBuf,
    /// The whole environment.
    pub(crate) env: BTreeMap<OsString, OsString>,
    /// Names the file in `run/`.
    pub(crate) id: String,
    pub(crate) source: Source,
    pub(crate) watch: Watch,
}

/// Where and how everything is run.
#[derive(Clone)]
pub(crate) struct Runner {
    pub(crate) shim: Vec<OsString>,
    pub(crate) vanish_grace: Duration,
    /// The `run/` directory.
    pub(crate) run_dir: PathBuf,
    pub(crate) logs: Logs,
}

/// A running command. Dropping it ends the command as a vanished `ballet` would.
#[derive(Debug)]
pub(crate) struct Process {
    /// The command's own process, not its shim.
    pub(crate) pid: i32,
    stops: mpsc::Sender<Duration>,
    monitor: JoinHandle<Exit>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
    /// Its shim was killed, and it with it.
    Unknown,
}

impl Exit {
    fn parse(line: &str) -> Option<Self> {
        let (kind, number) = line.strip_prefix("exited ")?.split_once(' ')?;
        let number = number.parse().ok()?;
        match kind {
            "code" => Some(Self::Code(number)),
            "signal" => Some(Self::Signal(number)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("was killed with its shim"),
        }
    }
}

/// What `run/` keeps about one command.
#[derive(Serialize, Deserialize)]
struct RunFile {
    marker: String,
    shim: Option<Ident>,
    service: Option<Ident>,
}

impl Runner {
    /// Starts a command under a shim; the error is a text for the status.
    pub(crate) async fn spawn(&self, order: Order) -> Result<Process, String> {
        let cannot = |error: std::io::Error| format!("cannot start `{}`: {error}", order.program.display());
        let marker = state::random_hex(16).map_err(cannot)?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(cannot)?;
        let (shim, first) = self.shim.split_first().ok_or("no shim is configured")?;
        let mut command = Command::new(shim);
        #[cfg(unix)]
        command.arg0("ballet");
        let mut child = command
            .args(first)
            .arg(self.vanish_grace.as_millis().to_string())
            .arg(&order.program)
            .args(&order.args)
            .current_dir(&order.cwd)
            .env_clear()
            .envs(&order.env)
            .env(MARKER, &marker)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start a shim in {}: {error}", order.cwd.display()))?;
        // The command still holds the shim's end of the socket, without which we would not see the shim's death.
        drop(command);

        let mut pumps = JoinSet::new();
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            pumps.spawn(self.logs.clone().pump(stdout, "stdout", order.source.clone(), order.watch.clone()));
            pumps.spawn(self.logs.clone().pump(stderr, "stderr", order.source.clone(), order.watch.clone()));
        }
        let path = self.run_dir.join(format!("{}{RUN_SUFFIX}", order.id));
        let shim_pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let mut note = RunFile { marker, shim: shim_pid.and_then(Ident::of), service: None };
        write_note(&path, &note);

        ours.set_nonblocking(true).map_err(cannot)?;
        let (read, control) = UnixStream::from_std(ours).map_err(cannot)?.into_split();
        let mut lines = BufReader::new(read).lines();
        let first = timeout(START_LIMIT, lines.next_line()).await.ok().and_then(Result::ok).flatten();
        let first = first.unwrap_or_else(|| "failed its shim said nothing".to_owned());
        let Some(pid) = first.strip_prefix("started ").and_then(|pid| pid.parse().ok()) else {
            let _ = child.start_kill();
            let _ = child.wait().await;
            let _ = fs::remove_file(&path);
            return Err(first.strip_prefix("failed ").unwrap_or(&first).to_owned());
        };
        note.service = Ident::of(pid);
        write_note(&path, &note);

        let (stops, inbox) = mpsc::channel(4);
        let monitor = Monitor { pid, marker: note.marker, shim: child, lines, control: Some(control), pumps, path };
        Ok(Process { pid, stops, monitor: tokio::spawn(monitor.watch(inbox)) })
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, order: Order) -> Result<Exit, String> {
        let mut process = self.spawn(order).await?;
        Ok(process.ended().await)
    }
}

impl Process {
    /// Sends TERM to the group, and KILL after `grace`.
    pub(crate) async fn stop(&self, grace: Duration) {
        let _ = self.stops.send(grace).await;
    }

    /// Waits until the command and all its children are gone. Cancel safe; not to be asked again after it answered.
    pub(crate) async fn ended(&mut self) -> Exit {
        (&mut self.monitor).await.unwrap_or(Exit::Unknown)
    }
}

struct Monitor {
    pid: i32,
    marker: String,
    shim: Child,
    lines: Lines<BufReader<OwnedReadHalf>>,
    control: Option<OwnedWriteHalf>,
    pumps: JoinSet<()>,
    path: PathBuf,
}

impl Monitor {
    async fn watch(mut self, mut stops: mpsc::Receiver<Duration>) -> Exit {
        let mut exit = None;
        let mut deadline: Option<Instant> = None;
        loop {
            tokio::select! {
                line = self.lines.next_line() => match line {
                    Ok(Some(line)) => if let Some(said) = Exit::parse(&line) {
                        exit = Some(said);
                        deadline = Some(Instant::now() + SHIM_END);
                    },
                    // The shim has ended, one way or the other.
                    Ok(None) | Err(_) => break,
                },
                stop = stops.recv(), if self.control.is_some() => match (stop, &mut self.control) {
                    (Some(grace), Some(control)) => {
                        let _ = control.write_all(format!("stop {}\n", grace.as_millis()).as_bytes()).await;
                        let at = Instant::now() + grace + SHIM_END;
                        deadline = Some(deadline.map_or(at, |earlier| earlier.min(at)));
                    }
                    // Nobody waits for it any more: the shim sees the end of the file.
                    (None, _) | (_, None) => self.control = None,
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    let _ = self.shim.start_kill();
                    exit.get_or_insert(Exit::Signal(Signal::KILL.as_raw()));
                    self.kill_rest().await;
                    break;
                }
            }
        }
        if exit.is_none() {
            // The shim is not waited for yet, so its number and its group's are still its own.
            self.kill_rest().await;
        }
        if timeout(SHIM_END, self.shim.wait()).await.is_err() {
            let _ = self.shim.start_kill();
            let _ = self.shim.wait().await;
        }
        let _ = timeout(PIPE_END, async { while self.pumps.join_next().await.is_some() {} }).await;
        let _ = fs::remove_file(&self.path);
        exit.unwrap_or(Exit::Unknown)
    }

    async fn kill_rest(&self) {
        let (pid, marker) = (self.pid, self.marker.clone());
        let _ = tokio::task::spawn_blocking(move || procs::kill_launch(Some(pid), &marker)).await;
    }
}

fn write_note(path: &Path, note: &RunFile) {
    // Without the note a shim that is killed later together with us could leave its service behind; that is no reason not to start.
    if let Err(error) = serde_json::to_vec(note).map_err(Into::into).and_then(|text| state::replace(path, &text)) {
        tracing::warn!(path = %path.display(), %error, "cannot note a process");
    }
}

/// Ends what an earlier run left behind: processes whose pid **and** start time are on disk, and what carries their marker.
/// Answers the names of those that were still there. Blocks.
pub(crate) fn clean_leftovers(run_dir: &Path) -> Vec<String> {
    let mut found = vec![];
    for entry in fs::read_dir(run_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = name.strip_suffix(RUN_SUFFIX) else { continue };
        if let Some(note) = fs::read(entry.path()).ok().and_then(|text| serde_json::from_slice::<RunFile>(&text).ok()) {
            let service = note.service.filter(Ident::is_alive);
            let shim = note.shim.filter(Ident::is_alive);
            if service.is_some() || shim.is_some() {
                found.push(id.to_owned());
            }
            if let Some(service) = &service {
                procs::signal_group(service.pid, Signal::KILL);
            }
            if let Some(shim) = shim {
                // It is a better cleaner than we are: give it a moment.
                let end = Instant::now() + LEFTOVER_END;
                while service.is_some() && shim.is_alive() && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(5));
                }
                if shim.is_alive() {
                    procs::signal(shim.pid, Signal::KILL);
                }
            }
            procs::kill_launch(None, &note.marker);
        }
        let _ = fs::remove_file(entry.path());
    }
    found
}

/// Finds a program: without `/` beside `ballet`, then in `PATH`; with one relative to `cwd`.
pub(crate) fn find_program(
    word: &str,
    cwd: &Path,
    beside: Option<&Path>,
    path: Option<&std::ffi::OsStr>,
) -> Result<PathBuf, String> {
    if word.contains('/') {
        let path = cwd.join(word);
        return if is_program(&path) { Ok(path) } else { Err(format!("no program at {}", path.display())) };
    }
    let dirs = beside.map(Path::to_owned).into_iter().chain(path.map(std::env::split_paths).into_iter().flatten());
    dirs.map(|dir| cwd.join(dir).join(word)).find(|path| is_program(path)).ok_or_else(|| {
        let beside = beside.map(|dir| format!("in {} nor ", dir.display())).unwrap_or_default();
        format!("no program `{word}` {beside}in PATH")
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Our own environment without what is not the services' business: hidden names, what `ballet` gives to each service by
/// itself, and what `cargo run` told `ballet` about its own package.
pub(crate) fn inherited(hidden: &[String]) -> BTreeMap<OsString, OsString> {
    const NAMES: [&str; 6] = ["PORT", "APP_PORT", "APP_ID", "STORE_URL", "APP_API_TOKEN", "DAPR_API_TOKEN"];
    const STARTS: [&str; 6] =
        ["BALLET_", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"];
    std::env::vars_os()
        .filter(|(name, _)| {
            let name = name.to_string_lossy();
            !hidden.iter().any(|hidden| *hidden == name)
                && !NAMES.contains(&&*name)
                && !STARTS.iter().any(|start| name.starts_with(start))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_beside_us_then_in_the_path() {
        use std::os::unix::fs::OpenOptionsExt;
        let dir = tempfile::tempdir().unwrap();
        for (path, mode) in
            [("beside/a", 0o755), ("path/a", 0o755), ("path/b", 0o755), ("path/c", 0o644), ("own/d", 0o755)]
        {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path).unwrap();
        }
        let beside = dir.path().join("beside");
        let path = dir.path().join("path").into_os_string();
        for (word, expected) in [
            ("a", Ok("beside/a")),
            ("b", Ok("path/b")),
            ("c", Err("in PATH")),
            ("own/d", Ok("own/d")),
            ("./e", Err("no program at")),
        ] {
            match (find_program(word, dir.path(), Some(&beside), Some(&path)), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, dir.path().join(expected)),
                (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
                other => panic!("{word}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_shims_last_word_is_read() {
        for (line, expected) in [
            ("exited code 3", Some(Exit::Code(3))),
            ("exited signal 9", Some(Exit::Signal(9))),
            ("exited well", None),
            ("started 4", None),
        ] {
            assert_eq!(Exit::parse(line), expected);
        }
    }
}
