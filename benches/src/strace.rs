//! System calls, counted by `strace` attached to running processes. It slows them: nothing else is measured meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ballet_core::Timestamp;

use crate::tools;

/// Time that `strace` gets to attach to every thread.
const ATTACH: Duration = Duration::from_millis(1_500);

/// A running `strace`.
pub struct Strace {
    child: Child,
    output: PathBuf,
    _dir: tempfile::TempDir,
}

/// One sync to disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Sync {
    /// When it began, in milliseconds since 1970.
    pub at_ms: f64,
    /// The thread that asked for it.
    pub thread: u32,
    /// The file's name, without its folder, with `*` for parts that are ids.
    pub file: String,
}

impl Strace {
    /// Counts every call of these processes: [`Strace::counts`] tells.
    pub fn count(pids: &[u32]) -> Self {
        Self::attach(pids, &["-c"])
    }

    /// Notes every sync of these processes: [`Strace::syncs`] tells.
    pub fn watch_syncs(pids: &[u32]) -> Self {
        Self::attach(pids, &["-ttt", "-y", "-e", "trace=fsync,fdatasync,sync_file_range,msync"])
    }

    fn attach(pids: &[u32], words: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let output = dir.path().join("strace.txt");
        let mut command = Command::new("strace");
        command.arg("-f").args(words).arg("-o").arg(&output);
        for pid in pids {
            command.arg("-p").arg(pid.to_string());
        }
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace runs");
        std::thread::sleep(ATTACH);
        Self { child, output, _dir: dir }
    }

    /// Detaches, and gives the calls by name.
    pub fn counts(self) -> BTreeMap<String, u64> {
        read_counts(&self.end())
    }

    /// Detaches, and gives the syncs in the order in which they began.
    pub fn syncs(self) -> Vec<Sync> {
        let text = self.end();
        text.lines().filter_map(read_sync).collect()
    }

    fn end(mut self) -> String {
        tools::signal(self.child.id(), "INT");
        let _ = self.child.wait();
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }
}

impl Sync {
    /// Whether it began between two moments.
    pub fn within(&self, from: Timestamp, to: Timestamp) -> bool {
        self.at_ms >= from.millis() as f64 && self.at_ms < (to.millis() + 1) as f64
    }
}

/// Lines such as ` 25.00    0.000010           1        10         2 epoll_wait`; the errors' column may be empty.
fn read_counts(text: &str) -> BTreeMap<String, u64> {
    let counts = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words.last().filter(|name| **name != "total")?;
        words.first()?.parse::<f64>().ok()?;
        Some(((*name).to_owned(), words.get(3)?.parse().ok()?))
    });
    counts.collect()
}

/// Lines such as `4711 1732199999.123456 fdatasync(12</state/orders.db-wal>) = 0`.
fn read_sync(line: &str) -> Option<Sync> {
    let (thread, rest) = line.trim_start().split_once(' ')?;
    let (at, call) = rest.trim_start().split_once(' ')?;
    let (name, arguments) = call.split_once('(')?;
    if !name.ends_with("sync") && name != "sync_file_range" {
        return None;
    }
    let path = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("?", |(path, _)| path);
    let file = kind(path.rsplit('/').next().unwrap_or(path));
    Some(Sync { at_ms: at.parse::<f64>().ok()? * 1e3, thread: thread.parse().ok()?, file })
}

/// A file's name with `*` in place of each part between dots that is a UUID.
fn kind(name: &str) -> String {
    let id = |part: &str| part.len() == 36 && part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    name.split('.').map(|part| if id(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_are_read_once_each() {
        let first = "4711 1732199999.123456 fdatasync(12</state/orders.db-wal>) = 0";
        let wanted = Sync { at_ms: 1_732_199_999_123.456, thread: 4711, file: "orders.db-wal".into() };
        assert_eq!(read_sync(first), Some(wanted));
        let split = "4711  1732199999.123456 fdatasync(12</state/bus.db-wal> <unfinished ...>";
        assert_eq!(read_sync(split).map(|sync| sync.file).as_deref(), Some("bus.db-wal"));
        let mail = "4711 1732199999.1 fsync(9</state/mail/01a1fe8e-b306-7323-9b98-ae1069701675.eml>) = 0";
        assert_eq!(read_sync(mail).map(|sync| sync.file).as_deref(), Some("*.eml"));
        assert_eq!(read_sync("4711 1732199999.123999 <... fdatasync resumed>) = 0"), None);
        assert_eq!(read_sync("4711 1732199999.2 +++ exited with 0 +++"), None);
    }

    #[test]
    fn counts_are_read() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n------ ----------- ----------- --------- --------- \
                    ----------------\n 60.00    0.100000           1     20000           sendto\n 40.00    0.050000           2     \
                    20100        12 recvfrom\n------ ----------- ----------- --------- --------- ----------------\n100.00    \
                    0.150000                 40100        12 total\n";
        let counts = read_counts(text);
        assert_eq!(counts, [("recvfrom".to_owned(), 20_100), ("sendto".to_owned(), 20_000)].into());
    }
}
