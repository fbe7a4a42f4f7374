//! Commands on a running system: `ps`, `logs`, `down`, `restart`, `stop`, `start`, `scale`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::admin::{Admin, segment};
use super::{CliError, Place};

/// Longest wait for the system to end after `down`.
const DOWN_TIMEOUT: Duration = Duration::from_secs(40);

/// Prints the instances.
pub(crate) fn ps(place: &Place, as_json: bool) -> Result<(), CliError> {
    let system = Admin::connect(place)?.demand("GET", "/ballet/v1/system", None)?;
    if as_json {
        return out(&format!("{system:#}\n"));
    }
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let mut rows =
        vec![["SERVICE", "STATE", "READY", "PID", "ADDRESS", "RESTARTS", "BREAKER", "MEMORY"].map(String::from)];
    for service in system["services"].as_array().into_iter().flatten() {
        let memory = service["rssBytes"].as_u64().map(|b| format!("{:.1} MB", b as f64 / 1e6)).unwrap_or_default();
        let ready = if service["ready"].as_bool() == Some(true) { "yes" } else { "no" };
        let state = match service["reason"].as_str() {
            Some(reason) => format!("{} ({reason})", text(service, "state")),
            None => text(service, "state"),
        };
        rows.push([
            format!("{}-{}", text(service, "name"), service["instance"].as_u64().unwrap_or_default()),
            state,
            ready.into(),
            service["pid"].as_u64().map(|pid| pid.to_string()).unwrap_or_default(),
            text(service, "address"),
            service["restarts"].as_u64().unwrap_or_default().to_string(),
            text(service, "breaker"),
            memory,
        ]);
    }
    let addresses = &system["addresses"];
    let head = format!(
        "{} (pid {}, profile {})  gateway {}  platform {}\n",
        text(&system, "system"),
        system["pid"],
        text(&system, "profile"),
        text(addresses, "gateway"),
        text(addresses, "platform")
    );
    out(&(head + &table(&rows)))
}

/// Prints the services' logs.
pub(crate) fn logs(place: &Place, service: Option<&str>, follow: bool, lines: usize) -> Result<(), CliError> {
    let admin = Admin::connect(place)?;
    let path = match service {
        Some(name) => format!("/ballet/v1/system/services/{}/logs", segment(name)),
        None => "/ballet/v1/system/logs".to_owned(),
    };
    if let Some(name) = service
        && admin.ask("GET", &format!("{path}?lines=0"), None)?.status == 404
    {
        return Err(CliError::wrong(format!("no service named `{name}`")).hint("`ballet ps` lists them"));
    }
    let mut part: Vec<u8> = vec![];
    admin.stream(&format!("{path}?lines={lines}&follow={follow}"), |data| {
        part.extend_from_slice(data);
        let Some(end) = part.iter().rposition(|b| *b == b'\n') else { return true };
        let whole: Vec<u8> = part.drain(..=end).collect();
        let shown: String = String::from_utf8_lossy(&whole).lines().map(shown).collect();
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(shown.as_bytes()).and_then(|()| stdout.flush()).is_ok()
    })
}

/// A log line for people: time, who, and what was said.
fn shown(line: &str) -> String {
    let Ok(json) = serde_json::from_str::<Value>(line) else { return format!("{line}\n") };
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    let who = match json["instance"].as_u64() {
        Some(instance) => format!("{}-{instance}", text("service")),
        None => text("service"),
    };
    let level = json["level"].as_str().map(|level| format!("{level:<5} ")).unwrap_or_default();
    format!("{} {who:<16} {level}{}\n", text("time"), text("message"))
}

/// Stops the system; with `wipe` its state goes too.
pub(crate) fn down(place: &Place, wipe: bool, yes: bool) -> Result<(), CliError> {
    let stopped = match (Admin::connect(place), wipe) {
        (Ok(admin), _) => end(place, &admin).map(|()| true),
        (Err(_), true) => Ok(false),
        (Err(error), false) => Err(error),
    };
    match stopped {
        Ok(true) => eprintln!("stopped"),
        Ok(false) => {}
        // Nobody answers there: the file is left over from a killed run.
        Err(error) if error.exit == 3 && wipe => {}
        Err(error) => return Err(error),
    }
    if !wipe {
        return Ok(());
    }
    let state = &place.state;
    if !state.exists() {
        return Ok(());
    }
    if !state.join("format").exists() {
        return Err(CliError::wrong(format!("`{}` does not look like a state directory", state.display())));
    }
    if !yes && !asked(&format!("remove `{}` and everything in it? [y/N] ", state.display())) {
        return Err(CliError::no("nothing was removed").hint("say `y`, or pass `--yes`"));
    }
    std::fs::remove_dir_all(state).map_err(|e| CliError::no(format!("cannot remove `{}`: {e}", state.display())))
}

fn end(place: &Place, admin: &Admin) -> Result<(), CliError> {
    admin.demand("POST", "/ballet/v1/system/down", None)?;
    let pid = ballet_supervisor::running(&place.state).map(|running| running.pid);
    let deadline = tokio::time::Instant::now() + DOWN_TIMEOUT;
    while ballet_supervisor::running(&place.state).is_some_and(|running| Some(running.pid) == pid) {
        if tokio::time::Instant::now() > deadline {
            return Err(CliError::no("the system has not ended yet").hint("look with `ballet ps`"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn asked(question: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    eprint!("{question}");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).is_ok() && line.trim().eq_ignore_ascii_case("y")
}

/// Restarts, stops or starts a service.
pub(crate) fn act(place: &Place, service: &str, verb: &str, body: Option<&Value>) -> Result<(), CliError> {
    let admin = Admin::connect(place)?;
    let path = format!("/ballet/v1/system/services/{}/{verb}?wait=30", segment(service));
    let answer = admin.ask("POST", &path, body)?;
    match answer.status {
        200..300 => {
            eprintln!("{service}: {verb} done");
            Ok(())
        }
        404 => Err(CliError::wrong(format!("no service named `{service}`")).hint("`ballet ps` lists them")),
        _ => Err(CliError::no(answer.json["detail"].as_str().unwrap_or("the platform refused").to_owned())),
    }
}

/// Changes how many instances of a service run.
pub(crate) fn scale(place: &Place, wish: &str) -> Result<(), CliError> {
    let (service, count) =
        wish.split_once('=').and_then(|(name, n)| n.parse::<u32>().ok().map(|n| (name, n))).ok_or_else(|| {
            CliError::wrong(format!("`{wish}` is not SERVICE=N")).hint("for example `ballet scale orders=3`")
        })?;
    act(place, service, "scale", Some(&json!({ "instances": count })))
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Writes data to standard output; a closed pipe ends quietly.
pub(crate) fn out(text: &str) -> Result<(), CliError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CliError::no(format!("cannot write to standard output: {error}"))),
    }
}
