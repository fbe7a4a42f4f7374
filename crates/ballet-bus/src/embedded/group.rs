//! A consumer group: which events wait, are handed out, or are settled. Pure: it is told the time, and it says what to
//! write.
//!
//! Events below `fresh` were looked at; those of them that are not settled have an [`Entry`]. On disk stands one row for
//! the group (`cursor`: everything below is settled, `passed`: everything below was looked at) and one row for each
//! exception: an event that waits for another attempt, or one at or above the cursor that was settled before its elders.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

use ballet_core::Event;
use ballet_resilience::Backoff;

/// Events that a group may have handed out at a time. At the limit nothing more is handed out.
pub(crate) const MAX_IN_FLIGHT: usize = 10_000;
/// Events that may wait behind an elder with their ordering key; at the limit, the group waits for the elders.
pub(crate) const MAX_HELD: usize = 4_096;
/// Events that may be settled before an elder; at the limit, the group waits for the elder.
pub(crate) const MAX_SETTLED_EARLY: usize = 65_536;

/// First and longest rest of an event that is put off.
const PUT_OFF: Backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(10));

/// A consumer group.
#[derive(Debug)]
pub(crate) struct Group {
    cursor: i64,
    fresh: i64,
    /// Everything below was looked at by an earlier process: perhaps handed out, so that an attempt is counted.
    passed: i64,
    entries: BTreeMap<i64, Entry>,
    ready: BTreeSet<i64>,
    later: BTreeSet<(Instant, i64)>,
    leases: BTreeSet<(Instant, i64)>,
    held: usize,
    /// Settled before an elder.
    settled: BTreeSet<i64>,
    /// Entries without a row of their own: the cursor cannot pass the first.
    rowless: BTreeSet<i64>,
    /// Entries by ordering key; only the first may be handed out in order.
    lines: HashMap<u64, BTreeSet<i64>>,
    /// Entries whose ordering key is not known yet.
    keyless: BTreeSet<i64>,
    dead: BTreeSet<i64>,
}

/// An event that is not settled.
#[derive(Debug)]
struct Entry {
    /// Attempts that were handed out, the one under way included.
    attempts: u32,
    /// How often it was put off.
    put_off: u32,
    /// Whether a row on disk says so.
    row: bool,
    key: Key,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// An elder with its key is not settled.
    Held,
    Later(Instant),
    Out(Instant),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// It was loaded from a row, which does not hold the key.
    Unknown,
    None,
    Is(u64),
}

/// What is to be written for the group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// The event waits for another attempt: attempts so far, due after the delay.
    Waits { offset: i64, attempts: u32, delay: Duration },
    /// The event was settled before an elder.
    Settled(i64),
    /// There is nothing to say about the event any more.
    Forget(i64),
    /// The group's own row.
    Marks { cursor: i64, passed: i64 },
}

/// An event's body as far as it is known.
pub(crate) enum Body<'a> {
    /// In memory.
    Here(&'a Event),
    /// It is not on disk (any more): its publish failed, or its time is over.
    Gone,
    /// It has to be loaded.
    Unknown,
}

/// How a take went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// These are the taker's: places and attempts.
    Events(Vec<(i64, u32)>),
    /// Load these first.
    Load(Vec<i64>),
}

/// What a take wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) max: usize,
    pub(crate) lease: Duration,
    /// One event of each ordering key at a time.
    pub(crate) ordered: bool,
}

impl Group {
    /// A group that begins at a place.
    pub(crate) fn at(place: i64) -> Self {
        Self::load(place, place)
    }

    /// A group as its row says; [`Group::load_waiting`] and the others add the exceptions.
    pub(crate) fn load(cursor: i64, passed: i64) -> Self {
        Self {
            cursor,
            fresh: cursor,
            passed,
            entries: BTreeMap::new(),
            ready: BTreeSet::new(),
            later: BTreeSet::new(),
            leases: BTreeSet::new(),
            held: 0,
            settled: BTreeSet::new(),
            rowless: BTreeSet::new(),
            lines: HashMap::new(),
            keyless: BTreeSet::new(),
            dead: BTreeSet::new(),
        }
    }

    /// Adds an event that waits for another attempt.
    pub(crate) fn load_waiting(&mut self, offset: i64, attempts: u32, due: Instant) {
        self.enter(offset, Entry { attempts, put_off: 0, row: true, key: Key::Unknown, state: State::Later(due) });
    }

    /// Adds an event that was settled before an elder.
    pub(crate) fn load_settled(&mut self, offset: i64) {
        self.settled.insert(offset);
    }

    /// Adds a dead letter.
    pub(crate) fn load_dead(&mut self, offset: i64) {
        self.dead.insert(offset);
    }

    /// Hands out what is due, given which places are on disk (below `end`) and the bodies.
    pub(crate) fn take<'b>(
        &mut self,
        now: Instant,
        want: Want,
        end: i64,
        body: impl Fn(i64) -> Body<'b>,
        writes: &mut Vec<Write>,
    ) -> Taken {
        /// Bodies to load at once.
        const LOAD: usize = 256;
        self.mature(now);
        let max = want.max.min(MAX_IN_FLIGHT.saturating_sub(self.leases.len()));
        let (mut taken, mut load) = (vec![], vec![]);
        if max == 0 {
            return Taken::Events(taken);
        }
        if want.ordered {
            // Loaded exceptions must know their keys before anybody can be said to be the eldest.
            load = self.learn_keys(&body, LOAD);
            if !load.is_empty() {
                return Taken::Load(load);
            }
        } else if self.held > 0 {
            self.release_all();
        }
        let mut from = i64::MIN;
        while let Some(offset) = self.ready.range(from..).next().copied() {
            from = offset + 1;
            if taken.len() == max {
                break;
            }
            match body(offset) {
                Body::Here(event) => {
                    self.learn_key(offset, event);
                    if want.ordered && !self.eldest(offset) {
                        self.move_to(offset, State::Held);
                    } else {
                        taken.push((offset, self.hand_out(offset, now + want.lease)));
                    }
                }
                Body::Gone => self.settle(offset, writes),
                Body::Unknown if load.len() < LOAD => load.push(offset),
                Body::Unknown => {}
            }
        }
        while taken.len() < max && load.is_empty() && self.fresh < end {
            if self.held >= MAX_HELD || self.settled.len() >= MAX_SETTLED_EARLY {
                break;
            }
            let offset = self.fresh;
            if self.settled.contains(&offset) || self.entries.contains_key(&offset) {
                self.fresh += 1;
                continue;
            }
            match body(offset) {
                Body::Here(event) => {
                    self.fresh += 1;
                    let attempts = u32::from(offset < self.passed);
                    self.enter(
                        offset,
                        Entry { attempts, put_off: 0, row: false, key: Key::Unknown, state: State::Held },
                    );
                    self.rowless.insert(offset);
                    self.learn_key(offset, event);
                    if !want.ordered || self.eldest(offset) {
                        taken.push((offset, self.hand_out(offset, now + want.lease)));
                    }
                }
                Body::Gone => self.fresh += 1,
                Body::Unknown => load.extend(offset..end.min(offset + LOAD as i64)),
            }
        }
        if taken.is_empty() && !load.is_empty() {
            // What comes next is loaded along, so that one take can have both.
            load.extend(self.fresh..end.min(self.fresh + LOAD as i64));
            load.sort_unstable();
            load.dedup();
            return Taken::Load(load);
        }
        taken.sort_unstable();
        Taken::Events(taken)
    }

    /// Whether exactly this attempt is under way.
    pub(crate) fn under_way(&self, offset: i64, attempt: u32) -> bool {
        let entry = self.entries.get(&offset);
        entry.is_some_and(|e| e.attempts == attempt && matches!(e.state, State::Out(_)))
    }

    /// Settles an event for good.
    pub(crate) fn settle(&mut self, offset: i64, writes: &mut Vec<Write>) {
        let Some(entry) = self.remove(offset) else { return };
        self.rowless.remove(&offset);
        let cursor = self.rowless.first().copied().unwrap_or(self.fresh);
        if offset >= cursor {
            self.settled.insert(offset);
            writes.push(Write::Settled(offset));
        } else if entry.row {
            writes.push(Write::Forget(offset));
        }
        self.advance(cursor, writes);
    }

    /// Makes an event due again after a delay.
    pub(crate) fn give_back(&mut self, offset: i64, now: Instant, delay: Duration, writes: &mut Vec<Write>) {
        let Some(entry) = self.entries.get_mut(&offset) else { return };
        (entry.row, entry.put_off) = (true, 0);
        writes.push(Write::Waits { offset, attempts: entry.attempts, delay });
        let state = if delay.is_zero() { State::Ready } else { State::Later(now + delay) };
        self.move_to(offset, state);
        self.rowless.remove(&offset);
        let cursor = self.rowless.first().copied().unwrap_or(self.fresh);
        self.advance(cursor, writes);
    }

    /// Takes a hand-out back as if it had not been: the attempt does not count, and nothing is written.
    pub(crate) fn take_back(&mut self, offset: i64) {
        if let Some(entry) = self.entries.get_mut(&offset) {
            entry.attempts = entry.attempts.saturating_sub(1);
            self.move_to(offset, State::Ready);
        }
    }

    /// Takes a hand-out back because the target was out of reach. The attempt does not count and nothing is written, but
    /// others go first: a target that is never ready for this one event must not keep it from the rest.
    pub(crate) fn put_off(&mut self, offset: i64, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&offset) {
            entry.attempts = entry.attempts.saturating_sub(1);
            entry.put_off += 1;
            let rest = PUT_OFF.cap(entry.put_off);
            self.move_to(offset, State::Later(now + rest));
        }
    }

    /// The target is back: whatever was put off is due.
    pub(crate) fn resume(&mut self) {
        let later: Vec<i64> = self.later.iter().map(|(_, offset)| *offset).collect();
        for offset in later {
            if self.entries.get_mut(&offset).is_some_and(|entry| std::mem::take(&mut entry.put_off) > 0) {
                self.move_to(offset, State::Ready);
            }
        }
    }

    /// Notes a dead letter.
    pub(crate) fn bury(&mut self, offset: i64, writes: &mut Vec<Write>) {
        self.settle(offset, writes);
        self.dead.insert(offset);
    }

    /// Makes a dead letter due again, as attempt 1; false if it is none.
    pub(crate) fn replay(&mut self, offset: i64, writes: &mut Vec<Write>) -> bool {
        if !self.dead.remove(&offset) {
            return false;
        }
        let settled = self.settled.remove(&offset);
        if self.entries.contains_key(&offset) {
            // After a seek it may be under way by itself; once is enough.
        } else if offset < self.fresh {
            self.enter(offset, Entry { attempts: 0, put_off: 0, row: true, key: Key::Unknown, state: State::Ready });
            writes.push(Write::Waits { offset, attempts: 0, delay: Duration::ZERO });
        } else if settled {
            writes.push(Write::Forget(offset));
        }
        true
    }

    /// Moves the group: everything from there on comes again, everything before is settled.
    pub(crate) fn seek(&mut self, to: i64, writes: &mut Vec<Write>) {
        let rows = self.entries.iter().filter(|(_, e)| e.row).map(|(offset, _)| *offset);
        writes.extend(rows.chain(self.settled.iter().copied()).map(Write::Forget));
        writes.push(Write::Marks { cursor: to, passed: to });
        *self = Self { dead: std::mem::take(&mut self.dead), ..Self::at(to) };
    }

    /// The group's row as it stands.
    pub(crate) fn marks(&self) -> Write {
        Write::Marks { cursor: self.cursor, passed: self.fresh.max(self.passed) }
    }

    /// When something becomes due by itself.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let first = |set: &BTreeSet<(Instant, i64)>| set.first().map(|(at, _)| *at);
        match (first(&self.later), first(&self.leases)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Everything below is settled, exceptions included.
    pub(crate) fn floor(&self) -> i64 {
        let first = self.entries.first_key_value().map_or(i64::MAX, |(offset, _)| *offset);
        first.min(self.cursor).min(self.fresh)
    }

    /// Events that wait, that are handed out, and dead letters.
    pub(crate) fn counts(&self, now: Instant, end: i64) -> (u64, u64, u64) {
        let out = self.leases.range((now, i64::MAX)..).count();
        let ahead = self.settled.range(self.fresh..).count() + self.entries.range(self.fresh..).count();
        let fresh = usize::try_from(end - self.fresh).unwrap_or(0).saturating_sub(ahead);
        ((fresh + self.entries.len() - out) as u64, out as u64, self.dead.len() as u64)
    }

    /// Whether a dead letter stands at this place.
    pub(crate) fn is_dead(&self, offset: i64) -> bool {
        self.dead.contains(&offset)
    }

    fn enter(&mut self, offset: i64, entry: Entry) {
        self.index(offset, entry.state, true);
        self.keyless.insert(offset);
        self.entries.insert(offset, entry);
    }

    fn mature(&mut self, now: Instant) {
        while let Some((_, offset)) = self.later.first().copied().filter(|(at, _)| *at <= now) {
            self.move_to(offset, State::Ready);
        }
        while let Some((_, offset)) = self.leases.first().copied().filter(|(at, _)| *at <= now) {
            self.move_to(offset, State::Ready);
        }
    }

    /// Sets an entry's state and the sets that follow from it.
    fn move_to(&mut self, offset: i64, state: State) {
        let Some(entry) = self.entries.get_mut(&offset) else { return };
        let old = std::mem::replace(&mut entry.state, state);
        self.index(offset, old, false);
        self.index(offset, state, true);
    }

    fn index(&mut self, offset: i64, state: State, there: bool) {
        match (state, there) {
            (State::Ready, true) => drop(self.ready.insert(offset)),
            (State::Ready, false) => drop(self.ready.remove(&offset)),
            (State::Held, true) => self.held += 1,
            (State::Held, false) => self.held -= 1,
            (State::Later(at), true) => drop(self.later.insert((at, offset))),
            (State::Later(at), false) => drop(self.later.remove(&(at, offset))),
            (State::Out(until), true) => drop(self.leases.insert((until, offset))),
            (State::Out(until), false) => drop(self.leases.remove(&(until, offset))),
        }
    }

    fn hand_out(&mut self, offset: i64, until: Instant) -> u32 {
        self.move_to(offset, State::Out(until));
        let entry = self.entries.get_mut(&offset).expect("only entries are handed out");
        entry.attempts += 1;
        entry.attempts
    }

    fn remove(&mut self, offset: i64) -> Option<Entry> {
        let entry = self.entries.remove(&offset)?;
        self.keyless.remove(&offset);
        self.index(offset, entry.state, false);
        if let Key::Is(key) = entry.key
            && let Some(line) = self.lines.get_mut(&key)
        {
            line.remove(&offset);
            match line.first().copied() {
                None => drop(self.lines.remove(&key)),
                Some(next) if self.entries.get(&next).is_some_and(|e| e.state == State::Held) => {
                    self.move_to(next, State::Ready);
                }
                Some(_) => {}
            }
        }
        Some(entry)
    }

    fn advance(&mut self, cursor: i64, writes: &mut Vec<Write>) {
        if cursor <= self.cursor {
            return;
        }
        self.cursor = cursor;
        let above = self.settled.split_off(&cursor);
        let below = std::mem::replace(&mut self.settled, above);
        writes.extend(below.into_iter().map(Write::Forget));
        writes.push(self.marks());
    }

    fn eldest(&self, offset: i64) -> bool {
        match self.entries.get(&offset).map(|e| e.key) {
            Some(Key::Is(key)) => self.lines.get(&key).is_none_or(|line| line.first() == Some(&offset)),
            Some(Key::None | Key::Unknown) | None => true,
        }
    }

    fn learn_key(&mut self, offset: i64, event: &Event) {
        if !self.keyless.remove(&offset) {
            return;
        }
        let Some(entry) = self.entries.get_mut(&offset) else { return };
        entry.key = event.key().map_or(Key::None, |key| {
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            Key::Is(hasher.finish())
        });
        if let Key::Is(key) = entry.key {
            self.lines.entry(key).or_default().insert(offset);
        }
    }

    /// Reads the keys of loaded exceptions; answers what must be loaded for that.
    fn learn_keys<'b>(&mut self, body: impl Fn(i64) -> Body<'b>, most: usize) -> Vec<i64> {
        let keyless: Vec<i64> = self.keyless.iter().copied().collect();
        let mut load = vec![];
        for offset in keyless {
            match body(offset) {
                Body::Here(event) => self.learn_key(offset, event),
                // It holds nobody up and is settled when its turn comes.
                Body::Gone => drop(self.keyless.remove(&offset)),
                Body::Unknown if load.len() < most => load.push(offset),
                Body::Unknown => {}
            }
        }
        load
    }

    fn release_all(&mut self) {
        let held: Vec<i64> = self.entries.iter().filter(|(_, e)| e.state == State::Held).map(|(o, _)| *o).collect();
        for offset in held {
            self.move_to(offset, State::Ready);
        }
    }
}
