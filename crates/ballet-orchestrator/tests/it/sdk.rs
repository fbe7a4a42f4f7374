//! The official Python SDK against the engine: its worker serves a task, its clients register, start, read and search.

use std::process::Stdio;
use std::time::Duration;

use crate::world::shop;

/// Names a Python that has `conductor-python`.
const PYTHON: &str = "BALLET_TEST_PYTHON";

#[tokio::test]
async fn the_python_sdk_serves_a_task() {
    let Ok(python) = std::env::var(PYTHON) else {
        assert!(std::env::var_os("CI").is_none(), "{PYTHON} must name a Python with `conductor-python`");
        eprintln!("SKIPPED: {PYTHON} names no Python with the package `conductor-python`");
        return;
    };
    let (handle, _) = shop().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    let app = ballet_orchestrator::http::router(handle);
    tokio::spawn(async move { axum::serve(listener, app).await });
    let child = tokio::process::Command::new(python)
        // A file: the SDK's worker processes import it again.
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/sdk.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("CONDUCTOR_SERVER_URL", url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.unwrap().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("all is well"), "{out}\n{err}");
}
