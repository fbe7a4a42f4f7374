//! Signals: the names of metrics, the registry behind `/metrics`, and structured logs.
//!
//! ```
//! use ballet_telemetry::{Kind, Metrics, names};
//!
//! let metrics = Metrics::default();
//! metrics.register(|sink| sink.sample(&names::BUS_LAG, &[("topic", "order.placed")], 3.0));
//! assert!(metrics.encode().contains("ballet_bus_lag{topic=\"order.placed\"} 3"));
//! assert_eq!(names::BUS_LAG.kind, Kind::Gauge);
//! ```
//!
//! It deliberately keeps no counters of its own: each part counts what it does in its own types and tells the numbers when
//! it is asked, so that a hot path never meets a shared map of labels.

mod logs;
mod metrics;
pub mod names;

pub use logs::{LogFormat, init_logs};
pub use metrics::{Kind, Metric, Metrics, Sink};
