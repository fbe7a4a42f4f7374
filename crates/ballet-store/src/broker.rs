//! The seam that carries events to consumer groups.

use std::time::Duration;

use ballet_core::{Event, GroupName, Offset, Receipt, Timestamp, TopicName};

use crate::Reply;

/// Carries events to consumer groups, at least once. Retry, dead letters and push belong to the bus above it, which asks
/// [`Broker::capabilities`] what the engine does by itself.
///
/// # Contract
/// 1. `publish` answers once all of the events survive a crash; none of them is there otherwise. Places rise within a topic.
/// 2. A group sees every event published after `join`, in the order of their places as long as nothing is given back.
/// 3. A handed-out event is nobody else's in its group until its lease ends; then it is handed out again, attempt + 1.
/// 4. `ack` and `nack` of anything but the latest attempt under way answer `Invalid` and change nothing.
/// 5. `nack` makes the event due again after the delay. `bury` takes it out of the group and keeps it as a dead letter with its reason.
/// 6. Acks survive a crash once answered: an acked event does not come again.
/// 7. `seek` moves a group: everything from there on comes again, everything before is settled.
/// 8. A topic that was not declared refuses with `Invalid`; declaring twice changes what is kept and nothing else.
pub trait Broker: Send + Sync + 'static {
    /// Makes a topic or changes how long it keeps events.
    fn declare(&self, topic: TopicSpec) -> Reply<()>;
    /// Makes a consumer group if it is not there.
    fn join(&self, topic: &TopicName, group: &GroupName, from: Position) -> Reply<()>;
    /// Appends events to a topic; answers their places.
    fn publish(&self, topic: &TopicName, events: Vec<Event>) -> Reply<Vec<Offset>>;
    /// Takes due events for a group; returns at once, with none when none is due.
    fn take(&self, take: Take) -> Reply<Vec<Handed>>;
    /// Settles events for good.
    fn ack(&self, receipts: Vec<Receipt>) -> Reply<()>;
    /// Gives an event back; it is due again after `delay`.
    fn nack(&self, receipt: Receipt, delay: Duration, reason: String) -> Reply<()>;
    /// Takes an event out of the group and keeps it as a dead letter.
    fn bury(&self, receipt: Receipt, reason: String) -> Reply<()>;
    /// Lists a group's dead letters, oldest first, from a place on.
    fn dead(&self, topic: &TopicName, group: &GroupName, from: Offset, limit: usize) -> Reply<Vec<DeadLetter>>;
    /// Makes a dead letter due again, as attempt 1.
    fn replay(&self, topic: &TopicName, group: &GroupName, offset: Offset) -> Reply<()>;
    /// Moves a group.
    fn seek(&self, topic: &TopicName, group: &GroupName, to: Position) -> Reply<()>;
    /// How a topic's groups stand.
    fn groups(&self, topic: &TopicName) -> Reply<Vec<GroupState>>;
    /// What the engine does by itself.
    fn capabilities(&self) -> Capabilities;
}

/// A topic as declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: TopicName,
    /// How long events are kept after all groups have settled them. Default: 7 days.
    pub keep: Duration,
}

/// A place in a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Before the first event that is kept.
    Start,
    /// After the last event.
    End,
    /// Before the event at this place.
    Offset(Offset),
    /// Before the first event accepted at or after this time.
    Time(Timestamp),
}

/// A wish for events.
#[derive(Clone, Debug)]
pub struct Take {
    /// The topic.
    pub topic: TopicName,
    /// The group.
    pub group: GroupName,
    /// At most this many.
    pub max: usize,
    /// How long they are the taker's.
    pub lease: Duration,
}

/// An event handed out.
#[derive(Clone, Debug)]
pub struct Handed {
    /// The event.
    pub event: Event,
    /// What settles it.
    pub receipt: Receipt,
    /// When the bus accepted it.
    pub accepted: Timestamp,
}

/// An event that a group gave up.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The event.
    pub event: Event,
    /// Its place.
    pub offset: Offset,
    /// Attempts that were made.
    pub attempts: u32,
    /// Why the last one failed.
    pub reason: String,
    /// When it was given up.
    pub at: Timestamp,
}

/// How a group stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// The group.
    pub group: GroupName,
    /// Events that nobody has taken yet or that wait for another attempt.
    pub waiting: u64,
    /// Events handed out and not settled.
    pub in_flight: u64,
    /// Dead letters.
    pub dead: u64,
}

/// Whether an engine has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// By itself.
    Native,
    /// Our bus adds it.
    Emulated,
    /// Not at all: a configuration that asks for it is refused.
    Absent,
}

/// What an engine does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Due again after a delay.
    pub delay: Support,
    /// Dead letters.
    pub dead_letters: Support,
    /// Groups that begin in the past or go back.
    pub replay: Support,
    /// An acknowledged publish is on disk.
    pub ack_means_on_disk: Support,
}
