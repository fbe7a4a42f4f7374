//! The broker under the bus: the embedded one, which waits and orders by itself, or any other.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use ballet_core::{Event, GroupName, Offset, Receipt, TopicName};
use ballet_store::{Broker, Handed, Position, StoreError, Take, TopicSpec};

use crate::embedded::Embedded;

/// How often a broker that cannot wait is asked.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// How long another broker puts off an event whose target was out of reach.
const PUT_OFF: Duration = Duration::from_secs(10);

/// The broker under a [`crate::Bus`].
#[derive(Clone)]
pub enum Engine {
    /// Ours. Publishes over several topics are atomic, ordering keys are kept, waiting costs nothing, and an unreachable
    /// consumer uses up no attempts.
    Embedded(Embedded),
    /// Another. Publishes are atomic for each topic only; events come in the broker's order; waiting asks it every 100 ms;
    /// an unreachable consumer uses up attempts.
    Other(Arc<dyn Broker>),
}

impl Engine {
    pub(crate) fn broker(&self) -> &dyn Broker {
        match self {
            Self::Embedded(embedded) => embedded,
            Self::Other(broker) => &**broker,
        }
    }

    pub(crate) async fn declare(&self, topic: TopicSpec) -> Result<(), StoreError> {
        self.broker().declare(topic).await
    }

    pub(crate) async fn join(&self, topic: &TopicName, group: &GroupName, from: Position) -> Result<(), StoreError> {
        self.broker().join(topic, group, from).await
    }

    /// Publishes each event to the topic of its type.
    pub(crate) async fn publish(&self, events: Vec<Event>) -> Result<Vec<Offset>, StoreError> {
        let broker = match self {
            Self::Embedded(embedded) => return embedded.publish_all(events).await,
            Self::Other(broker) => broker,
        };
        let mut places = vec![Offset::default(); events.len()];
        let mut rest: Vec<(usize, Event)> = events.into_iter().enumerate().collect();
        let mut begun = false;
        while let Some(topic) = rest.first().map(|(_, event)| event.topic.clone()) {
            let (these, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, event)| event.topic == topic);
            let (indexes, events): (Vec<_>, Vec<_>) = these.into_iter().unzip();
            let given = broker.publish(&topic, events).await.map_err(|error| match begun {
                // An earlier topic has its events.
                true => StoreError::Unknown(format!("published in part: {error}")),
                false => error,
            })?;
            indexes.into_iter().zip(given).for_each(|(i, place)| places[i] = place);
            (rest, begun) = (others, true);
        }
        Ok(places)
    }

    /// Takes due events, waiting for the first one.
    pub(crate) async fn take(&self, take: Take, wait: Duration, ordered: bool) -> Result<Vec<Handed>, StoreError> {
        let broker = match self {
            Self::Embedded(embedded) => return embedded.take_within(take, wait, ordered).await,
            Self::Other(broker) => broker,
        };
        let until = Instant::now() + wait;
        loop {
            let handed = broker.take(take.clone()).await?;
            if !handed.is_empty() || Instant::now() >= until {
                return Ok(handed);
            }
            tokio::time::sleep_until(until.min(Instant::now() + POLL_EVERY)).await;
        }
    }

    /// Settles a pushed event. It may come again after a crash within the next 200 ms, as far as the broker can wait.
    pub(crate) async fn done(&self, receipt: Receipt) -> Result<(), StoreError> {
        match self {
            Self::Embedded(embedded) => embedded.ack_lazily(vec![receipt]).await,
            Self::Other(broker) => broker.ack(vec![receipt]).await,
        }
    }

    /// Gives an event back without counting the attempt, as far as the broker can. `tried`: in vain.
    pub(crate) async fn give_back(&self, receipt: Receipt, tried: bool, reason: String) -> Result<(), StoreError> {
        match self {
            Self::Embedded(embedded) => {
                embedded.give_back(receipt, tried);
                Ok(())
            }
            Self::Other(broker) => broker.nack(receipt, if tried { PUT_OFF } else { Duration::ZERO }, reason).await,
        }
    }

    /// The target is back: what was put off is due, as far as the broker can.
    pub(crate) fn resume(&self, topic: &TopicName, group: &GroupName) {
        match self {
            Self::Embedded(embedded) => embedded.resume(topic.clone(), group.clone()),
            Self::Other(_) => {}
        }
    }

    /// Writes what is left and ends.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        match self {
            Self::Embedded(embedded) => embedded.close().await,
            Self::Other(_) => Ok(()),
        }
    }
}

impl From<Embedded> for Engine {
    fn from(embedded: Embedded) -> Self {
        Self::Embedded(embedded)
    }
}

impl From<Arc<dyn Broker>> for Engine {
    fn from(broker: Arc<dyn Broker>) -> Self {
        Self::Other(broker)
    }
}
