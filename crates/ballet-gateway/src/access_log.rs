//! The access log: one JSON line per exchange, with the reason of every decision.
//!
//! ```text
//! request: line, made on its thread ──copied──▶ buffer ──whole, at CHUNK bytes or each GATHER──▶ writer thread
//! ```
//!
//! The writer is woken by the first line after a rest and by a full chunk; between them it looks by itself, and it sleeps
//! while nothing comes. When it falls behind by more than [`MAX_BUFFER`], lines are dropped and counted: a slow disk never
//! slows a request.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Serialize, Serializer};
use tracing::warn;

use ballet_core::{Timestamp, TraceContext};

/// Bytes that wait for the writer at most.
pub const MAX_BUFFER: usize = 4 << 20;
/// Bytes that are written at once, without waiting for more.
const CHUNK: usize = 64 << 10;
/// How long fewer bytes gather before they are written.
const GATHER: Duration = Duration::from_millis(100);
/// A buffer that a burst has made larger than this is given back.
const KEPT: usize = 4 * CHUNK;
/// A log file that grew to this length is renamed to `NAME.1`, in place of the last one, and a new one begun.
pub const MAX_LOG_FILE: u64 = 64 << 20;

/// Where the access log goes.
#[derive(Default)]
pub enum LogTarget {
    /// Nowhere.
    #[default]
    Off,
    /// Standard output.
    Stdout,
    /// Appended to this file, renamed at [`MAX_LOG_FILE`].
    File(PathBuf),
    /// To whatever this is.
    Writer(Box<dyn Write + Send>),
}

/// Takes lines. Dropping it writes what is left.
pub(crate) struct AccessLog {
    shared: Option<Arc<Shared>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// One exchange.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line<'a> {
    #[serde(serialize_with = "as_text")]
    pub(crate) time: Timestamp,
    pub(crate) peer: Option<IpAddr>,
    pub(crate) method: &'a str,
    /// Without the query, which may hold secrets.
    pub(crate) path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) route: Option<&'a str>,
    pub(crate) status: u16,
    /// Why this status: `forwarded`, `no route`, `token expired`, `breaker open`, …
    pub(crate) reason: &'a str,
    /// Code of the error that the client was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<&'static str>,
    /// `open`, or the rule that held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) access: Option<&'a str>,
    /// Who it was: `sub`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<&'a str>,
    /// How many more could have followed at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit_left: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instance: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attempts: Option<u32>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) duration_ms: f64,
    #[serde(serialize_with = "trace_id", skip_serializing_if = "Option::is_none")]
    pub(crate) trace_id: Option<TraceContext>,
}

struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    lines: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    /// The writer sleeps until it is woken.
    asleep: bool,
    closed: bool,
}

thread_local! {
    /// Where a line is made, so that the shared buffer is locked for a copy only.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(vec![]) };
}

/// A file that is begun anew when it has grown long.
struct Rotating {
    path: PathBuf,
    file: File,
    length: u64,
}

impl AccessLog {
    /// Begins to write to `target`.
    pub(crate) fn start(target: LogTarget) -> io::Result<Self> {
        let writer: Box<dyn Write + Send> = match target {
            LogTarget::Off => return Ok(Self { shared: None, writer: Mutex::default() }),
            LogTarget::Stdout => Box::new(io::stdout()),
            LogTarget::File(path) => Box::new(Rotating::open(path)?),
            LogTarget::Writer(writer) => writer,
        };
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            lines: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || theirs.write_to(writer))?;
        Ok(Self { shared: Some(shared), writer: Mutex::new(Some(thread)) })
    }

    /// Whether anybody reads.
    pub(crate) fn is_on(&self) -> bool {
        self.shared.is_some()
    }

    /// Takes a line, or drops it when too many wait.
    pub(crate) fn put(&self, line: &Line<'_>) {
        let Some(shared) = &self.shared else { return };
        SCRATCH.with_borrow_mut(|scratch| {
            if serde_json::to_writer(&mut *scratch, line).is_ok() {
                scratch.push(b'\n');
                shared.take(scratch);
            }
            scratch.clear();
            scratch.shrink_to(KEPT);
        });
    }

    /// Lines taken and lines dropped since the start.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.shared.as_ref().map_or((0, 0), |shared| (count(&shared.lines), count(&shared.dropped)))
    }

    /// Writes what is left and ends the thread. Blocks for as long as the writer does.
    pub(crate) fn close(&self) {
        let Some(shared) = &self.shared else { return };
        shared.state().closed = true;
        shared.filled.notify_one();
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
            && writer.join().is_err()
        {
            warn!("the access log's writer panicked");
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, line: &[u8]) {
        let mut state = self.state();
        let before = state.buffer.len();
        if state.closed || before > MAX_BUFFER {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.buffer.extend_from_slice(line);
        let full = before < CHUNK && state.buffer.len() >= CHUNK;
        let wake = std::mem::take(&mut state.asleep) || full;
        drop(state);
        self.lines.fetch_add(1, Ordering::Relaxed);
        if wake {
            self.filled.notify_one();
        }
    }

    /// Waits until lines are worth a write, and takes them; none at the end.
    fn gathered(&self, batch: &mut Vec<u8>) {
        let gathering = |state: &mut State| state.buffer.len() < CHUNK && !state.closed;
        let mut state = self.state();
        loop {
            let waited = self.filled.wait_timeout_while(state, GATHER, gathering);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !state.buffer.is_empty() || state.closed {
                return std::mem::swap(batch, &mut state.buffer);
            }
            state.asleep = true;
            let woken = self.filled.wait_while(state, |state| state.asleep && !state.closed);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write_to(&self, mut writer: Box<dyn Write + Send>) {
        let mut batch = vec![];
        let mut broken = false;
        loop {
            self.gathered(&mut batch);
            if batch.is_empty() {
                return;
            }
            let written = writer.write_all(&batch).and_then(|()| writer.flush());
            if let Err(error) = written {
                let lines = batch.iter().filter(|byte| **byte == b'\n').count();
                self.dropped.fetch_add(lines as u64, Ordering::Relaxed);
                // Once is enough: a full disk would fill the other logs with this.
                if !broken {
                    warn!(%error, "the access log cannot be written");
                }
                broken = true;
            } else {
                broken = false;
            }
            batch.clear();
            batch.shrink_to(KEPT);
        }
    }
}

impl Rotating {
    fn open(path: PathBuf) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = append(&path)?;
        Ok(Self { length: file.metadata()?.len(), file, path })
    }
}

impl Write for Rotating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    /// Called between whole lines only, so no line is cut in two.
    fn flush(&mut self) -> io::Result<()> {
        if self.length >= MAX_LOG_FILE {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            self.file = append(&self.path)?;
            self.length = 0;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn as_text<S: Serializer>(value: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn trace_id<S: Serializer>(trace: &Option<TraceContext>, serializer: S) -> Result<S::Ok, S::Error> {
    /// Where the id stands in `00-ID-SPAN-FLAGS`.
    const ID: std::ops::Range<usize> = 3..35;
    let mut text = [0; 64];
    if let Some(trace) = trace {
        // It has 55 characters.
        let _ = write!(&mut text[..], "{trace}");
    }
    serializer.serialize_str(std::str::from_utf8(&text[ID]).unwrap_or(""))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    pub(crate) struct Kept(pub(crate) Arc<Mutex<Vec<u8>>>);

    impl Kept {
        pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(path: &str) -> Line<'_> {
        Line { method: "GET", path, status: 200, reason: "forwarded", ..Line::default() }
    }

    #[test]
    fn every_line_is_written_before_the_end() {
        let kept = Kept::default();
        let log = AccessLog::start(LogTarget::Writer(Box::new(kept.clone()))).unwrap();
        for n in 0..1000 {
            log.put(&line(&format!("/{n}\"\n")));
        }
        log.close();
        let lines = kept.lines();
        assert_eq!(lines.len(), 1000);
        assert_eq!(lines[999]["path"], "/999\"\n");
        assert_eq!(log.counts(), (1000, 0));
    }

    /// Tells of every write.
    struct Told(std::sync::mpsc::Sender<usize>);

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(bytes.iter().filter(|byte| **byte == b'\n').count());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_gather_and_come_without_more_of_them() {
        let (sender, writes) = std::sync::mpsc::channel();
        let log = AccessLog::start(LogTarget::Writer(Box::new(Told(sender)))).unwrap();
        // The second round finds the writer asleep, or about to look.
        for lines in [1, 300] {
            (0..lines).for_each(|_| log.put(&line("/a")));
            let (mut came, mut batches) = (0, 0);
            while came < lines {
                came += writes.recv_timeout(Duration::from_secs(20)).expect("nobody has to close it");
                batches += 1;
            }
            assert!(came == lines && batches <= 1 + lines / 10, "{came} of {lines} lines in {batches} writes");
        }
        // Larger than a chunk, so it does not wait for the timer either.
        log.put(&line(&"x".repeat(CHUNK)));
        assert_eq!(writes.recv_timeout(Duration::from_secs(20)), Ok(1));
    }

    #[test]
    fn a_trace_is_told_by_its_id() {
        let kept = Kept::default();
        let log = AccessLog::start(LogTarget::Writer(Box::new(kept.clone()))).unwrap();
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace_id = TraceContext::parse(text);
        let peer = Some(IpAddr::from([10, 0, 0, 7]));
        log.put(&Line { time: Timestamp(1_700_000_000_123), peer, trace_id, ..line("/") });
        log.close();
        let line = &kept.lines()[0];
        assert_eq!(line["traceId"], text[3..35]);
        assert_eq!((&line["peer"], &line["time"]), (&"10.0.0.7".into(), &"2023-11-14T22:13:20.123Z".into()));
    }

    #[test]
    fn a_stuck_writer_costs_lines_and_nothing_else() {
        let kept = Kept::default();
        let guard = kept.0.lock().unwrap();
        let log = AccessLog::start(LogTarget::Writer(Box::new(kept.clone()))).unwrap();
        let long = "x".repeat(1 << 20);
        for _ in 0..20 {
            log.put(&line(&long));
        }
        let (taken, dropped) = log.counts();
        assert!(taken >= 4 && dropped >= 8 && taken + dropped == 20, "{taken} {dropped}");
        drop(guard);
        log.close();
        assert_eq!(kept.lines().len() as u64, taken);
    }

    #[test]
    fn a_long_file_is_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/access.log");
        let mut file = Rotating::open(path.clone()).unwrap();
        file.write_all(b"old\n").unwrap();
        file.length = MAX_LOG_FILE;
        file.flush().unwrap();
        file.write_all(b"new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("logs/access.log.1")).unwrap(), "old\n");
    }
}
