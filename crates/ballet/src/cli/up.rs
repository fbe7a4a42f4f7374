//! `ballet up`: loads the manifest, takes the state directory, and runs the platform in front or behind.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::admin::Admin;
use super::{CliError, Place, manifest};
use crate::platform;

/// Longest wait of `--detach` for readiness after the build.
const DETACH_TIMEOUT: Duration = Duration::from_secs(1_800);

/// A service that has ended so often before it was ready once will not become ready by waiting: some nine seconds.
const TOO_MANY_RESTARTS: u64 = 8;

/// Runs the system until it is told to end; with `detach` leaves it running.
pub(crate) fn run(place: &Place, detach: bool, tied: bool) -> Result<(), CliError> {
    let loaded = manifest::load(place)?;
    if detach {
        return run_behind(place);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("ballet")
        .build()
        .map_err(|error| CliError::no(format!("cannot start a runtime: {error}")))?;
    let done = runtime.block_on(platform::run(place, loaded, tied));
    runtime.shutdown_timeout(Duration::from_secs(2));
    done
}

/// Starts this program again without a terminal, and waits until the system is ready.
fn run_behind(place: &Place) -> Result<(), CliError> {
    if let Some(running) = ballet_supervisor::running(&place.state) {
        return Err(CliError::no(format!("a system runs here already, with pid {}", running.pid))
            .hint("stop it with `ballet down`, or name another state with `--state`"));
    }
    let cannot = |what: &str, error: std::io::Error| CliError::no(format!("cannot {what}: {error}"));
    std::fs::create_dir_all(&place.state).map_err(|e| cannot("make the state directory", e))?;
    let path = place.state.join("up.log");
    let log = std::fs::File::create(&path).map_err(|e| cannot("write the log", e))?;
    let again = log.try_clone().map_err(|e| cannot("write the log", e))?;
    let program = std::env::current_exe().map_err(|e| cannot("find this program", e))?;
    let words = std::env::args_os().skip(1).filter(|word| word != "--detach");
    let mut command = Command::new(program);
    // A group of its own: Ctrl-C in this terminal is not for it.
    command.args(words).process_group(0).stdin(Stdio::null()).stdout(log).stderr(again);
    let mut child = command.spawn().map_err(|e| cannot("start", e))?;

    let deadline = tokio::time::Instant::now() + DETACH_TIMEOUT;
    while tokio::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        if child.try_wait().map_err(|e| cannot("wait", e))?.is_some() {
            let said = std::fs::read_to_string(&path).unwrap_or_default();
            eprint!("{said}");
            return Err(
                CliError::no("the system ended before it was ready").hint(format!("its words: `{}`", path.display()))
            );
        }
        let mine = ballet_supervisor::running(&place.state).is_some_and(|r| u32::try_from(r.pid) == Ok(child.id()));
        let system = mine.then(|| Admin::connect(place)?.demand("GET", "/ballet/v1/system", None));
        let Some(Ok(system)) = system else { continue };
        if system["ready"] == true {
            eprint!("{}", std::fs::read_to_string(&path).unwrap_or_default());
            return Ok(());
        }
        let failed = |s: &&serde_json::Value| {
            s["state"] == "failed"
                || (s["ready"] == false && s["restarts"].as_u64().is_some_and(|n| n >= TOO_MANY_RESTARTS))
        };
        if let Some(service) = system["services"].as_array().into_iter().flatten().find(failed) {
            let reason = service["reason"].as_str().unwrap_or("it does not say why");
            return Err(CliError::no(format!(
                "{} is not ready: {reason}",
                service["name"].as_str().unwrap_or_default()
            ))
            .hint("the others go on running; look with `ballet ps` and `ballet logs`"));
        }
    }
    Err(CliError::no("the system is not ready yet").hint("look with `ballet ps` and `ballet logs`"))
}
