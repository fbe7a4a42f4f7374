//! The registry behind `/metrics`: asks the parts when it is asked, and prints Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// What a metric measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows only; starts at 0 with the process.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A metric's name and meaning. All of them stand in [`crate::names`].
#[derive(Debug)]
pub struct Metric {
    /// OpenTelemetry spelling: `ballet.bus.lag`.
    pub name: &'static str,
    /// What it measures.
    pub kind: Kind,
    /// UCUM unit: `s`, `By`, `{event}`.
    pub unit: &'static str,
    /// What it means.
    pub help: &'static str,
}

impl Metric {
    /// The name as Prometheus spells it: `ballet_bus_lag`, counters with `_total`.
    pub fn prometheus_name(&self) -> String {
        let name = self.name.replace('.', "_");
        match self.kind {
            Kind::Counter => name + "_total",
            Kind::Gauge => name,
        }
    }
}

type Teller = Box<dyn Fn(&mut Sink) + Send + Sync>;

/// Everyone who has something to tell. Clones share one list.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Vec<Teller>>>);

/// Takes the samples of one answer.
#[derive(Default)]
pub struct Sink {
    families: BTreeMap<&'static str, Family>,
}

struct Family {
    metric: &'static Metric,
    lines: Vec<String>,
}

impl Metrics {
    /// Adds somebody who tells samples whenever `/metrics` is read. It must not block.
    pub fn register(&self, tell: impl Fn(&mut Sink) + Send + Sync + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(tell));
    }

    /// Prometheus' text format, version 0.0.4.
    pub fn encode(&self) -> String {
        let mut sink = Sink::default();
        for tell in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            tell(&mut sink);
        }
        sink.encode()
    }
}

impl Sink {
    /// Tells one sample. Labels have few values: a route's template yes, a path no.
    pub fn sample(&mut self, metric: &'static Metric, labels: &[(&str, &str)], value: f64) {
        let mut line = String::new();
        for (i, (name, text)) in labels.iter().enumerate() {
            let open = if i == 0 { "{" } else { "," };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(line, "{open}{name}=\"{text}\"");
        }
        if !labels.is_empty() {
            line.push('}');
        }
        let _ = write!(line, " {value}");
        self.families.entry(metric.name).or_insert(Family { metric, lines: vec![] }).lines.push(line);
    }

    fn encode(&self) -> String {
        let mut out = String::new();
        for family in self.families.values() {
            let (name, help) = (family.metric.prometheus_name(), family.metric.help);
            let kind = match family.metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for line in &family.lines {
                let _ = writeln!(out, "{name}{line}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    #[test]
    fn samples_of_one_metric_stand_together() {
        let metrics = Metrics::default();
        metrics.register(|sink| sink.sample(&names::JOURNAL_COMMITS, &[("journal", "bus")], 2.0));
        metrics.register(|sink| sink.sample(&names::BUS_LAG, &[], 0.5));
        metrics.register(|sink| sink.sample(&names::JOURNAL_COMMITS, &[("journal", "a\"b")], 1.0));
        let text = metrics.encode();
        let commits = "# TYPE ballet_journal_commits_total counter\n\
            ballet_journal_commits_total{journal=\"bus\"} 2\n\
            ballet_journal_commits_total{journal=\"a\\\"b\"} 1\n";
        assert!(text.contains(commits), "{text}");
        assert!(text.contains("ballet_bus_lag 0.5\n"), "{text}");
    }
}
