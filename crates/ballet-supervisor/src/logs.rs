//! What services print: joined with who said it and when, written to rotated files, followed live.
//!
//! ```text
//! pipe ── pump (a task per pipe: lines → JSON) ──bounded──> writer (one thread: files, rotation) ── broadcast ──> followers
//! ```
//!
//! One thread writes, so that a disk that is busy syncing stops no task; when its queue is full, the pumps wait, and so in the
//! end does the service: nothing is lost. A follower that is too slow loses lines, and is told how many.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ballet_core::{Clock, ServiceName, Timestamp, TraceContext};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::spec::Limits;

/// Longest line; a longer one is cut into several. In bytes.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// Batches waiting for the writer.
const QUEUE: usize = 256;
/// Lines a follower may be behind.
const FOLLOWER_QUEUE: usize = 4096;
/// Most lines a tail gives.
pub const MAX_TAIL_LINES: usize = 10_000;
/// How far back in a file a tail looks, in bytes.
const MAX_TAIL_BYTES: u64 = 4 << 20;

/// Who prints.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Source {
    /// None for the system's build.
    pub(crate) service: Option<ServiceName>,
    pub(crate) part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    Build,
    Init,
    Instance(u32),
}

impl Source {
    /// The file, relative to the state directory.
    pub(crate) fn file(&self) -> PathBuf {
        let Some(service) = &self.service else { return "platform/build.log".into() };
        let name = match self.part {
            Part::Build => format!("{service}-build.log"),
            Part::Init => format!("{service}-init.log"),
            Part::Instance(n) => format!("{service}-{n}.log"),
        };
        Path::new("services").join(service.as_str()).join(name)
    }
}

/// One joined line: a JSON object without its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The service.
    pub service: ServiceName,
    /// The instance; none for a build or an initializer.
    pub instance: Option<u32>,
    /// The JSON object.
    pub text: Arc<str>,
}

/// The last lines, and all that come after them.
pub struct Tail {
    /// The last lines, oldest first.
    pub lines: Vec<Arc<str>>,
    /// Everything printed after those, by any service.
    pub follow: broadcast::Receiver<LogLine>,
}

enum Message {
    Lines(Source, Vec<Arc<str>>),
    Tail { service: Option<ServiceName>, lines: usize, reply: oneshot::Sender<io::Result<Tail>> },
    Flush(oneshot::Sender<()>),
}

/// The writer's handle.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    messages: mpsc::Sender<Message>,
    clock: Arc<ClockHolder>,
}

struct ClockHolder(Arc<dyn Clock>);

impl std::fmt::Debug for ClockHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Logs {
    /// Starts the writer's thread; it ends with the last handle.
    pub(crate) fn open(root: &Path, limits: &Limits, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let (messages, inbox) = mpsc::channel(QUEUE);
        let writer = Writer {
            root: root.to_owned(),
            bytes: limits.log_bytes,
            keep: limits.log_keep,
            files: HashMap::new(),
            followers: broadcast::channel(FOLLOWER_QUEUE).0,
        };
        std::thread::Builder::new().name("ballet-logs".into()).spawn(move || writer.run(inbox))?;
        Ok(Self { messages, clock: Arc::new(ClockHolder(clock)) })
    }

    /// Reads a pipe to its end.
    pub(crate) async fn pump(
        self,
        mut pipe: impl AsyncRead + Unpin,
        stream: &'static str,
        source: Source,
        watch: Watch,
    ) {
        let mut buffer = Vec::with_capacity(8 * 1024);
        loop {
            let read = pipe.read_buf(&mut buffer).await;
            let ended = !matches!(read, Ok(n) if n > 0);
            let mut lines = vec![];
            let mut from = 0;
            loop {
                let rest = &buffer[from..];
                let (line, used) = match rest.iter().position(|b| *b == b'\n') {
                    Some(at) if at <= MAX_LINE_BYTES => (&rest[..at], at + 1),
                    _ if rest.len() > MAX_LINE_BYTES => (&rest[..MAX_LINE_BYTES], MAX_LINE_BYTES),
                    _ if ended && !rest.is_empty() => (rest, rest.len()),
                    _ => break,
                };
                from += used;
                let line = String::from_utf8_lossy(line);
                let line = line.strip_suffix('\r').unwrap_or(&line);
                watch(line);
                lines.push(join(line, stream, &source, self.clock.0.now()).into());
            }
            buffer.drain(..from);
            if !lines.is_empty() {
                let _ = self.messages.send(Message::Lines(source.clone(), lines)).await;
            }
            if ended {
                return;
            }
        }
    }

    /// The last lines of a service (or of all), with no gap to what follows.
    pub(crate) async fn tail(&self, service: Option<ServiceName>, lines: usize) -> io::Result<Tail> {
        let (reply, answer) = oneshot::channel();
        let lines = lines.min(MAX_TAIL_LINES);
        let _ = self.messages.send(Message::Tail { service, lines, reply }).await;
        answer.await.map_err(|_| io::Error::other("the log writer has ended"))?
    }

    /// Waits until all that was printed so far is written.
    pub(crate) async fn flush(&self) {
        let (reply, answer) = oneshot::channel();
        let _ = self.messages.send(Message::Flush(reply)).await;
        drop(answer.await);
    }
}

/// Sees each raw line as it comes.
pub(crate) type Watch = Arc<dyn Fn(&str) + Send + Sync>;

/// Makes one JSON object of a line. A line that is an object keeps its fields and is joined with `time`, `stream`, `service` and
/// `instance`; any other becomes `message`. A `time` of its own stays if it is RFC 3339; a trace id found under one of the usual
/// names also stands in `traceId`.
fn join(line: &str, stream: &str, source: &Source, now: Timestamp) -> String {
    let own = if line.starts_with('{') { serde_json::from_str::<Map<String, Value>>(line).ok() } else { None };
    let mut joined = Map::new();
    let time = own.as_ref().and_then(|own| own.get("time")?.as_str()).filter(|text| Timestamp::parse(text).is_some());
    joined.insert("time".into(), time.map_or_else(|| now.to_string(), str::to_owned).into());
    joined.insert("stream".into(), stream.into());
    if let Some(service) = &source.service {
        joined.insert("service".into(), service.as_str().into());
    }
    match source.part {
        Part::Build => joined.insert("part".into(), "build".into()),
        Part::Init => joined.insert("part".into(), "init".into()),
        Part::Instance(n) => joined.insert("instance".into(), n.into()),
    };
    match own {
        Some(own) => {
            if let Some(id) = trace_id(&own) {
                joined.insert("traceId".into(), id.into());
            }
            for (key, value) in own {
                joined.entry(key).or_insert(value);
            }
        }
        None => drop(joined.insert("message".into(), line.into())),
    }
    Value::Object(joined).to_string()
}

fn trace_id(line: &Map<String, Value>) -> Option<String> {
    let inner = ["fields", "span"].iter().filter_map(|key| line.get(*key)?.as_object());
    std::iter::once(line).chain(inner).find_map(|object| {
        let plain = ["traceId", "trace_id", "trace.id", "traceID"].iter().find_map(|key| object.get(*key)?.as_str());
        let parent = || TraceContext::parse(object.get("traceparent")?.as_str()?);
        plain.map(str::to_owned).or_else(|| Some(parent()?.trace_id()))
    })
}

struct Writer {
    root: PathBuf,
    bytes: u64,
    keep: u32,
    files: HashMap<Source, (File, u64)>,
    followers: broadcast::Sender<LogLine>,
}

impl Writer {
    fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        while let Some(message) = inbox.blocking_recv() {
            match message {
                Message::Lines(source, lines) => self.take(&source, &lines),
                Message::Tail { service, lines, reply } => {
                    let follow = self.followers.subscribe();
                    let _ = reply.send(self.tail(service.as_ref(), lines).map(|lines| Tail { lines, follow }));
                }
                Message::Flush(reply) => drop(reply.send(())),
            }
        }
    }

    fn take(&mut self, source: &Source, lines: &[Arc<str>]) {
        let mut chunk = String::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
        for line in lines {
            chunk.push_str(line);
            chunk.push('\n');
        }
        if let Err(error) = self.write(source, chunk.as_bytes()) {
            // Opened anew with the next lines; the followers still see these.
            self.files.remove(source);
            tracing::warn!(file = %source.file().display(), %error, "cannot write a log file");
        }
        let Some(service) = &source.service else { return };
        let instance = match source.part {
            Part::Instance(n) => Some(n),
            Part::Build | Part::Init => None,
        };
        for line in lines {
            let _ = self.followers.send(LogLine { service: service.clone(), instance, text: line.clone() });
        }
    }

    fn write(&mut self, source: &Source, chunk: &[u8]) -> io::Result<()> {
        let path = self.root.join(source.file());
        let size = match self.files.get(source) {
            Some((_, size)) => *size,
            None => self.open(source, &path)?,
        };
        if size > 0 && size + chunk.len() as u64 > self.bytes {
            self.files.remove(source);
            for n in (1..self.keep).rev() {
                let _ = fs::rename(numbered(&path, n), numbered(&path, n + 1));
            }
            if self.keep > 0 {
                fs::rename(&path, numbered(&path, 1))?
            } else {
                fs::remove_file(&path)?
            }
            self.open(source, &path)?;
        }
        let (file, size) = self.files.get_mut(source).expect("opened above");
        file.write_all(chunk)?;
        *size += chunk.len() as u64;
        Ok(())
    }

    fn open(&mut self, source: &Source, path: &Path) -> io::Result<u64> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let size = file.metadata()?.len();
        self.files.insert(source.clone(), (file, size));
        Ok(size)
    }

    fn tail(&self, service: Option<&ServiceName>, lines: usize) -> io::Result<Vec<Arc<str>>> {
        let services = self.root.join("services");
        let dirs: Vec<PathBuf> = match service {
            Some(service) => vec![services.join(service.as_str())],
            None => fs::read_dir(&services)?.flatten().map(|entry| entry.path()).collect(),
        };
        let mut found: BTreeMap<(Timestamp, usize), Arc<str>> = BTreeMap::new();
        for dir in dirs {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for path in
                entries.flatten().map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == "log"))
            {
                let mut own = last_lines(&path, lines)?;
                if own.len() < lines {
                    let mut older = last_lines(&numbered(&path, 1), lines - own.len()).unwrap_or_default();
                    older.append(&mut own);
                    own = older;
                }
                for line in own {
                    let time = stamp(&line);
                    found.insert((time, found.len()), line.into());
                }
            }
        }
        let skip = found.len().saturating_sub(lines);
        Ok(found.into_values().skip(skip).collect())
    }
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// The time that a joined line begins with.
fn stamp(line: &str) -> Timestamp {
    let time = line.strip_prefix("{\"time\":\"").and_then(|rest| rest.split('"').next());
    time.and_then(Timestamp::parse).unwrap_or_default()
}

fn last_lines(path: &Path, lines: usize) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let from = size.saturating_sub(MAX_TAIL_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = vec![];
    file.take(MAX_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // Where we did not begin at the beginning, the first line is a piece of one.
    let all: Vec<&str> = text.lines().skip(usize::from(from > 0)).collect();
    Ok(all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use ballet_core::ManualClock;

    use super::*;

    fn orders(n: u32) -> Source {
        Source { service: Some("orders".parse().unwrap()), part: Part::Instance(n) }
    }

    fn quiet() -> Watch {
        Arc::new(|_| {})
    }

    #[test]
    fn lines_are_joined_with_who_said_it_and_when() {
        let now = Timestamp::parse("2026-11-21T13:30:00.250Z").unwrap();
        for (line, expected) in [
            (
                "hello \"you\"",
                r#"{"time":"2026-11-21T13:30:00.250Z","stream":"stderr","service":"orders","instance":2,"message":"hello \"you\""}"#,
            ),
            (
                r#"{"level":"info","message":"placed","traceId":"4bf9","service":"liar"}"#,
                r#"{"time":"2026-11-21T13:30:00.250Z","stream":"stderr","service":"orders","instance":2,"traceId":"4bf9","level":"info","message":"placed"}"#,
            ),
            (
                r#"{"time":"2026-11-21T13:29:59.999123Z","fields":{"trace_id":"4bf9"}}"#,
                r#"{"time":"2026-11-21T13:29:59.999123Z","stream":"stderr","service":"orders","instance":2,"traceId":"4bf9","fields":{"trace_id":"4bf9"}}"#,
            ),
            (
                r#"{"time":12,"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#,
                r#"{"time":"2026-11-21T13:30:00.250Z","stream":"stderr","service":"orders","instance":2,"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#,
            ),
            (
                "{not json}",
                r#"{"time":"2026-11-21T13:30:00.250Z","stream":"stderr","service":"orders","instance":2,"message":"{not json}"}"#,
            ),
        ] {
            assert_eq!(join(line, "stderr", &orders(2), now), expected);
        }
    }

    #[tokio::test]
    async fn a_pipe_is_cut_into_lines_and_the_last_one_needs_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path(), &Limits::default(), Arc::new(ManualClock::default())).unwrap();
        let long = "x".repeat(MAX_LINE_BYTES + 10);
        let input = [b"one\r\n\ntwo\xff\n", long.as_bytes(), b"\nend"].concat();
        logs.clone().pump(&input[..], "stdout", orders(1), quiet()).await;
        let lines = logs.tail(Some("orders".parse().unwrap()), 100).await.unwrap().lines;
        let messages: Vec<String> = lines
            .iter()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["message"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(messages, ["one", "", "two\u{fffd}", &"x".repeat(MAX_LINE_BYTES), "xxxxxxxxxx", "end"]);
    }

    #[tokio::test]
    async fn files_are_rotated_by_size_and_so_many_kept() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { log_bytes: 250, log_keep: 2, ..Limits::default() };
        let logs = Logs::open(dir.path(), &limits, Arc::new(ManualClock::default())).unwrap();
        for n in 0..10 {
            logs.clone().pump(format!("line {n}\n").as_bytes(), "stdout", orders(1), quiet()).await;
        }
        logs.flush().await;
        let path = dir.path().join("services/orders/orders-1.log");
        let last = |path: &Path| last_lines(path, 9).unwrap().last().map(|l| l.contains("line 9")).unwrap();
        assert!(last(&path));
        for (n, there) in [(1, true), (2, true), (3, false)] {
            assert_eq!(numbered(&path, n).exists(), there, "{n}");
            assert!(!there || fs::metadata(numbered(&path, n)).unwrap().len() <= 250);
        }
        let tail = logs.tail(None, 3).await.unwrap().lines;
        assert!(tail.len() == 3 && tail[0].contains("line 7") && tail[2].contains("line 9"), "{tail:?}");
    }

    #[tokio::test]
    async fn a_follower_sees_what_comes_after_the_tail() {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        let logs = Logs::open(dir.path(), &Limits::default(), Arc::new(clock.clone())).unwrap();
        logs.clone().pump(&b"first\n"[..], "stdout", orders(1), quiet()).await;
        clock.advance(std::time::Duration::from_millis(5));
        logs.clone().pump(&b"second\n"[..], "stdout", orders(2), quiet()).await;
        let mut tail = logs.tail(None, 10).await.unwrap();
        assert!(tail.lines[0].contains("first") && tail.lines[1].contains("second"), "{:?}", tail.lines);
        logs.clone().pump(&b"third\n"[..], "stdout", orders(2), quiet()).await;
        let line = tail.follow.recv().await.unwrap();
        assert!(line.text.contains("third") && line.instance == Some(2));
    }
}
