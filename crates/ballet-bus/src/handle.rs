//! The bus as others see it: publish, pull, ack, nack, and what an operator asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use ballet_core::{Clock, Delivery, Event, Events, EventsError, GroupName, Later, Offset, Pull, Receipt, TopicName};
use ballet_store::{Capabilities, DeadLetter, GroupState, Position, StoreError, Take};

use crate::config::{Redelivery, TopicConfig};
use crate::engine::Engine;

/// Largest event, in bytes of its JSON: 256 KiB.
pub const MAX_EVENT_BYTES: usize = 256 << 10;
/// Events in one publish.
pub const MAX_PUBLISH: usize = 1_000;
/// Events in one pull.
pub const MAX_PULL: usize = 1_000;
/// Longest wait of a pull.
pub const MAX_WAIT: Duration = Duration::from_secs(60);
/// Longest lease of a pull.
pub const MAX_LEASE: Duration = Duration::from_secs(12 * 3600);

/// A way to the bus. Cheap to clone.
#[derive(Clone)]
pub struct Handle(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) topics: RwLock<BTreeMap<TopicName, TopicConfig>>,
    /// Who is pushed to, as the manifest writes it.
    pub(crate) targets: RwLock<BTreeMap<(TopicName, GroupName), String>>,
    /// Attempts of those who pull.
    pub(crate) redelivery: Redelivery,
    joined: Mutex<BTreeSet<(TopicName, GroupName)>>,
}

/// How a topic stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: TopicName,
    /// How long events stay.
    pub keep: Duration,
    /// Its groups, by name.
    pub groups: Vec<GroupInfo>,
}

/// How a group stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Counts.
    pub state: GroupState,
    /// Who is pushed to: `inventory:/events`, `workflow:checkout`. None for those who pull.
    pub target: Option<String>,
}

impl Handle {
    pub(crate) fn new(engine: Engine, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared {
            engine,
            clock,
            topics: RwLock::default(),
            targets: RwLock::default(),
            redelivery: Redelivery::default(),
            joined: Mutex::default(),
        }))
    }

    /// All topics with their groups, by name.
    ///
    /// # Errors
    /// `Unavailable` or `Unknown`.
    pub async fn topics(&self) -> Result<Vec<TopicInfo>, EventsError> {
        let topics: Vec<TopicConfig> = read(&self.0.topics).values().cloned().collect();
        let mut infos = vec![];
        for topic in topics {
            let groups = self.0.engine.broker().groups(&topic.name).await.map_err(refused)?;
            let target = |group: &GroupName| read(&self.0.targets).get(&(topic.name.clone(), group.clone())).cloned();
            let groups = groups.into_iter().map(|state| GroupInfo { target: target(&state.group), state }).collect();
            infos.push(TopicInfo { name: topic.name.clone(), keep: topic.keep, groups });
        }
        Ok(infos)
    }

    /// A group's dead letters, oldest first, from a place on; at most `limit`, at most 1,000.
    ///
    /// # Errors
    /// `UnknownTopic`; `Invalid` for a group that is not there.
    pub async fn dead(
        &self,
        topic: &TopicName,
        group: &GroupName,
        from: Offset,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, EventsError> {
        self.known(topic)?;
        self.0.engine.broker().dead(topic, group, from, limit.min(1000)).await.map_err(refused)
    }

    /// Makes a dead letter due again, as attempt 1.
    ///
    /// # Errors
    /// `UnknownTopic`; `Invalid` when there is no such dead letter.
    pub async fn replay(&self, topic: &TopicName, group: &GroupName, offset: Offset) -> Result<(), EventsError> {
        self.known(topic)?;
        self.0.engine.broker().replay(topic, group, offset).await.map_err(refused)
    }

    /// Moves a group: everything from there on comes again, everything before is settled.
    ///
    /// # Errors
    /// `UnknownTopic`; `Invalid` for a group that is not there.
    pub async fn seek(&self, topic: &TopicName, group: &GroupName, to: Position) -> Result<(), EventsError> {
        self.known(topic)?;
        self.0.engine.broker().seek(topic, group, to).await.map_err(refused)
    }

    /// Settles several deliveries, all or none.
    ///
    /// # Errors
    /// `Stale` if one of them is not ours any more; then none is settled.
    pub async fn ack_all(&self, receipts: Vec<Receipt>) -> Result<(), EventsError> {
        receipts.iter().try_for_each(|receipt| self.known(&receipt.topic))?;
        self.0.engine.broker().ack(receipts).await.map_err(stale)
    }

    /// What the engine does by itself.
    pub fn capabilities(&self) -> Capabilities {
        self.0.engine.broker().capabilities()
    }

    fn known(&self, topic: &TopicName) -> Result<(), EventsError> {
        if read(&self.0.topics).contains_key(topic) { Ok(()) } else { Err(EventsError::UnknownTopic(topic.clone())) }
    }

    async fn publish_now(&self, mut events: Vec<Event>) -> Result<Vec<Offset>, EventsError> {
        if events.is_empty() {
            return Ok(vec![]);
        }
        if events.len() > MAX_PUBLISH {
            let why = format!("{} events in one publish, more than {MAX_PUBLISH}", events.len());
            return Err(EventsError::Invalid(why));
        }
        events.iter().try_for_each(|event| self.known(&event.topic))?;
        let now = self.0.clock.now();
        for event in &mut events {
            event.time.get_or_insert_with(|| now.to_string());
            let bytes = event.to_json().to_string().len();
            if bytes > MAX_EVENT_BYTES {
                return Err(EventsError::TooLarge { bytes, limit_bytes: MAX_EVENT_BYTES });
            }
        }
        self.0.engine.publish(events).await.map_err(refused)
    }

    async fn pull_now(&self, pull: Pull) -> Result<Vec<Delivery>, EventsError> {
        self.known(&pull.topic)?;
        if pull.max == 0 || pull.max > MAX_PULL {
            return Err(EventsError::Invalid(format!("a pull takes 1 to {MAX_PULL} events, not {}", pull.max)));
        }
        if pull.lease.is_zero() || pull.lease > MAX_LEASE {
            return Err(EventsError::Invalid(format!(
                "a lease is longer than 0 and at most {} s",
                MAX_LEASE.as_secs()
            )));
        }
        let until = Instant::now() + pull.wait.min(MAX_WAIT);
        loop {
            self.join(&pull.topic, &pull.group).await?;
            let take = Take { topic: pull.topic.clone(), group: pull.group.clone(), max: pull.max, lease: pull.lease };
            let wait = until.saturating_duration_since(Instant::now());
            let handed = match self.0.engine.take(take, wait, false).await {
                Ok(handed) => handed,
                Err(error) => {
                    // It may be that the group was never written: next time it is made anew.
                    self.joined().remove(&(pull.topic, pull.group));
                    return Err(refused(error));
                }
            };
            let none = handed.is_empty();
            let mut deliveries = vec![];
            for handed in handed {
                if handed.receipt.attempt > self.0.redelivery.max_attempts {
                    let why = format!("{} leases ran out", handed.receipt.attempt - 1);
                    self.0.engine.broker().bury(handed.receipt, why).await.map_err(refused)?;
                } else {
                    deliveries.push(Delivery { event: handed.event, receipt: handed.receipt });
                }
            }
            if none || !deliveries.is_empty() {
                return Ok(deliveries);
            }
        }
    }

    /// Makes the group unless this process knows that it is there.
    async fn join(&self, topic: &TopicName, group: &GroupName) -> Result<(), EventsError> {
        let name = (topic.clone(), group.clone());
        if self.joined().contains(&name) {
            return Ok(());
        }
        self.0.engine.join(topic, group, Position::End).await.map_err(refused)?;
        self.joined().insert(name);
        Ok(())
    }

    fn joined(&self) -> std::sync::MutexGuard<'_, BTreeSet<(TopicName, GroupName)>> {
        self.0.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes over several topics are atomic on the embedded engine. Those who pull get 10 attempts; the last nack, or the
/// lease that runs out for the tenth time, makes a dead letter.
impl Events for Handle {
    fn publish(&self, events: Vec<Event>) -> Later<'_, Result<Vec<Offset>, EventsError>> {
        Box::pin(self.publish_now(events))
    }

    fn pull(&self, pull: Pull) -> Later<'_, Result<Vec<Delivery>, EventsError>> {
        Box::pin(self.pull_now(pull))
    }

    fn ack(&self, receipt: Receipt) -> Later<'_, Result<(), EventsError>> {
        Box::pin(self.ack_all(vec![receipt]))
    }

    fn nack(&self, receipt: Receipt, delay: Duration, reason: String) -> Later<'_, Result<(), EventsError>> {
        Box::pin(async move {
            self.known(&receipt.topic)?;
            let broker = self.0.engine.broker();
            let done = if receipt.attempt >= self.0.redelivery.max_attempts {
                broker.bury(receipt, reason)
            } else {
                broker.nack(receipt, delay, reason)
            };
            done.await.map_err(stale)
        })
    }
}

pub(crate) fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn refused(error: StoreError) -> EventsError {
    match error {
        StoreError::Invalid(why) => EventsError::Invalid(why),
        StoreError::Unknown(why) => EventsError::Unknown(why),
        StoreError::Fenced(_) | StoreError::Exists(_) | StoreError::Shape(_) | StoreError::Failed(_) => {
            EventsError::Unavailable(error.to_string())
        }
    }
}

/// What a refusal of a receipt means: the topic is known, so the receipt is not.
fn stale(error: StoreError) -> EventsError {
    match error {
        StoreError::Invalid(_) => EventsError::Stale,
        other => refused(other),
    }
}
