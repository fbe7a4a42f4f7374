//! The report: raw results as JSON, and a small table on the terminal.

use std::fs;
use std::path::{Path, PathBuf};

use ballet_core::{Clock, SystemClock};
use serde_json::{Map, Value, json};

use crate::{Machine, Options};

/// A bar of the design: what must hold and what is aimed at.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    what: String,
    unit: &'static str,
    value: f64,
    must: f64,
    aim: Option<f64>,
    /// More is better.
    at_least: bool,
}

impl Bar {
    /// The value may be `must` at most.
    pub fn at_most(what: impl Into<String>, value: f64, unit: &'static str, must: f64, aim: Option<f64>) -> Self {
        Self { what: what.into(), unit, value, must, aim, at_least: false }
    }

    /// The value has to be `must` at least.
    pub fn at_least(what: impl Into<String>, value: f64, unit: &'static str, must: f64, aim: Option<f64>) -> Self {
        Self { what: what.into(), unit, value, must, aim, at_least: true }
    }

    fn holds(&self, limit: f64) -> bool {
        if self.at_least { self.value >= limit } else { self.value <= limit }
    }

    /// `aim`, `must` or `missed`.
    fn verdict(&self) -> &'static str {
        match self.aim {
            Some(aim) if self.holds(aim) => "aim",
            Some(_) | None if self.holds(self.must) => "must",
            Some(_) | None => "missed",
        }
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what, "unit": self.unit, "value": round(self.value), "must": self.must, "aim": self.aim,
            "direction": if self.at_least { "at least" } else { "at most" },
            "ratioToMust": round(self.value / self.must), "verdict": self.verdict(),
        })
    }
}

/// A table on the terminal.
#[derive(Clone, Debug)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// With these columns.
    pub fn new(columns: &[&str]) -> Self {
        Self(vec![columns.iter().map(|column| (*column).to_owned()).collect()])
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    /// Prints it, unless it is empty: the first column to the left, the others to the right.
    pub fn print(&self) {
        if self.0.len() > 1 {
            println!("\n{}", self.text());
        }
    }

    fn text(&self) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |at: usize| self.0.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
        let line = |row: &Vec<String>| {
            let cell = |(at, cell): (usize, &String)| {
                if at == 0 { format!("{cell:<w$}", w = widths[at]) } else { format!("{cell:>w$}", w = widths[at]) }
            };
            row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// What one run of a benchmark found.
pub struct Report {
    name: &'static str,
    machine: Machine,
    settings: Map<String, Value>,
    results: Map<String, Value>,
    bars: Vec<Bar>,
}

impl Report {
    /// Looks at the machine and begins.
    pub fn begin(name: &'static str, options: &Options) -> Self {
        let machine = Machine::look();
        machine.warn();
        let mut settings = Map::new();
        settings.insert("profile".into(), profile().into());
        settings.insert("seconds".into(), options.length.as_secs().into());
        settings.insert("rounds".into(), options.rounds.into());
        settings.insert("quick".into(), options.quick.into());
        Self { name, machine, settings, results: Map::new(), bars: vec![] }
    }

    /// The machine it runs on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Notes how something was set up.
    pub fn setting(&mut self, name: &str, value: impl Into<Value>) {
        self.settings.insert(name.into(), value.into());
    }

    /// Keeps a raw result.
    pub fn result(&mut self, name: &str, value: impl Into<Value>) {
        self.results.insert(name.into(), value.into());
    }

    /// Sets a result beside its bar.
    pub fn bar(&mut self, bar: Bar) {
        self.bars.push(bar);
    }

    /// Prints the bars and writes the file: below `benches/results` if this is a measurement of what is published
    /// (profile `dist`, not quick), else beside the built programs.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn end(self) {
        let mut table = Table::new(&["bar", "value", "must", "aim", "unit", "verdict"]);
        for bar in &self.bars {
            let sign = if bar.at_least { "≥" } else { "≤" };
            let limit = |value: f64| format!("{sign} {}", number(value));
            let aim = bar.aim.map(limit).unwrap_or_default();
            let (unit, verdict) = (bar.unit.to_owned(), bar.verdict().to_owned());
            table.row(vec![bar.what.clone(), number(bar.value), limit(bar.must), aim, unit, verdict]);
        }
        table.print();

        let at = SystemClock.now().to_string();
        let report = json!({
            "bench": self.name, "at": at, "machine": self.machine.json(), "settings": self.settings,
            "bars": self.bars.iter().map(Bar::json).collect::<Vec<_>>(), "results": self.results,
        });
        let measured = profile() == "dist" && self.settings["quick"] == false;
        let folder = if measured { results() } else { target().join("benches") };
        fs::create_dir_all(&folder).expect("a folder for the results");
        // 2026-11-21T13:30:00.250Z  →  2026-11-21T13-30-00
        let stamp: String = at.chars().take(19).map(|c| if c == ':' { '-' } else { c }).collect();
        let file = folder.join(format!("{}-{stamp}.json", self.name));
        let text = serde_json::to_string_pretty(&report).expect("a report is JSON");
        fs::write(&file, text + "\n").expect("the results can be written");
        println!("\nsync of 4 KiB: {} ms; raw results: {}", number(self.machine.sync_ms), file.display());
    }
}

/// Where measured results are kept.
fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("results")
}

/// The folder of the profile that this program was built for: `target/dist`.
fn target() -> PathBuf {
    let me = std::env::current_exe().expect("this program has a path");
    me.ancestors().nth(2).expect("benchmarks lie in deps").to_path_buf()
}

/// The profile that this program, and with it the measured ones, was built for.
fn profile() -> String {
    target().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A number with as many places as one can trust.
pub(crate) fn number(value: f64) -> String {
    let places = match value.abs() {
        x if x >= 100.0 || x == 0.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}

fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_say_what_holds() {
        for (value, at_least, wanted) in [
            (0.6, false, "aim"),
            (0.7, false, "must"),
            (0.9, false, "missed"),
            (0.9, true, "aim"),
            (0.7, true, "must"),
            (0.6, true, "missed"),
        ] {
            let bar = if at_least {
                Bar::at_least("x", value, "x", 0.65, Some(0.8))
            } else {
                Bar::at_most("x", value, "x", 0.8, Some(0.65))
            };
            assert_eq!(bar.verdict(), wanted, "{value} {at_least}");
        }
    }

    #[test]
    fn tables_stand_in_columns() {
        let mut table = Table::new(&["target", "us"]);
        table.row(vec!["nginx".into(), number(14.7)]);
        table.row(vec!["ballet-feat".into(), number(9.204)]);
        assert_eq!(table.text(), "target         us\nnginx        14.7\nballet-feat  9.20");
    }
}
