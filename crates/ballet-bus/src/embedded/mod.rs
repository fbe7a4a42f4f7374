//! The embedded broker: topics and groups on a [`Journal`].

mod engine;
mod group;
mod load;
mod rows;
mod topic;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use ballet_core::{Clock, Event, GroupName, Offset, Receipt, TopicName};
use ballet_store::{
    Answer, Broker, Capabilities, DeadLetter, Fence, GroupState, Handed, Journal, Position, Reply, Shard, StoreError,
    Support, Take, TopicSpec,
};

use engine::{Ask, Engine, MAX_ASKS};
use group::Want;

/// The shard of the journal that the bus owns: "bus".
pub const SHARD: Shard = 0x62_7573;

/// A broker on a [`Journal`]. Clones are handles on one engine.
///
/// Attempts are counted on disk when an event is given back. When the process dies, what was handed out comes again, and
/// counts as attempt 2 at least if anything of its group was written after it had been handed out. (So does an event that
/// only waited behind an elder then: one attempt too many is counted rather than one too few.)
///
/// The engine that opened the tables last owns them: an earlier one, in whatever process, refuses everything from its next
/// write on (`Fenced`).
#[derive(Clone)]
pub struct Embedded {
    asks: mpsc::Sender<Ask>,
}

impl Embedded {
    /// Opens the tables, reads their state and starts the engine.
    ///
    /// # Errors
    /// What the journal says.
    pub async fn open(journal: Arc<dyn Journal>, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        journal.open(rows::TABLES).await?;
        let owner = format!("bus-{}", Event::new(owner_topic(), "bus", serde_json::Value::Null).id);
        // No lease to renew: whoever claims next is the owner, and the fence keeps the one before out.
        let held = journal.claim(&[SHARD], &owner, Duration::ZERO).await?;
        let Some((shard, epoch)) = held.first().copied() else {
            return Err(StoreError::Failed("another process holds the bus".into()));
        };
        let topics = load::state(&*journal, clock.now()).await?;
        let (asks, asked) = mpsc::channel(MAX_ASKS);
        let engine = Engine::new(journal, clock, Fence { shard, epoch }, topics, asked);
        // Ends with the last handle, or by `close`.
        tokio::spawn(engine.run());
        Ok(Self { asks })
    }

    /// Writes what was asked before and ends the engine; later asks answer `Unknown`.
    pub fn close(&self) -> Reply<()> {
        self.ask(Ask::Close)
    }

    /// Publishes events of several topics, each to the topic of its type: all of them, in one batch, or none.
    pub fn publish_all(&self, events: Vec<Event>) -> Reply<Vec<Offset>> {
        self.ask(|answer| Ask::Publish(events.into_iter().map(|e| (e.topic.clone(), e)).collect(), answer))
    }

    /// Takes due events, waiting for the first one. Dropping the reply while it waits loses nothing and counts nothing.
    ///
    /// With `ordered`, an event is handed out only when no elder with its key ([`Event::key`]) is unsettled.
    pub fn take_within(&self, take: Take, wait: Duration, ordered: bool) -> Reply<Vec<Handed>> {
        let want = Want { max: take.max, lease: take.lease, ordered };
        let until = Instant::now() + wait;
        self.ask(|answer| Ask::Take(engine::Take { topic: take.topic, group: take.group, want, until, answer }))
    }

    /// Settles events as [`Broker::ack`] does, but answers before they are on disk: they are written with the next batch
    /// that somebody waits for, or after 200 ms, or when the engine closes. After a crash before that they come again.
    pub fn ack_lazily(&self, receipts: Vec<Receipt>) -> Reply<()> {
        self.ask(|answer| Ask::AckLazily(receipts, answer))
    }

    /// Gives an event back as if it had not been handed out: the attempt does not count, and nothing is written.
    ///
    /// An event that was tried, in vain because the target was out of reach, is due again after 100 ms, doubling each time
    /// up to 10 s; others go first.
    pub fn give_back(&self, receipt: Receipt, tried: bool) {
        // Without a place in the queue it comes again after its lease.
        let _ = self.asks.try_send(Ask::Return(receipt, tried));
    }

    /// Makes everything due that was given back as tried: the target is back.
    pub fn resume(&self, topic: TopicName, group: GroupName) {
        // Without a place in the queue they are due in 10 s at most.
        let _ = self.asks.try_send(Ask::Resume(topic, group));
    }

    fn ask<T>(&self, make: impl FnOnce(Answer<T>) -> Ask) -> Reply<T> {
        let (answer, reply) = Reply::new();
        // A stopped engine drops the answer, and the reply says so.
        if let Err(TrySendError::Full(ask)) = self.asks.try_send(make(answer)) {
            ask.refuse(StoreError::Failed("too many requests wait for the bus".into()));
        }
        reply
    }
}

impl Broker for Embedded {
    fn declare(&self, topic: TopicSpec) -> Reply<()> {
        self.ask(|answer| Ask::Declare(topic, answer))
    }

    fn join(&self, topic: &TopicName, group: &GroupName, from: Position) -> Reply<()> {
        self.ask(|answer| Ask::Join(topic.clone(), group.clone(), from, answer))
    }

    fn publish(&self, topic: &TopicName, events: Vec<Event>) -> Reply<Vec<Offset>> {
        self.ask(|answer| Ask::Publish(events.into_iter().map(|e| (topic.clone(), e)).collect(), answer))
    }

    fn take(&self, take: Take) -> Reply<Vec<Handed>> {
        self.take_within(take, Duration::ZERO, false)
    }

    fn ack(&self, receipts: Vec<Receipt>) -> Reply<()> {
        self.ask(|answer| Ask::Ack(receipts, answer))
    }

    fn nack(&self, receipt: Receipt, delay: Duration, _reason: String) -> Reply<()> {
        self.ask(|answer| Ask::Nack(receipt, delay, answer))
    }

    fn bury(&self, receipt: Receipt, reason: String) -> Reply<()> {
        self.ask(|answer| Ask::Bury(receipt, reason, answer))
    }

    fn dead(&self, topic: &TopicName, group: &GroupName, from: Offset, limit: usize) -> Reply<Vec<DeadLetter>> {
        self.ask(|answer| Ask::Dead(topic.clone(), group.clone(), from, limit, answer))
    }

    fn replay(&self, topic: &TopicName, group: &GroupName, offset: Offset) -> Reply<()> {
        self.ask(|answer| Ask::Replay(topic.clone(), group.clone(), offset, answer))
    }

    fn seek(&self, topic: &TopicName, group: &GroupName, to: Position) -> Reply<()> {
        self.ask(|answer| Ask::Seek(topic.clone(), group.clone(), to, answer))
    }

    fn groups(&self, topic: &TopicName) -> Reply<Vec<GroupState>> {
        self.ask(|answer| Ask::Groups(topic.clone(), answer))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            delay: Support::Native,
            dead_letters: Support::Native,
            replay: Support::Native,
            ack_means_on_disk: Support::Native,
        }
    }
}

fn owner_topic() -> TopicName {
    "bus.owner".parse().expect("a valid name")
}
