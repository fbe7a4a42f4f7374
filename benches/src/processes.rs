//! Processes seen from outside: who descends from whom, CPU time, memory. Linux only.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

/// Clock ticks of `/proc/PID/stat` in a second: the same on every Linux (`getconf CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

/// A process and everything below it, in the order of their birth.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| child.parse().ok()).flat_map(tree));
    }
    all
}

/// What a process calls itself; its first argument's last part for our own shims and services.
pub fn name(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> = line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let program = words.first().and_then(|word| word.rsplit('/').next()).unwrap_or_default().to_owned();
    if words.get(1).is_some_and(|word| word == "__shim") { format!("{program} (shim)") } else { program }
}

/// CPU time in seconds. Threads that ended count too.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// In the program.
    pub user: f64,
    /// In the kernel.
    pub system: f64,
}

impl Cpu {
    /// Both together.
    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

/// CPU time of each process so far; those that are gone are left out.
#[derive(Clone, Debug, Default)]
pub struct CpuTimes(BTreeMap<u32, Cpu>);

impl CpuTimes {
    /// Of these processes, now.
    pub fn now(pids: &[u32]) -> Self {
        let times = pids.iter().filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((*pid, read_stat(&stat)?))
        });
        Self(times.collect())
    }

    /// What was used since then.
    pub fn since(&self, before: &Self) -> Cpu {
        let mut used = Cpu::default();
        for (pid, now) in &self.0 {
            let was = before.0.get(pid).copied().unwrap_or_default();
            used.user += now.user - was.user;
            used.system += now.system - was.system;
        }
        used
    }

    /// What was used since then, by the processes' names.
    pub fn since_by_name(&self, before: &Self) -> BTreeMap<String, f64> {
        let mut used: BTreeMap<String, f64> = BTreeMap::new();
        for (pid, now) in &self.0 {
            let was = before.0.get(pid).copied().unwrap_or_default();
            *used.entry(name(*pid)).or_default() += now.total() - was.total();
        }
        used
    }
}

/// User and system time of a line of `/proc/PID/stat`. The name in it may hold blanks and brackets.
fn read_stat(stat: &str) -> Option<Cpu> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let seconds = |at: usize| Some(fields.get(at)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(Cpu { user: seconds(11)?, system: seconds(12)? })
}

/// Memory of these processes in bytes, shared pages divided among those who share them (PSS).
pub fn pss(pids: &[u32]) -> u64 {
    pids.iter().map(|pid| rollup(*pid, "Pss:")).sum()
}

/// Resident memory of these processes in bytes (RSS).
pub fn rss(pids: &[u32]) -> u64 {
    pids.iter().map(|pid| rollup(*pid, "Rss:")).sum()
}

/// Memory by process: `[{pid, name, pssBytes, rssBytes}]`.
pub fn memory(pids: &[u32]) -> Value {
    let one = |pid: &u32| {
        let (pss, rss) = (rollup(*pid, "Pss:"), rollup(*pid, "Rss:"));
        json!({ "pid": pid, "name": name(*pid), "pssBytes": pss, "rssBytes": rss })
    };
    pids.iter().map(one).collect()
}

fn rollup(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_name_with_brackets() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194304 1 2 3 4 150 25 0 0 20 0 1 0 100 1 1";
        assert_eq!(read_stat(stat), Some(Cpu { user: 1.5, system: 0.25 }));
        assert_eq!(read_stat("42 (x"), None);
    }

    #[test]
    fn this_process_has_memory_and_a_tree() {
        let me = std::process::id();
        assert_eq!(tree(me).first(), Some(&me));
        assert!(pss(&[me]) > 100_000 && rss(&[me]) >= pss(&[me]));
    }
}
