//! Structured logs of the platform: one JSON object or one plain line for each event, on standard error or in a file.

use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Plain,
    /// One JSON object a line, for machines.
    Json,
}

/// Installs the process's logger. `BALLET_LOG` filters (`info`, `ballet_bus=debug`); default: `info`. Lines go to `file` if
/// given, else to standard error. A second call changes nothing.
pub fn init_logs(format: LogFormat, file: Option<std::fs::File>) {
    let filter = EnvFilter::try_from_env("BALLET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = file.is_none() && std::env::var_os("NO_COLOR").is_none();
    let writer = match file {
        Some(file) => BoxMakeWriter::new(Mutex::new(file)),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let _ = match format {
        LogFormat::Plain => subscriber.with_ansi(ansi).with_target(false).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).with_current_span(false).try_init(),
    };
}
