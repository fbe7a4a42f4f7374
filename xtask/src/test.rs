//! Runs every test, with the real servers and clients that they need.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::floors;

/// The official Conductor SDK that serves a task in the tests; from PyPI.
const CONDUCTOR_SDK: &str = "conductor-python==2.0.0";

/// Format, lints, floors, then [`run`].
pub(crate) fn ci() -> anyhow::Result<()> {
    cargo(&["fmt", "--check"], &[])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])?;
    floors::run(None)?;
    run()
}

/// Installs what is missing, builds, and runs all tests; a skipped test is a failure here.
pub(crate) fn run() -> anyhow::Result<()> {
    tools(&["curl", "jq"])?;
    let python = conductor_sdk()?;
    let python = python.to_string_lossy();
    let env = [("CI", "true"), ("BALLET_TEST_PYTHON", python.as_ref())];
    cargo(&["build", "--bins"], &env)?;
    cargo(&["test", "--workspace", "--no-fail-fast"], &env)
}

fn cargo(args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run_command(Command::new(cargo).args(args).envs(env.iter().copied()).current_dir(root()))
}

fn run_command(command: &mut Command) -> anyhow::Result<()> {
    let line = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {line}"))?;
    if !status.success() {
        bail!("{line} failed: {status}");
    }
    Ok(())
}

/// The repository's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository")
}

/// A Python with the official SDK, in a virtual environment below `target/`. Answers the interpreter's path.
fn conductor_sdk() -> anyhow::Result<PathBuf> {
    let venv = root().join("target/test-venv");
    let python = venv.join("bin/python");
    let stamp = venv.join(".installed");
    if std::fs::read_to_string(&stamp).is_ok_and(|s| s == CONDUCTOR_SDK) {
        return Ok(python);
    }
    if !Command::new("python3").args(["-m", "venv", "--help"]).output().is_ok_and(|o| o.status.success())
        || !has_ensurepip()
    {
        apt(&["python3", "python3-venv"])?;
    }
    run_command(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    run_command(Command::new(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        CONDUCTOR_SDK,
    ]))?;
    std::fs::write(&stamp, CONDUCTOR_SDK)?;
    Ok(python)
}

/// Installs command-line tools whose package has their name.
fn tools(names: &[&str]) -> anyhow::Result<()> {
    let there = |tool: &&str| Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    let missing: Vec<&str> = names.iter().copied().filter(|tool| !there(tool)).collect();
    if missing.is_empty() { Ok(()) } else { apt(&missing) }
}

fn has_ensurepip() -> bool {
    Command::new("python3").args(["-c", "import ensurepip"]).output().is_ok_and(|o| o.status.success())
}

/// Installs Debian packages, asking nothing. Needs root.
fn apt(packages: &[&str]) -> anyhow::Result<()> {
    eprintln!("xtask: installing {}", packages.join(", "));
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-y"]);
        command
    };
    run_command(apt().arg("update"))?;
    run_command(apt().args(["install", "--no-install-recommends"]).args(packages))
}
