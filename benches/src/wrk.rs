//! The load generator `wrk`: runs it and reads what it says.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

/// What is asked of it.
#[derive(Clone, Debug)]
pub struct Load {
    /// Whom to ask.
    pub address: SocketAddr,
    /// With the query.
    pub path: String,
    /// Each as `Name: value`.
    pub headers: Vec<String>,
    /// Connections that are kept open, one request at a time on each.
    pub connections: usize,
    /// Whole seconds.
    pub length: Duration,
    /// The CPU it runs on; any if none.
    pub cpu: Option<usize>,
}

/// What it saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Requests that were answered.
    pub requests: u64,
    /// Requests in a second.
    pub per_second: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// Socket errors and answers that are not 2xx or 3xx, as it words them; empty for none.
    pub errors: String,
}

impl Load {
    /// Runs it to the end, with one thread.
    ///
    /// # Panics
    /// If it does not run.
    pub fn run(&self) -> Seen {
        let mut command = match self.cpu {
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &cpu.to_string(), "wrk"]);
                command
            }
            None => Command::new("wrk"),
        };
        command.args(["-t1", "--latency", &format!("-c{}", self.connections)]);
        command.arg(format!("-d{}s", self.length.as_secs().max(1)));
        for header in &self.headers {
            command.args(["-H", header]);
        }
        let output = command.arg(format!("http://{}{}", self.address, self.path)).output().expect("wrk runs");
        let text = String::from_utf8_lossy(&output.stdout);
        read(&text).unwrap_or_else(|| panic!("wrk said: {text}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

impl Seen {
    /// As it is kept.
    pub fn json(&self) -> Value {
        json!({
            "requests": self.requests, "requestsPerSecond": self.per_second,
            "p50Us": self.p50_us, "p99Us": self.p99_us, "errors": self.errors,
        })
    }
}

fn read(text: &str) -> Option<Seen> {
    let mut seen = Seen::default();
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["50%", value, ..] => seen.p50_us = micros(value)?,
            ["99%", value, ..] => seen.p99_us = micros(value)?,
            [count, "requests", "in", ..] => seen.requests = count.parse().ok()?,
            ["Requests/sec:", value] => seen.per_second = value.parse().ok()?,
            ["Socket", "errors:", ..] | ["Non-2xx", ..] => {
                seen.errors = format!("{} {line}", seen.errors).trim().into()
            }
            _ => {}
        }
    }
    (seen.requests > 0).then_some(seen)
}

fn micros(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 6e7,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_words_are_read() {
        let text = "Running 3s test @ http://127.0.0.1:1/\n  Latency Distribution\n     50%  376.00us\n     75%    1.10ms\n     \
                    99%    1.02ms\n  240215 requests in 3.00s, 60.25MB read\n  Socket errors: connect 0, read 3, write 0, \
                    timeout 0\n  Non-2xx or 3xx responses: 7\nRequests/sec:  79762.10\nTransfer/sec:     20.08MB\n";
        let seen = read(text).expect("read");
        assert_eq!((seen.requests, seen.per_second, seen.p50_us, seen.p99_us), (240_215, 79_762.1, 376.0, 1020.0));
        assert!(seen.errors.contains("read 3") && seen.errors.contains("responses: 7"), "{}", seen.errors);
        assert_eq!(read("unable to connect"), None);
    }
}
