//! Recovery: what the tables say becomes the engine's state. Also the reading of single events.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::time::Duration;

use tokio::time::Instant;

use ballet_core::{GroupName, Timestamp, TopicName};
use ballet_store::{Filter, Journal, Query, Row, StoreError};

use super::group::Group;
use super::rows::{self, DEAD, EVENT, GROUP, OPEN, Stored, TOPIC};
use super::topic::Topic;

/// Longest delay of an event; a due time further away was written by a clock that was wrong.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reads everything but the events.
pub(crate) async fn state(journal: &dyn Journal, now: Timestamp) -> Result<BTreeMap<TopicName, Topic>, StoreError> {
    let mut topics = BTreeMap::new();
    for row in all(journal, Query::of(&TOPIC)).await? {
        let spec = rows::topic(&row)?;
        let place = async |query: Query| {
            let page = journal.scan(query.limit(1)).await?;
            Ok::<_, StoreError>(page.rows.first().map(|row| row[1].int()))
        };
        let of = || Query::of(&EVENT).eq(0, spec.name.as_str());
        let (first, last) = (place(of()).await?, place(of().down()).await?);
        let next = last.map_or(1, |last| last + 1);
        topics.insert(spec.name, Topic::new(spec.keep, first.unwrap_or(next), next));
    }
    let mut groups: BTreeMap<(TopicName, GroupName), Group> = BTreeMap::new();
    for row in all(journal, Query::of(&GROUP)).await? {
        groups.insert(owner(&row)?, Group::load(row[2].int(), row[3].int()));
    }
    for row in all(journal, Query::of(&OPEN)).await? {
        let Some(group) = groups.get_mut(&owner(&row)?) else { continue };
        if row[3].int() == 1 {
            group.load_settled(row[2].int());
            continue;
        }
        let left = Timestamp(row[5].int()).since(now).min(MAX_DELAY);
        group.load_waiting(row[2].int(), u32::try_from(row[4].int()).unwrap_or(u32::MAX), Instant::now() + left);
    }
    // Pages are small because dead letters carry their events.
    for row in all(journal, Query::of(&DEAD).limit(50)).await? {
        if let Some(group) = groups.get_mut(&owner(&row)?) {
            group.load_dead(row[2].int());
        }
    }
    for ((topic, name), group) in groups {
        if let Some(topic) = topics.get_mut(&topic) {
            topic.groups.insert(name, group);
        }
    }
    Ok(topics)
}

/// Reads events by their places; those that are not there are left out.
pub(crate) async fn events(
    journal: &dyn Journal,
    topic: &TopicName,
    places: &[i64],
) -> Result<Vec<(i64, Stored)>, StoreError> {
    let query = Query::of(&EVENT).eq(0, topic.as_str()).limit(places.len());
    let consecutive = places.windows(2).all(|w| w[0] + 1 == w[1]);
    let filter = match (places.first(), places.last()) {
        (Some(first), Some(last)) if consecutive => {
            Filter::Range(1, Bound::Included((*first).into()), Bound::Included((*last).into()))
        }
        _ => Filter::In(1, places.iter().map(|place| (*place).into()).collect()),
    };
    journal.scan(query.filter(filter)).await?.rows.iter().map(Stored::read).collect()
}

/// Which of these places hold events that were accepted before a time: the first of them, at most 100.
pub(crate) async fn expired(
    journal: &dyn Journal,
    topic: &TopicName,
    places: Range<i64>,
    before: Timestamp,
) -> Result<Vec<i64>, StoreError> {
    let query = Query::of(&EVENT).eq(0, topic.as_str()).filter(Filter::Range(
        1,
        Bound::Included(places.start.into()),
        Bound::Excluded(places.end.into()),
    ));
    let old = |row: &&Row| row[2].int() < before.millis();
    // Most of the time nothing has expired: one row says so.
    if !journal.scan(query.clone().limit(1)).await?.rows.iter().any(|row| old(&row)) {
        return Ok(vec![]);
    }
    let page = journal.scan(query.limit(100)).await?;
    Ok(page.rows.iter().take_while(old).map(|row| row[1].int()).collect())
}

/// The place of the first event that was accepted at or after a time.
pub(crate) async fn at(journal: &dyn Journal, topic: &TopicName, time: Timestamp) -> Result<Option<i64>, StoreError> {
    let since = Filter::Range(2, Bound::Included(time.millis().into()), Bound::Unbounded);
    let page = journal.scan(Query::of(&EVENT).eq(0, topic.as_str()).filter(since).limit(1)).await?;
    Ok(page.rows.first().map(|row| row[1].int()))
}

async fn all(journal: &dyn Journal, mut query: Query) -> Result<Vec<Row>, StoreError> {
    let mut rows = vec![];
    loop {
        let page = journal.scan(query.clone()).await?;
        rows.extend(page.rows);
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(rows),
        }
    }
}

fn owner(row: &Row) -> Result<(TopicName, GroupName), StoreError> {
    Ok((rows::name(row[0].text())?, rows::name(row[1].text())?))
}
