//! The words everyone in Ballet shares: names, ids, time, errors, trace context, events, and the three seams
//! through which parts meet ([`Discovery`], [`Events`], [`Workflows`]).
//!
//! ```
//! use ballet_core::{Event, ServiceName, TopicName, TraceContext};
//!
//! let orders: ServiceName = "orders".parse().expect("a valid name");
//! let topic: TopicName = "order.placed".parse().expect("a valid topic");
//! let event = Event::new(topic, orders.as_str(), serde_json::json!({"id": "7"})).subject("7");
//! let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").expect("a valid header");
//! assert_eq!(event.subject.as_deref(), Some("7"));
//! assert_eq!(trace.trace_id().len(), 32);
//! ```
//!
//! It deliberately does no I/O and needs no runtime: whatever opens a socket or a file lives on a higher floor.

mod clock;
mod context;
mod discovery;
mod error;
mod event;
mod events;
mod name;
mod policy;
mod workflows;

#[cfg(feature = "conformance")]
pub mod conformance;

pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use context::{Deadline, TraceContext, headers};
pub use discovery::{Discovery, DiscoveryError, Fixed, Instance, InstanceState, Instances};
pub use error::{Chain, Classify, CodeEntry, ErrorCode, FieldError, Problem, Retry};
pub use event::{Event, EventError};
pub use events::{Delivery, Events, EventsError, Offset, Pull, Receipt};
pub use name::{
    ExecutionId, GroupName, InstanceId, NameError, Namespace, ServiceName, TaskId, TopicName, WorkflowName,
};
pub use policy::{BreakerPolicy, BulkheadPolicy, Fallback, Policy, RetryPolicy};
pub use workflows::{ExecutionStatus, Start, Started, WorkflowDocument, Workflows, WorkflowsError};

/// A boxed answer under way: keeps the seams object-safe.
pub type Later<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
