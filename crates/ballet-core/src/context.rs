//! What travels with a request: its trace and its deadline.

use std::fmt;
use std::time::Duration;

use rand::Rng;

/// Names of the headers that Ballet reads and writes.
pub mod headers {
    /// W3C Trace Context.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C Trace Context, the vendors' part; passed on as it is.
    pub const TRACESTATE: &str = "tracestate";
    /// Time left for the whole call, in milliseconds. Every hop subtracts what it used.
    pub const TIMEOUT: &str = "ballet-timeout-ms";
    /// The draft's `Idempotency-Key`.
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    /// `true` on an answer that was given before.
    pub const IDEMPOTENCY_REPLAYED: &str = "idempotency-replayed";
    /// Name of the service that calls; written by its sidecar or by the platform part.
    pub const CALLER: &str = "ballet-caller";
}

/// Trace context as W3C's `traceparent` header, version 00.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    flags: u8,
}

impl TraceContext {
    /// Begins a trace, sampled.
    pub fn root(rng: &mut impl Rng) -> Self {
        Self { trace: random_trace(rng), span: random_span(rng), flags: 1 }
    }

    /// The same trace with a span of its own.
    #[must_use]
    pub fn child(&self, rng: &mut impl Rng) -> Self {
        Self { span: random_span(rng), ..*self }
    }

    /// Reads a `traceparent` header; `None` if it is malformed, as the standard asks (then a new trace begins).
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let version = bytes.get(..2)?;
        let dashes = bytes.len() >= 55 && bytes[2] == b'-' && bytes[35] == b'-' && bytes[52] == b'-';
        // A later version may be longer, but only after another dash.
        let length =
            if version == b"00" { bytes.len() == 55 } else { bytes.len() == 55 || bytes.get(55) == Some(&b'-') };
        if !dashes || !length || !lower_hex(version) || version == b"ff" {
            return None;
        }
        let (trace, span, flags) = (bytes.get(3..35)?, bytes.get(36..52)?, bytes.get(53..55)?);
        if !lower_hex(trace) || !lower_hex(span) || !lower_hex(flags) {
            return None;
        }
        let trace = u128::from_str_radix(std::str::from_utf8(trace).ok()?, 16).ok()?;
        let span = u64::from_str_radix(std::str::from_utf8(span).ok()?, 16).ok()?;
        let flags = u8::from_str_radix(std::str::from_utf8(flags).ok()?, 16).ok()?;
        (trace != 0 && span != 0).then_some(Self { trace, span, flags: flags & 1 })
    }

    /// The trace's id: 32 lower-case hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The span's id: 16 lower-case hexadecimal digits.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }

    /// Whether the trace is recorded.
    pub fn sampled(&self) -> bool {
        self.flags & 1 == 1
    }
}

/// The header's text.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn lower_hex(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn random_trace(rng: &mut impl Rng) -> u128 {
    ((u128::from(rng.next_u64())) << 64 | u128::from(rng.next_u64())).max(1)
}

fn random_span(rng: &mut impl Rng) -> u64 {
    rng.next_u64().max(1)
}

/// When a call must have ended. Travels as time left ([`headers::TIMEOUT`]), because clocks differ between machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    left: Duration,
}

impl Deadline {
    /// A deadline that is `left` away.
    pub fn after(left: Duration) -> Self {
        Self { left }
    }

    /// Time left when it was read or made.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// Reads the header's value, whole milliseconds.
    pub fn parse(text: &str) -> Option<Self> {
        text.trim().parse().ok().map(|ms| Self { left: Duration::from_millis(ms) })
    }

    /// The nearer of this deadline and a timeout.
    #[must_use]
    pub fn within(&self, timeout: Duration) -> Self {
        Self { left: self.left.min(timeout) }
    }
}

/// The header's value, whole milliseconds.
impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.left.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_is_read_strictly() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(TraceContext::parse(good).unwrap().to_string(), good);
        assert!(TraceContext::parse(&format!("cc{}-more", &good[2..])).is_some());
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let upper = good.to_uppercase();
        let long = format!("{good}-x");
        for bad in [
            "",
            "00",
            &good[..54],
            &zero_trace,
            &upper,
            &long,
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_child_stays_in_its_trace() {
        use rand::SeedableRng;
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let root = TraceContext::root(&mut rng);
        let child = root.child(&mut rng);
        assert_eq!(root.trace_id(), child.trace_id());
        assert_ne!(root.span_id(), child.span_id());
    }
}
