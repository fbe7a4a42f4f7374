//! A running system: starts the real binary on free ports with its state in a temporary directory, and ends it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub use std::process::Command;

use crate::{Request, request};

/// Longest wait for a system to become ready. Generous: the machine may be busy with other tests.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// The repository's folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the repository")
}

/// A program of ours, built for the profile that runs the tests.
pub fn bin(name: &str) -> PathBuf {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let me = std::env::current_exe().expect("this program has a path");
        // target/debug/deps/it-…  →  target/debug
        let folder = me.ancestors().nth(2).expect("test programs lie in deps").to_path_buf();
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--bins", "--profile", profile]).current_dir(repository());
        assert!(build.status().expect("cargo runs").success(), "the programs cannot be built");
        folder
    });
    FOLDER.join(name)
}

/// A running `ballet up`. Dropping it ends it with everything below it.
pub struct Ballet {
    child: Child,
    manifest: PathBuf,
    state: PathBuf,
    sets: Vec<String>,
    launcher: Vec<String>,
    /// The gateway's address.
    pub gateway: SocketAddr,
    /// The platform's address.
    pub platform: SocketAddr,
    _dir: Option<TempDir>,
}

impl Ballet {
    /// Starts the shop and waits until it is ready.
    pub fn shop() -> Self {
        Self::up(&repository().join("shop"), &["build=true"])
    }

    /// Starts the system of a manifest, with `--set` pairs over it, and waits until it is ready.
    pub fn up(manifest: &Path, sets: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = dir.path().join("state");
        let mut system = Self::start(manifest, &state, sets);
        system._dir = Some(dir);
        system
    }

    /// As [`Ballet::up`], with the state in a directory that outlives it.
    pub fn start(manifest: &Path, state: &Path, sets: &[&str]) -> Self {
        Self::launch(&[], manifest, state, sets)
    }

    /// As [`Ballet::start`], by a program that becomes the one whose name and arguments follow its own: `taskset -c 0`.
    pub fn launch(launcher: &[&str], manifest: &Path, state: &Path, sets: &[&str]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
        let (launcher, sets) = (owned(launcher), owned(sets));
        let mut child = spawn(&launcher, manifest, state, &sets);
        let (gateway, platform) = wait_ready(&mut child, state);
        let (manifest, state) = (manifest.to_path_buf(), state.to_path_buf());
        Self { child, manifest, state, sets, launcher, gateway, platform, _dir: None }
    }

    /// Kills `ballet` itself as the kernel would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// Starts it again on the same state, on the addresses it had, and waits until it is ready.
    pub fn again(&mut self) {
        let mut sets = self.sets.clone();
        sets.push(format!("gateway.listen={}", self.gateway));
        sets.push(format!("platform.listen={}", self.platform));
        self.child = spawn(&self.launcher, &self.manifest, &self.state, &sets);
        (self.gateway, self.platform) = wait_ready(&mut self.child, &self.state);
    }

    /// Asks `ballet` to end as Ctrl-C does, and waits until it has.
    pub fn stop(&mut self) {
        self.child.stdin.take();
        self.child.wait().expect("it can be waited for");
    }

    /// The state's directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Process id of `ballet`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A request to the gateway.
    pub fn at_gateway(&self, method: &str, path: &str) -> Request {
        request(self.gateway, method, path)
    }

    /// A request to the platform.
    pub fn at_platform(&self, method: &str, path: &str) -> Request {
        request(self.platform, method, path)
    }

    /// Runs another command of `ballet` on this system.
    pub fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(bin("ballet"));
        command.args(args).arg("--file").arg(&self.manifest).arg("--state").arg(&self.state);
        command.output().expect("ballet runs")
    }

    /// What `ps --json` says.
    pub fn ps(&self) -> Value {
        let output = self.command(&["ps", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("ps prints JSON")
    }

    /// The first instance of a service, as `ps` shows it.
    pub fn instance(&self, service: &str) -> Value {
        let ps = self.ps();
        let all = ps["services"].as_array().expect("a list of instances");
        all.iter().find(|i| i["name"] == service).unwrap_or_else(|| panic!("no instance of {service}: {ps}")).clone()
    }
}

impl Drop for Ballet {
    fn drop(&mut self) {
        self.child.stdin.take();
        let _ = self.child.wait();
    }
}

fn spawn(launcher: &[String], manifest: &Path, state: &Path, sets: &[String]) -> Child {
    let ballet = bin("ballet");
    let mut command = match launcher {
        [] => Command::new(ballet),
        [program, words @ ..] => {
            let mut command = Command::new(program);
            command.args(words).arg(ballet);
            command
        }
    };
    command.arg("up").arg(manifest).arg("--state").arg(state).arg("--tied");
    for set in
        ["gateway.listen=127.0.0.1:0", "platform.listen=127.0.0.1:0"].into_iter().chain(sets.iter().map(String::as_str))
    {
        command.arg("--set").arg(set);
    }
    std::fs::create_dir_all(state).expect("a directory for the state");
    let log = std::fs::File::options().create(true).append(true).open(state.with_extension("log")).expect("a log file");
    command.stdin(Stdio::piped()).stdout(log.try_clone().expect("a second handle")).stderr(log);
    command.spawn().expect("ballet starts")
}

/// Waits until the system says that it is ready; panics with its log if it ends or takes too long.
fn wait_ready(child: &mut Child, state: &Path) -> (SocketAddr, SocketAddr) {
    // In a thread of its own: a test may be asynchronous itself, and neither enters nor drops a runtime then.
    let wait = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(poll_ready(child, state))
    };
    let waiting = std::thread::scope(|scope| scope.spawn(wait).join());
    waiting.expect("the waiting thread ends").unwrap_or_else(|| {
        let log = std::fs::read_to_string(state.with_extension("log")).unwrap_or_default();
        let _ = std::io::stderr().write_all(log.as_bytes());
        panic!("the system did not become ready; its log stands above");
    })
}

async fn poll_ready(child: &mut Child, state: &Path) -> Option<(SocketAddr, SocketAddr)> {
    let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
    while tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(25)).await;
        if child.try_wait().ok()?.is_some() {
            return None;
        }
        let Ok(text) = std::fs::read(state.join("run/system.json")) else { continue };
        let Ok(running) = serde_json::from_slice::<Value>(&text) else { continue };
        if running["process"]["pid"] != child.id() {
            continue;
        }
        let address = |key: &str| {
            running["addresses"][key].as_str().and_then(|a| a.trim_start_matches("http://").parse::<SocketAddr>().ok())
        };
        let (gateway, platform) = (address("gateway")?, address("platform")?);
        let Ok(system) = request(platform, "GET", "/ballet/v1/system").try_send().await else { continue };
        if system.json["ready"] == true {
            return Some((gateway, platform));
        }
    }
    None
}
