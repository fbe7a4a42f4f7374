//! Programs that the benchmarks use, and the CPUs they run on.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where a program is, looked for as a shell would, and where Debian keeps servers.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Programs and the Debian packages that hold them.
const PACKAGES: &[(&str, &str)] =
    &[("nginx", "nginx"), ("strace", "strace"), ("taskset", "util-linux"), ("wrk", "wrk")];

/// Installs what is missing of these programs, with Debian's packages, asking nothing. Ends this program if it cannot.
pub fn need(programs: &[&str]) {
    let missing = || programs.iter().copied().filter(|program| find(program).is_none()).collect::<Vec<_>>();
    for refresh in [false, true] {
        let wanted = missing();
        if wanted.is_empty() {
            return;
        }
        eprintln!("installing {}", wanted.join(", "));
        let packages = PACKAGES.iter().filter(|(program, _)| wanted.contains(program)).map(|(_, package)| *package);
        if refresh {
            apt_get(&["update"]);
        }
        apt_get(&["install", "-y", "--no-install-recommends"].into_iter().chain(packages).collect::<Vec<_>>());
    }
    let missing = missing();
    if !missing.is_empty() {
        eprintln!("missing, and could not be installed: {}", missing.join(", "));
        std::process::exit(1);
    }
}

/// A failure shows in what is still missing afterwards.
fn apt_get(words: &[&str]) {
    let mut command = Command::new("apt-get");
    command.args(words).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
    let _ = command.status();
}

/// Puts one thread of ours on one CPU.
///
/// # Panics
/// If `taskset` cannot.
pub fn pin(thread: u32, cpu: usize) {
    set_cpus(thread, &cpu.to_string());
}

/// Lets one thread of ours run on every CPU again.
///
/// # Panics
/// If `taskset` cannot.
pub fn unpin(thread: u32) {
    set_cpus(thread, &format!("0-{}", cores() - 1));
}

fn set_cpus(thread: u32, cpus: &str) {
    let mut taskset = Command::new("taskset");
    let status = taskset.args(["-pc", cpus, &thread.to_string()]).stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "taskset pins a thread");
}

/// CPUs that this program may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The calling thread's id as the kernel counts.
pub fn thread_id() -> u32 {
    let link = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    link.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or_else(std::process::id)
}

/// Sends a signal by its name to a process that we started.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
}
