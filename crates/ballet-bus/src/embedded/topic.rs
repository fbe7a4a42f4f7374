//! A topic: its places, the newest events in memory, its groups. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use ballet_core::{GroupName, Timestamp};

use super::group::{Body, Group, Taken, Want, Write};
use super::rows::Stored;

/// Bytes of events that each topic keeps in memory, the newest first. Older ones are read from disk when they are asked for.
pub(crate) const CACHE_BYTES: usize = 4 << 20;
/// Bytes of events that one take hands out; the rest comes with the next.
pub(crate) const MAX_TAKE_BYTES: usize = 8 << 20;

/// A topic.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) keep: Duration,
    /// The lowest place that may still have an event.
    pub(crate) first: i64,
    /// The next place to give.
    pub(crate) next: i64,
    /// Places below are on disk and may be handed out.
    pub(crate) end: i64,
    pub(crate) groups: BTreeMap<GroupName, Group>,
    cache: BTreeMap<i64, Option<Arc<Stored>>>,
    cached_bytes: usize,
}

/// What a take hands out.
pub(crate) enum Found {
    /// Places, attempts, events.
    Events(Vec<(i64, u32, Arc<Stored>)>),
    /// Load these first.
    Load(Vec<i64>),
}

impl Topic {
    /// A topic whose events lie between two places.
    pub(crate) fn new(keep: Duration, first: i64, next: i64) -> Self {
        Self { keep, first, next, end: next, groups: BTreeMap::new(), cache: BTreeMap::new(), cached_bytes: 0 }
    }

    /// Gives an event its place. It can be taken once [`Topic::committed`] says that it is on disk.
    pub(crate) fn append(&mut self, stored: Stored) -> i64 {
        let place = self.next;
        self.next += 1;
        self.remember(place, Some(Arc::new(stored)));
        place
    }

    /// Everything that was appended is on disk up to this place.
    pub(crate) fn committed(&mut self, end: i64) {
        self.end = self.end.max(end);
        self.trim();
    }

    /// Takes in what was loaded: places that were asked for and have no event are gone.
    pub(crate) fn loaded(&mut self, asked: &[i64], rows: Vec<(i64, Stored)>) {
        for place in asked {
            self.remember(*place, None);
        }
        for (place, stored) in rows {
            self.remember(place, Some(Arc::new(stored)));
        }
    }

    /// An event that is in memory; `None` within if it is gone.
    pub(crate) fn stored(&self, place: i64) -> Option<Option<Arc<Stored>>> {
        self.cache.get(&place).cloned()
    }

    /// Hands out what is due to a group.
    pub(crate) fn take(
        &mut self,
        group: &GroupName,
        want: Want,
        now: Instant,
        writes: &mut Vec<Write>,
    ) -> Option<Found> {
        let (cache, first) = (&self.cache, self.first);
        let body = |place: i64| match cache.get(&place) {
            Some(Some(stored)) => Body::Here(&stored.event),
            Some(None) => Body::Gone,
            None if place < first => Body::Gone,
            None => Body::Unknown,
        };
        let group = self.groups.get_mut(group)?;
        let places = match group.take(now, want, self.end, body, writes) {
            Taken::Events(places) => places,
            Taken::Load(places) => return Some(Found::Load(places)),
        };
        let (mut events, mut bytes) = (vec![], 0);
        for (place, attempt) in places {
            let stored = self.cache.get(&place).and_then(Option::clone).expect("it was handed out because it is here");
            bytes += stored.bytes;
            if bytes > MAX_TAKE_BYTES && !events.is_empty() {
                group.take_back(place);
                continue;
            }
            events.push((place, attempt, stored));
        }
        self.trim();
        Some(Found::Events(events))
    }

    /// Everything below this place is settled by all groups.
    pub(crate) fn floor(&self) -> i64 {
        let settled = self.groups.values().map(Group::floor).min().unwrap_or(i64::MAX);
        // The newest event stays whatever its age: its place says which is the next one.
        settled.min(self.end - 1)
    }

    /// Forgets events that were deleted.
    pub(crate) fn deleted(&mut self, places: &[i64]) {
        for place in places {
            self.forget(*place);
            self.first = self.first.max(place + 1);
        }
    }

    /// When something of a group becomes due by itself.
    pub(crate) fn next_due(&self, group: &GroupName) -> Option<Instant> {
        self.groups.get(group).and_then(Group::next_due)
    }

    /// What the cache knows of an event's time of acceptance.
    pub(crate) fn accepted(&self, place: i64) -> Option<Timestamp> {
        self.cache.get(&place).and_then(Option::as_ref).map(|stored| stored.accepted)
    }

    fn remember(&mut self, place: i64, stored: Option<Arc<Stored>>) {
        self.forget(place);
        self.cached_bytes += weight(stored.as_ref());
        self.cache.insert(place, stored);
    }

    fn forget(&mut self, place: i64) {
        if let Some(old) = self.cache.remove(&place) {
            self.cached_bytes -= weight(old.as_ref());
        }
    }

    /// Drops the oldest events above the limit; never one that is not on disk yet.
    fn trim(&mut self) {
        while self.cached_bytes > CACHE_BYTES {
            let Some(place) = self.cache.keys().next().copied().filter(|place| *place < self.end) else { return };
            self.forget(place);
        }
    }
}

fn weight(stored: Option<&Arc<Stored>>) -> usize {
    // The struct, the tree's entry and a parsed JSON value weigh several times the text.
    64 + stored.map_or(0, |s| 256 + 3 * s.bytes)
}
