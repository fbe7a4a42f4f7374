//! The assembly: opens the stores, starts the parts, wires them to each other, serves their faces, and ends them in order.
//!
//! ```text
//! services ──► sidecars ──┐                       ┌── registry   (registry.db)
//! people ────► gateway ───┼─► upstreams ◄─ watch ─┤
//! tools ─────► platform ──┘                       ├── bus        (bus.db) ──push──► services, orchestrator
//!              listener                           └── orchestrator (workflows.db) ──steps──► services
//!                              supervisor ── tells of each instance ──► registry, sidecars
//! ```

mod bus;
mod facts;
mod listener;
mod observer;
mod parts;
mod reload;
mod specs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ballet_manifest::{Loaded, Manifest};
use ballet_supervisor::StateDir;

use crate::cli::{CliError, Place};
use parts::Parts;

/// Longest wait for requests under way when the system ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs a system until Ctrl-C, TERM, `ballet down`, or (tied) the end of standard input.
pub async fn run(place: &Place, loaded: Loaded, tied: bool) -> Result<(), CliError> {
    let seen = reload::contents(&loaded.files);
    let manifest = Arc::new(loaded.manifest);
    let state = Arc::new(StateDir::open(&place.state).map_err(|e| CliError::from_part(&e))?);
    init_logs(&state)?;
    let listener = listener::bind(manifest.platform.listen.main, "platform.listen").await?;
    let parts = Parts::start(&manifest, &state, place, listener).await?;
    announce(&manifest, &state, &parts)?;
    let watching = reload::watch(place.clone(), loaded.files, seen, parts.reloader(&manifest));
    let ready = tokio::spawn(say_when_ready(parts.supervisor.clone(), manifest.clone(), parts.gateway_address()));

    let ended_by = tokio::select! {
        signal = signal() => signal,
        () = parts.supervisor.down_requested() => "`ballet down`",
        () = input_ended(tied) => "the end of standard input",
    };
    eprintln!("ending ({ended_by})");
    ready.abort();
    drop(watching);
    parts.stop(DRAIN).await;
    Ok(())
}

/// The platform's own log: people read the terminal, and this file when something is wrong.
fn init_logs(state: &StateDir) -> Result<(), CliError> {
    let path = state.platform().join("ballet.log");
    let file = std::fs::File::options().create(true).append(true).open(&path);
    let file = file.map_err(|e| CliError::no(format!("cannot write `{}`: {e}", path.display())))?;
    ballet_telemetry::init_logs(ballet_telemetry::LogFormat::Json, Some(file));
    Ok(())
}

fn announce(manifest: &Manifest, state: &StateDir, parts: &Parts) -> Result<(), CliError> {
    let addresses: BTreeMap<String, String> = [
        ("gateway".to_owned(), format!("http://{}", parts.gateway_address())),
        ("platform".to_owned(), format!("http://{}", parts.platform_address())),
    ]
    .into();
    state.announce(&addresses).map_err(|e| CliError::from_part(&e))?;
    eprintln!("{}", manifest.system);
    eprintln!("  gateway   {}", addresses["gateway"]);
    eprintln!("  platform  {}", addresses["platform"]);
    if manifest.platform.insecure {
        eprintln!("  insecure: listeners may stand on addresses that are not loopback, without TLS and tokens");
    }
    Ok(())
}

/// Says on the terminal when everything is ready, and what the manifest's system wants people to know.
async fn say_when_ready(supervisor: ballet_supervisor::Handle, manifest: Arc<Manifest>, gateway: std::net::SocketAddr) {
    let mut snapshots = supervisor.subscribe();
    if snapshots.wait_for(ballet_supervisor::Snapshot::is_ready).await.is_err() {
        return;
    }
    eprintln!("ready: http://{gateway}/");
    if manifest.profile.is_none()
        && let Ok(hello) = std::fs::read_to_string(manifest.dir.join("hello.txt"))
    {
        eprint!("{hello}");
    }
}

async fn signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "TERM",
    }
}

/// Ends with standard input if the system is tied to it, else never.
async fn input_ended(tied: bool) {
    if !tied {
        return std::future::pending().await;
    }
    // A thread of its own: a blocking read would hold up the runtime's end.
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = tell.send(());
    });
    let _ = told.await;
}
