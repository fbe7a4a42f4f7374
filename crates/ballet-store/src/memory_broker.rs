//! The reference broker: what the contract means, in its shortest form. Keeps nothing on disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ballet_core::{Clock, Event, GroupName, Offset, Receipt, SystemClock, Timestamp, TopicName};
use tokio::time::Instant;

use crate::{
    Broker, Capabilities, DeadLetter, GroupState, Handed, Position, Reply, StoreError, Support, Take, TopicSpec,
};

/// A broker in memory, for tests and simulations.
pub struct MemoryBroker {
    clock: Arc<dyn Clock>,
    topics: Mutex<BTreeMap<TopicName, Topic>>,
}

#[derive(Default)]
struct Topic {
    events: Vec<(Event, Timestamp)>,
    groups: BTreeMap<GroupName, Group>,
}

#[derive(Default)]
struct Group {
    /// Events that are not settled: every one the group has to see.
    open: BTreeMap<Offset, Open>,
    dead: BTreeMap<Offset, DeadLetter>,
}

struct Open {
    attempt: u32,
    state: State,
}

enum State {
    Due(Instant),
    Out(Instant),
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), topics: Mutex::default() }
    }
}

impl Topic {
    fn first(&self, position: Position) -> Offset {
        match position {
            Position::Start => Offset(1),
            Position::End => Offset(self.events.len() as i64 + 1),
            Position::Offset(offset) => Offset(offset.0.max(1)),
            Position::Time(time) => Offset(self.events.partition_point(|(_, at)| *at < time) as i64 + 1),
        }
    }

    fn event(&self, offset: Offset) -> &(Event, Timestamp) {
        &self.events[offset.0 as usize - 1]
    }

    fn due_from(&self, first: Offset) -> BTreeMap<Offset, Open> {
        let due = || Open { attempt: 0, state: State::Due(Instant::now()) };
        (first.0..=self.events.len() as i64).map(|n| (Offset(n), due())).collect()
    }
}

impl Group {
    /// The event under way in exactly this attempt.
    fn under_way(&mut self, receipt: &Receipt) -> Result<&mut Open, StoreError> {
        let open = self.open.get_mut(&receipt.offset);
        open.filter(|o| o.attempt == receipt.attempt && matches!(o.state, State::Out(_))).ok_or_else(stale)
    }
}

fn stale() -> StoreError {
    StoreError::Invalid("the delivery is settled or somebody else's by now".into())
}

impl MemoryBroker {
    fn topics(&self) -> MutexGuard<'_, BTreeMap<TopicName, Topic>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn topic<T>(&self, name: &TopicName, act: impl FnOnce(&mut Topic) -> Result<T, StoreError>) -> Reply<T> {
        let mut topics = self.topics();
        let topic = topics.get_mut(name);
        Reply::ready(topic.ok_or_else(|| StoreError::Invalid(format!("no topic named `{name}`"))).and_then(act))
    }

    fn group<T>(
        &self,
        topic: &TopicName,
        group: &GroupName,
        act: impl FnOnce(&mut Group) -> Result<T, StoreError>,
    ) -> Reply<T> {
        self.topic(topic, |t| {
            t.groups
                .get_mut(group)
                .ok_or_else(|| StoreError::Invalid(format!("no group named `{group}`")))
                .and_then(act)
        })
    }
}

impl Broker for MemoryBroker {
    fn declare(&self, topic: TopicSpec) -> Reply<()> {
        self.topics().entry(topic.name).or_default();
        Reply::ready(Ok(()))
    }

    fn join(&self, topic: &TopicName, group: &GroupName, from: Position) -> Reply<()> {
        self.topic(topic, |topic| {
            if !topic.groups.contains_key(group) {
                let open = topic.due_from(topic.first(from));
                topic.groups.insert(group.clone(), Group { open, dead: BTreeMap::new() });
            }
            Ok(())
        })
    }

    fn publish(&self, topic: &TopicName, events: Vec<Event>) -> Reply<Vec<Offset>> {
        let now = self.clock.now();
        self.topic(topic, |topic| {
            let first = topic.first(Position::End);
            topic.events.extend(events.into_iter().map(|event| (event, now)));
            let new = topic.due_from(first).into_keys().collect::<Vec<_>>();
            for group in topic.groups.values_mut() {
                let due = |o: &Offset| (*o, Open { attempt: 0, state: State::Due(Instant::now()) });
                group.open.extend(new.iter().map(due));
            }
            Ok(new)
        })
    }

    fn take(&self, take: Take) -> Reply<Vec<Handed>> {
        let now = Instant::now();
        self.topic(&take.topic, |topic| {
            let Some(group) = topic.groups.get_mut(&take.group) else {
                return Err(StoreError::Invalid(format!("no group named `{}`", take.group)));
            };
            let mut taken = vec![];
            for (offset, open) in &mut group.open {
                let (State::Due(at) | State::Out(at)) = open.state;
                if at > now || taken.len() == take.max {
                    continue;
                }
                open.attempt += 1;
                open.state = State::Out(now + take.lease);
                taken.push((*offset, open.attempt));
            }
            let handed = |(offset, attempt): (Offset, u32)| {
                let (event, accepted) = topic.event(offset).clone();
                let receipt = Receipt { topic: take.topic.clone(), group: take.group.clone(), offset, attempt };
                Handed { event, receipt, accepted }
            };
            Ok(taken.into_iter().map(handed).collect())
        })
    }

    fn ack(&self, receipts: Vec<Receipt>) -> Reply<()> {
        for receipt in &receipts {
            let settled = self.group(&receipt.topic, &receipt.group, |group| {
                group.under_way(receipt)?;
                group.open.remove(&receipt.offset);
                Ok(())
            });
            if let Err(error) = settled.now() {
                return Reply::ready(Err(error));
            }
        }
        Reply::ready(Ok(()))
    }

    fn nack(&self, receipt: Receipt, delay: Duration, _reason: String) -> Reply<()> {
        self.group(&receipt.topic, &receipt.group, |group| {
            group.under_way(&receipt)?.state = State::Due(Instant::now() + delay);
            Ok(())
        })
    }

    fn bury(&self, receipt: Receipt, reason: String) -> Reply<()> {
        let at = self.clock.now();
        self.topic(&receipt.topic, |topic| {
            let event = topic.events.get(receipt.offset.0 as usize - 1).map(|(event, _)| event.clone());
            let group = topic.groups.get_mut(&receipt.group).ok_or_else(stale)?;
            let attempts = group.under_way(&receipt)?.attempt;
            group.open.remove(&receipt.offset);
            let event = event.ok_or_else(stale)?;
            let letter = DeadLetter { event, offset: receipt.offset, attempts, reason, at };
            group.dead.insert(receipt.offset, letter);
            Ok(())
        })
    }

    fn dead(&self, topic: &TopicName, group: &GroupName, from: Offset, limit: usize) -> Reply<Vec<DeadLetter>> {
        self.group(topic, group, |g| Ok(g.dead.range(from..).take(limit).map(|(_, d)| d.clone()).collect()))
    }

    fn replay(&self, topic: &TopicName, group: &GroupName, offset: Offset) -> Reply<()> {
        self.group(topic, group, |g| {
            let none = || StoreError::Invalid(format!("no dead letter at {}", offset.0));
            g.dead.remove(&offset).ok_or_else(none)?;
            g.open.insert(offset, Open { attempt: 0, state: State::Due(Instant::now()) });
            Ok(())
        })
    }

    fn seek(&self, topic: &TopicName, group: &GroupName, to: Position) -> Reply<()> {
        self.topic(topic, |topic| {
            let open = topic.due_from(topic.first(to));
            let none = || StoreError::Invalid(format!("no group named `{group}`"));
            topic.groups.get_mut(group).ok_or_else(none)?.open = open;
            Ok(())
        })
    }

    fn groups(&self, topic: &TopicName) -> Reply<Vec<GroupState>> {
        let now = Instant::now();
        self.topic(topic, |topic| {
            let out = |open: &&Open| matches!(open.state, State::Out(until) if until > now);
            let state = |(name, group): (&GroupName, &Group)| {
                let in_flight = group.open.values().filter(out).count() as u64;
                let waiting = group.open.len() as u64 - in_flight;
                GroupState { group: name.clone(), waiting, in_flight, dead: group.dead.len() as u64 }
            };
            Ok(topic.groups.iter().map(state).collect())
        })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            delay: Support::Native,
            dead_letters: Support::Native,
            replay: Support::Native,
            ack_means_on_disk: Support::Absent,
        }
    }
}
