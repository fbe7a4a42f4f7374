//! The bus's tables, and what its structs look like in them.

use std::time::Duration;

use ballet_core::{Event, GroupName, Offset, Timestamp, TopicName};
use ballet_store::{DeadLetter, Kind, Op, Row, StoreError, Table, TopicSpec, row};
use serde_json::Value as Json;

use super::group::Write;

/// Declared topics.
pub(crate) static TOPIC: Table =
    Table { name: "bus_topic", key: 1, columns: &[("topic", Kind::Text), ("keep_ms", Kind::Int)], indexes: &[] };

/// Events, as CloudEvents in JSON.
pub(crate) static EVENT: Table = Table {
    name: "bus_event",
    key: 2,
    columns: &[("topic", Kind::Text), ("place", Kind::Int), ("accepted", Kind::Time), ("event", Kind::Text)],
    indexes: &[],
};

/// Consumer groups: everything below `cursor` is settled but for the exceptions, everything below `passed` was looked at.
pub(crate) static GROUP: Table = Table {
    name: "bus_group",
    key: 2,
    columns: &[("topic", Kind::Text), ("consumer", Kind::Text), ("cursor", Kind::Int), ("passed", Kind::Int)],
    indexes: &[],
};

/// Exceptions: events that wait for another attempt, and events that were settled before an elder.
pub(crate) static OPEN: Table = Table {
    name: "bus_open",
    key: 3,
    columns: &[
        ("topic", Kind::Text),
        ("consumer", Kind::Text),
        ("place", Kind::Int),
        ("settled", Kind::Int),
        ("attempts", Kind::Int),
        ("due", Kind::Time),
    ],
    indexes: &[],
};

/// Dead letters, with the event: they outlive the topic's `keep`.
pub(crate) static DEAD: Table = Table {
    name: "bus_dead",
    key: 3,
    columns: &[
        ("topic", Kind::Text),
        ("consumer", Kind::Text),
        ("place", Kind::Int),
        ("attempts", Kind::Int),
        ("buried", Kind::Time),
        ("accepted", Kind::Time),
        ("reason", Kind::Text),
        ("event", Kind::Text),
    ],
    indexes: &[],
};

/// All of them.
pub(crate) static TABLES: &[&Table] = &[&TOPIC, &EVENT, &GROUP, &OPEN, &DEAD];

/// Longest reason that is kept, in bytes.
const MAX_REASON: usize = 2000;

/// An event as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) event: Event,
    pub(crate) accepted: Timestamp,
    pub(crate) bytes: usize,
}

impl Stored {
    pub(crate) fn read(row: &Row) -> Result<(i64, Self), StoreError> {
        let event = parse(row[3].text(), row[1].int())?;
        Ok((row[1].int(), Self { event, accepted: Timestamp(row[2].int()), bytes: row[3].text().len() }))
    }
}

pub(crate) fn put_topic(spec: &TopicSpec) -> Op {
    Op::Put(&TOPIC, row![spec.name.as_str(), spec.keep.as_millis().min(i64::MAX as u128) as i64])
}

pub(crate) fn topic(row: &Row) -> Result<TopicSpec, StoreError> {
    let keep = Duration::from_millis(u64::try_from(row[1].int()).unwrap_or(0));
    Ok(TopicSpec { name: name(row[0].text())?, keep })
}

pub(crate) fn put_event(topic: &TopicName, place: i64, accepted: Timestamp, event: &str) -> Op {
    Op::Put(&EVENT, row![topic.as_str(), place, accepted.millis(), event])
}

pub(crate) fn delete_event(topic: &TopicName, place: i64) -> Op {
    Op::Delete(&EVENT, row![topic.as_str(), place])
}

/// What a group wants written.
pub(crate) fn op(topic: &TopicName, group: &GroupName, write: Write, now: Timestamp) -> Op {
    let (topic, group) = (topic.as_str(), group.as_str());
    match write {
        Write::Waits { offset, attempts, delay } => {
            Op::Put(&OPEN, row![topic, group, offset, 0, i64::from(attempts), now.plus(delay).millis()])
        }
        Write::Settled(offset) => Op::Put(&OPEN, row![topic, group, offset, 1, 0, 0]),
        Write::Forget(offset) => Op::Delete(&OPEN, row![topic, group, offset]),
        Write::Marks { cursor, passed } => Op::Put(&GROUP, row![topic, group, cursor, passed]),
    }
}

pub(crate) fn put_dead(
    topic: &TopicName,
    group: &GroupName,
    offset: i64,
    attempts: u32,
    stored: &Stored,
    reason: &str,
    now: Timestamp,
) -> Op {
    let mut reason = reason.replace('\0', " ");
    let end = (0..=MAX_REASON.min(reason.len())).rev().find(|i| reason.is_char_boundary(*i)).unwrap_or(0);
    reason.truncate(end);
    let event = stored.event.to_json().to_string();
    let (buried, accepted) = (now.millis(), stored.accepted.millis());
    Op::Put(&DEAD, row![topic.as_str(), group.as_str(), offset, i64::from(attempts), buried, accepted, reason, event])
}

pub(crate) fn delete_dead(topic: &TopicName, group: &GroupName, offset: i64) -> Op {
    Op::Delete(&DEAD, row![topic.as_str(), group.as_str(), offset])
}

pub(crate) fn dead(row: &Row) -> Result<DeadLetter, StoreError> {
    Ok(DeadLetter {
        event: parse(row[7].text(), row[2].int())?,
        offset: Offset(row[2].int()),
        attempts: u32::try_from(row[3].int()).unwrap_or(u32::MAX),
        reason: row[6].text().to_owned(),
        at: Timestamp(row[4].int()),
    })
}

/// A name that was checked before it was written.
pub(crate) fn name<T: std::str::FromStr<Err = ballet_core::NameError>>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|e: ballet_core::NameError| StoreError::Shape(e.to_string()))
}

fn parse(text: &str, place: i64) -> Result<Event, StoreError> {
    let unreadable = |why: String| StoreError::Shape(format!("the event at {place} cannot be read: {why}"));
    let json: Json = serde_json::from_str(text).map_err(|e| unreadable(e.to_string()))?;
    Event::from_json(&json).map_err(|e| unreadable(e.to_string()))
}
