//! Tells a person what is going on while a system builds and starts.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ballet_core::{InstanceId, ServiceName};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::machine::State;
use crate::spec::InstanceStatus;

/// Something a person may want to see.
#[derive(Clone, Debug)]
pub enum ProgressEvent<'a> {
    /// A build command starts; without a service it is the system's.
    Building {
        /// The service whose build it is.
        service: Option<&'a ServiceName>,
        /// The command.
        command: &'a str,
    },
    /// A line of a build.
    BuildLine {
        /// The service whose build it is.
        service: Option<&'a ServiceName>,
        /// What it printed.
        line: &'a str,
    },
    /// A build ended.
    Built {
        /// The service whose build it is.
        service: Option<&'a ServiceName>,
        /// Why it failed, if it did.
        failure: Option<&'a str>,
        /// How long it took.
        took: Duration,
    },
    /// An instance changed.
    Instance(&'a InstanceStatus),
    /// Processes of an earlier run were ended.
    Cleaned(&'a [String]),
}

/// Shows events. Called from many tasks; must not block for long.
pub trait Progress: Send + Sync + 'static {
    /// Shows one event.
    fn event(&self, event: &ProgressEvent<'_>);
}

/// Shows nothing.
impl Progress for () {
    fn event(&self, _: &ProgressEvent<'_>) {}
}

/// The progress for stderr: spinners on a terminal, plain lines otherwise.
pub fn stderr() -> Arc<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Arc::new(Spinners::default())
    } else {
        Arc::new(Plain::new(std::io::stderr()))
    }
}

/// One plain line per event worth one: no build output, no repeated states.
pub struct Plain<W> {
    inner: Mutex<(W, BTreeMap<InstanceId, String>)>,
}

impl<W: Write + Send + 'static> Plain<W> {
    /// Writes to `to`.
    pub fn new(to: W) -> Self {
        Self { inner: Mutex::new((to, BTreeMap::new())) }
    }
}

impl<W: Write + Send + 'static> Progress for Plain<W> {
    fn event(&self, event: &ProgressEvent<'_>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (to, shown) = &mut *inner;
        let Some(line) = sentence(event) else { return };
        if let ProgressEvent::Instance(status) = event
            && shown.insert(status.id.clone(), line.clone()).as_ref() == Some(&line)
        {
            return;
        }
        // A closed stderr is no reason to stop.
        let _ = writeln!(to, "{line}");
    }
}

/// A spinner per build and per instance that is on its way; lines for what failed.
#[derive(Default)]
pub struct Spinners {
    bars: MultiProgress,
    by_name: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Spinners {
    fn show(&self, key: &str, text: String) {
        let mut bars = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(key.to_owned()).or_insert_with(|| {
            let bar = self.bars.add(ProgressBar::new_spinner());
            let style = ProgressStyle::with_template("{spinner} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        bar.set_message(text);
    }

    /// Takes a spinner away and leaves a line in its place.
    fn settle(&self, key: &str, text: Option<String>) {
        let bar = self.by_name.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        if let Some(bar) = bar {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
        if let Some(text) = text {
            let _ = self.bars.println(text);
        }
    }
}

impl Progress for Spinners {
    fn event(&self, event: &ProgressEvent<'_>) {
        let build = |service: &Option<&ServiceName>| format!("build {}", service.map_or("", |name| name.as_str()));
        match event {
            ProgressEvent::Building { service, command } => self.show(&build(service), format!("building: {command}")),
            ProgressEvent::BuildLine { service, line } => {
                self.show(&build(service), format!("building: {}", line.trim()))
            }
            ProgressEvent::Built { service, .. } => self.settle(&build(service), sentence(event)),
            ProgressEvent::Cleaned(_) => drop(sentence(event).map(|text| self.bars.println(text))),
            ProgressEvent::Instance(status) => match (status.state, sentence(event)) {
                (
                    State::Starting | State::Restarting | State::Initializing | State::Draining | State::Waiting,
                    Some(text),
                ) => {
                    self.show(status.id.as_str(), text);
                }
                // The build has its own spinner.
                (State::Building, _) | (_, None) => {}
                (State::Running | State::Stopped | State::Failed, text) => self.settle(status.id.as_str(), text),
            },
        }
    }
}

fn sentence(event: &ProgressEvent<'_>) -> Option<String> {
    match event {
        ProgressEvent::Building { service: None, command } => Some(format!("building: {command}")),
        ProgressEvent::Building { service: Some(service), command } => Some(format!("{service}: building: {command}")),
        ProgressEvent::BuildLine { .. } => None,
        ProgressEvent::Built { service, failure, took } => {
            let who = service.map(|name| format!("{name}: ")).unwrap_or_default();
            Some(match failure {
                None => format!("{who}built in {:.1} s", took.as_secs_f64()),
                Some(reason) => format!("{who}build failed: {reason}"),
            })
        }
        ProgressEvent::Instance(status) => {
            let InstanceStatus { id, state, .. } = status;
            let detail = match (state, status.ready, &status.address, &status.reason) {
                (State::Building, ..) => return None,
                (State::Running, true, Some(address), _) => format!(" at http://{address}"),
                (State::Running, false, ..) => ", not ready".to_owned(),
                (State::Waiting | State::Failed | State::Restarting, _, _, Some(reason)) => format!(": {reason}"),
                _ => String::new(),
            };
            Some(format!("{id}: {}{detail}", state.as_str()))
        }
        ProgressEvent::Cleaned(names) => {
            (!names.is_empty()).then(|| format!("ended what an earlier run left behind: {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_say_each_thing_once() {
        let plain = Plain::new(Vec::new());
        let mut status = InstanceStatus {
            service: "orders".parse().unwrap(),
            instance: 1,
            id: "orders-1".parse().unwrap(),
            state: State::Waiting,
            ready: false,
            pid: None,
            address: None,
            version: "v1".into(),
            restarts: 0,
            reason: Some("exited with code 1".into()),
        };
        plain.event(&ProgressEvent::Building { service: None, command: "cargo build" });
        plain.event(&ProgressEvent::BuildLine { service: None, line: "Compiling x" });
        plain.event(&ProgressEvent::Built { service: None, failure: None, took: Duration::from_millis(1540) });
        plain.event(&ProgressEvent::Instance(&status));
        status.restarts = 1;
        plain.event(&ProgressEvent::Instance(&status));
        (status.state, status.ready, status.address) = (State::Running, true, Some(([127, 0, 0, 1], 40213).into()));
        plain.event(&ProgressEvent::Instance(&status));
        let text = String::from_utf8(plain.inner.into_inner().unwrap().0).unwrap();
        assert_eq!(
            text,
            "building: cargo build\nbuilt in 1.5 s\norders-1: waiting: exited with code 1\norders-1: running at http://127.0.0.1:40213\n"
        );
    }
}
