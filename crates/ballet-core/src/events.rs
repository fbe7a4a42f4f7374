//! The seam between those who publish or consume events and the bus.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Classify, ErrorCode, Event, GroupName, Later, Retry, TopicName};

/// Place of an event in its topic: 1 for the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

/// A wish for events.
#[derive(Clone, Debug)]
pub struct Pull {
    /// From which topic.
    pub topic: TopicName,
    /// For which consumer group. A group that does not exist is made and starts with the topic's next event.
    pub group: GroupName,
    /// At most this many (1 to 1,000).
    pub max: usize,
    /// How long to wait for the first one.
    pub wait: Duration,
    /// How long the events are ours; without ack by then, they go to somebody else.
    pub lease: Duration,
}

/// What it takes to settle a delivery. Good for one attempt only: a later attempt has another receipt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The topic.
    pub topic: TopicName,
    /// The consumer group.
    pub group: GroupName,
    /// The event's place.
    pub offset: Offset,
    /// Which attempt this is, 1 for the first.
    pub attempt: u32,
}

/// An event handed out.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event.
    pub event: Event,
    /// What settles it.
    pub receipt: Receipt,
}

/// Why the bus refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EventsError {
    /// No such topic.
    #[error("no topic named `{0}`")]
    UnknownTopic(TopicName),
    /// The request breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The event is larger than the bus takes.
    #[error("the event has {bytes} bytes, more than {limit_bytes}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What is allowed.
        limit_bytes: usize,
    },
    /// The delivery was not ours any more: its lease ran out and somebody else has it, or it is settled.
    #[error("the delivery is settled or somebody else's by now")]
    Stale,
    /// The bus cannot be reached, or its disk refuses; nothing was accepted.
    #[error("the bus takes nothing now: {0}")]
    Unavailable(String),
    /// The answer was lost; it may have been done.
    #[error("the bus gave no answer: {0}")]
    Unknown(String),
}

impl Classify for EventsError {
    fn code(&self) -> ErrorCode {
        ErrorCode(match self {
            Self::UnknownTopic(_) => "EV010",
            Self::Invalid(_) => "EV011",
            Self::TooLarge { .. } => "EV012",
            Self::Stale => "EV013",
            Self::Unavailable(_) => "EV014",
            Self::Unknown(_) => "EV015",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::UnknownTopic(_) | Self::Invalid(_) | Self::TooLarge { .. } | Self::Stale => Retry::Never,
            Self::Unavailable(_) => Retry::Safe(None),
            Self::Unknown(_) => Retry::IfIdempotent,
        }
    }
}

/// Carries events.
///
/// # Contract
/// 1. `publish` answers once all of the events are on disk, or none of them is accepted.
/// 2. Every group gets every event published after the group began, at least once, until somebody acks it.
/// 3. Within a group an event is with one consumer at a time; after its lease it is handed out again, attempt + 1.
/// 4. `ack` of a receipt of an earlier attempt says `Stale` and changes nothing.
/// 5. `nack` hands the event out again after `delay`.
/// 6. `pull` returns at once when events wait, else when one comes or the wait is over (then with none).
pub trait Events: Send + Sync + 'static {
    /// Publishes events, each to the topic of its type; answers their places.
    fn publish(&self, events: Vec<Event>) -> Later<'_, Result<Vec<Offset>, EventsError>>;
    /// Takes events for a group. Not cancel safe: what was handed out and dropped comes again after its lease.
    fn pull(&self, pull: Pull) -> Later<'_, Result<Vec<Delivery>, EventsError>>;
    /// Settles a delivery for good.
    fn ack(&self, receipt: Receipt) -> Later<'_, Result<(), EventsError>>;
    /// Gives a delivery back, to be handed out again after `delay`, with the reason.
    fn nack(&self, receipt: Receipt, delay: Duration, reason: String) -> Later<'_, Result<(), EventsError>>;
}
