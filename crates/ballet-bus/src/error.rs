//! Why the bus cannot do what its configuration asks, and the error table.

use ballet_core::{Classify, CodeEntry, ErrorCode, GroupName, Retry, TopicName};
use ballet_store::StoreError;

/// Why a configuration cannot be brought about.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A subscription names a topic that is not declared.
    #[error("group `{group}` subscribes to `{topic}`, which is not declared")]
    UnknownTopic {
        /// The topic.
        topic: TopicName,
        /// Who wants it.
        group: GroupName,
    },
    /// Two subscriptions of one topic share a group: each event would go to one of them only.
    #[error("two subscriptions of `{topic}` share the group `{group}`")]
    SharedGroup {
        /// The topic.
        topic: TopicName,
        /// The group.
        group: GroupName,
    },
    /// The engine refused.
    #[error("the bus' engine refused")]
    Engine(#[from] StoreError),
}

impl Classify for BusError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownTopic { .. } => ErrorCode("BU001"),
            Self::SharedGroup { .. } => ErrorCode("BU002"),
            Self::Engine(source) => source.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::UnknownTopic { .. } | Self::SharedGroup { .. } => Retry::Never,
            Self::Engine(source) => source.retry(),
        }
    }
}

/// This crate's part of the error table; the codes of the events seam are explained here, where they come from.
pub static CODES: &[CodeEntry] = &[
    CodeEntry {
        code: ErrorCode("BU001"),
        title: "subscription to an unknown topic",
        cause: "a subscription names a topic that is not under `events: topics:`",
        remedy: "declare the topic, or correct the subscription's name",
    },
    CodeEntry {
        code: ErrorCode("BU002"),
        title: "two subscriptions share a group",
        cause: "a service or workflow is subscribed to one topic twice, and each event would reach one of the two only",
        remedy: "leave one of them out; a service can tell the cases apart behind one path",
    },
    CodeEntry {
        code: ErrorCode("EV001"),
        title: "not a CloudEvent",
        cause: "a required attribute is missing or malformed, or the body is not JSON",
        remedy: "send specversion 1.0, id, source and type, as `application/cloudevents+json` or as `ce-…` headers",
    },
    CodeEntry {
        code: ErrorCode("EV010"),
        title: "unknown topic",
        cause: "an event was published to, or pulled from, a topic that is not declared",
        remedy: "add it under `events: topics:`, or correct the event's type; `ballet topics` lists those that are there",
    },
    CodeEntry {
        code: ErrorCode("EV011"),
        title: "invalid request to the bus",
        cause: "the request breaks one of the bus' rules, as the detail says",
        remedy: "change what the detail names",
    },
    CodeEntry {
        code: ErrorCode("EV012"),
        title: "event too large",
        cause: "the event has more bytes than the bus takes",
        remedy: "store the bulk elsewhere and publish where it is",
    },
    CodeEntry {
        code: ErrorCode("EV013"),
        title: "delivery settled or somebody else's",
        cause: "the lease ran out before the ack came, so the event went to somebody else, or it was settled before",
        remedy: "pull with a longer lease, or fewer events at a time; the work itself is protected by the inbox",
    },
    CodeEntry {
        code: ErrorCode("EV014"),
        title: "the bus takes nothing now",
        cause: "the bus cannot be reached or its disk refuses; nothing was accepted",
        remedy: "publish again; look at the platform's log and disk if it lasts",
    },
    CodeEntry {
        code: ErrorCode("EV015"),
        title: "no answer from the bus",
        cause: "the answer was lost: the events may be published or not",
        remedy: "publish again with the same ids; consumers' inboxes drop what they know",
    },
];
