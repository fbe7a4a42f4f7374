//! The machine that a number comes from.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::stats;

/// What a reader needs to compare our numbers with their own.
#[derive(Clone, Debug)]
pub struct Machine {
    cores: usize,
    memory_bytes: u64,
    cpu: String,
    kernel: String,
    rustc: String,
    commit: String,
    file_system: String,
    load: String,
    /// Median of appending 4 KB and syncing, in milliseconds, where the systems under test keep their state.
    pub sync_ms: f64,
}

impl Machine {
    /// Looks around; takes about a second.
    pub fn look() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let kib = field(&text("/proc/meminfo"), "MemTotal");
        let kib: u64 = kib.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
        Self {
            cores: crate::tools::cores(),
            memory_bytes: kib * 1024,
            cpu: field(&text("/proc/cpuinfo"), "model name"),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            rustc: said("rustc", &["--version"]),
            commit: said("git", &["rev-parse", "--short", "HEAD"]),
            file_system: file_system(&std::env::temp_dir(), &text("/proc/mounts")),
            load: text("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" "),
            sync_ms: sync_ms(300),
        }
    }

    /// Says on the terminal what makes these numbers doubtful.
    pub fn warn(&self) {
        if self.file_system.starts_with("tmpfs") {
            eprintln!("the temporary directory is in memory, where a sync costs nothing: point TMPDIR to a disk");
        }
        let load: f64 = self.load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
        if load > 0.5 {
            eprintln!("the machine is busy (load {load}): the numbers will be worse than they are");
        }
    }

    /// As it is kept.
    pub fn json(&self) -> Value {
        json!({
            "cores": self.cores, "memoryBytes": self.memory_bytes, "cpu": self.cpu, "kernel": self.kernel,
            "rustc": self.rustc, "commit": self.commit, "fileSystem": self.file_system, "loadBefore": self.load,
            "appendAndSync4KiBMs": (self.sync_ms * 1e3).round() / 1e3,
        })
    }
}

fn said(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// Kind of the file system below a folder: that of the longest mount point that leads to it.
fn file_system(folder: &Path, mounts: &str) -> String {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        Some((Path::new(words.next()?), words.next()?))
    });
    let below = mounts.filter(|(point, _)| folder.starts_with(point));
    below.max_by_key(|(point, _)| point.components().count()).map_or("?", |(_, kind)| kind).to_owned()
}

fn sync_ms(times: usize) -> f64 {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let block = [7_u8; 4096];
    let took = (0..times).map(|_| {
        let begun = Instant::now();
        file.write_all(&block).expect("room on the disk");
        file.sync_data().expect("the disk can sync");
        begun.elapsed().as_secs_f64() * 1e3
    });
    stats::median(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_counts() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmpest xfs rw 0 0\n";
        for (folder, kind) in [("/tmp/x", "tmpfs"), ("/home", "ext4"), ("/tmpest/y", "xfs")] {
            assert_eq!(file_system(Path::new(folder), mounts), kind, "{folder}");
        }
    }

    #[test]
    fn a_machine_has_a_description() {
        let machine = Machine { sync_ms: 0.2, ..Machine::look() };
        let json = machine.json();
        assert!(json["cores"].as_u64() >= Some(1) && json["memoryBytes"].as_u64() > Some(1 << 20), "{json}");
        assert!(json["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()), "{json}");
    }
}
