//! What the system knows about processes: who they are beyond their number, whose children they are, how to end them.
//!
//! A pid alone is not an identity, because the system uses numbers again. A pid with its start time is.

use std::fs;
#[cfg(not(target_os = "linux"))]
use std::process::Command;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// Variable that marks every process of one launch, so that those which left their group are still found.
pub(crate) const MARKER: &str = "BALLET_LAUNCH";

/// A process, told apart from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ident {
    pub(crate) pid: i32,
    /// Linux: boot id and start time in clock ticks; elsewhere what `ps -o lstart` prints.
    pub(crate) start: String,
}

impl Ident {
    /// Who has this number now; none if nobody, or only a zombie.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        start_time(pid).map(|start| Self { pid, start })
    }

    /// Whether this very process still runs.
    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now == *self)
    }
}

/// Signals one process; false if there is none.
pub(crate) fn signal(pid: i32, signal: Signal) -> bool {
    // 1 and below would be init, our own group, or everybody.
    pid > 1 && Pid::from_raw(pid).is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
}

/// Signals a process group; false if it has no member.
pub(crate) fn signal_group(leader: i32, signal: Signal) -> bool {
    leader > 1 && Pid::from_raw(leader).is_some_and(|pid| rustix::process::kill_process_group(pid, signal).is_ok())
}

/// Kills a group and whoever carries the launch's marker, until nobody is left (a few rounds, because they may be forking).
pub(crate) fn kill_launch(leader: Option<i32>, marker: &str) {
    for _ in 0..10 {
        let group = leader.is_some_and(|leader| signal_group(leader, Signal::KILL));
        let marked = marked(marker);
        for pid in &marked {
            signal(*pid, Signal::KILL);
        }
        if !group && marked.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// All living descendants of a process, its own children first.
pub(crate) fn descendants(of: i32) -> Vec<i32> {
    let parents = parents();
    let mut found = vec![of];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.remove(0);
    found
}

/// Resident memory in bytes; Linux only.
pub(crate) fn rss_bytes(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The fields of `/proc/PID/stat` after the command's name, which may itself hold spaces and brackets.
#[cfg(target_os = "linux")]
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

#[cfg(target_os = "linux")]
fn start_time(pid: i32) -> Option<String> {
    let fields = stat(pid)?;
    if matches!(fields.first()?.as_str(), "Z" | "X") {
        return None;
    }
    // Field 22 of proc(5), counted from field 3. Ticks since boot say nothing without the boot.
    let ticks = fields.get(19)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Some(format!("{}:{ticks}", boot.trim()))
}

#[cfg(not(target_os = "linux"))]
fn start_time(pid: i32) -> Option<String> {
    let output = Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (stat, start) = text.split_once(char::is_whitespace)?;
    (!stat.starts_with('Z')).then(|| start.trim().to_owned())
}

/// Pairs of process and parent.
#[cfg(target_os = "linux")]
fn parents() -> Vec<(i32, i32)> {
    all().filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?))).collect()
}

#[cfg(not(target_os = "linux"))]
fn parents() -> Vec<(i32, i32)> {
    let Ok(output) = Command::new("ps").args(["-axo", "pid=,ppid="]).output() else { return vec![] };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        })
        .collect()
}

/// Processes that were started with this marker in their environment. Linux only; elsewhere the group has to do.
fn marked(marker: &str) -> Vec<i32> {
    if marker.is_empty() {
        return vec![];
    }
    let wanted = format!("{MARKER}={marker}").into_bytes();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    all()
        .filter(|pid| *pid != own)
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|env| env.split(|b| *b == 0).any(|entry| entry == wanted))
        })
        // A zombie's environment reads as empty, so it is not found again.
        .collect()
}

fn all() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_nobody_else() {
        let own = i32::try_from(std::process::id()).unwrap();
        let ident = Ident::of(own).unwrap();
        assert!(ident.is_alive());
        assert!(!Ident { start: "another boot".into(), ..ident }.is_alive());
        assert_eq!(Ident::of(i32::MAX - 1), None);
    }
}
