//! The engine's task: it alone owns the topics, and it answers only what is on disk.
//!
//! ```text
//! Embedded ──queue of asks──> engine ──one batch at a time──> Journal
//!                               │  └── loads (a task each) ──> Journal, back as `Loaded`
//!                               └──> answers, once the batch is on disk
//! ```
//!
//! While a batch is on its way, further asks change the state and gather in the next one: so many publishes and acks share
//! a sync. What nobody waits for (acks of pushed events, deletions) goes along with the next batch that somebody waits for,
//! or alone after [`LAZY`]: a crash before then hands those events out again, as at-least-once allows. When a batch fails, everybody who waits hears that nothing was written, and the state is read from disk anew:
//! leases are lost then, and what was handed out comes again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};

use ballet_core::{Clock, Event, GroupName, Offset, Receipt, TopicName};
use ballet_store::{
    Answer, Batch, DeadLetter, Fence, GroupState, Handed, Journal, Op, Position, Query, Reply, StoreError, TopicSpec,
};

use super::group::{Group, Want, Write};
use super::load::{self, MAX_DELAY};
use super::rows::{self, Stored};
use super::topic::{Found, Topic};

/// Asks that may wait for the engine; more are refused with `Failed`.
pub(crate) const MAX_ASKS: usize = 8_192;
/// Rows in one batch after which asks wait until the batch before it is on disk.
const MAX_BATCH_ROWS: usize = 8_192;
/// Topics that may be declared.
pub(crate) const MAX_TOPICS: usize = 10_000;
/// Groups that a topic may have.
pub(crate) const MAX_GROUPS: usize = 1_000;
/// Takes of one group that may wait for an event.
pub(crate) const MAX_PARKED: usize = 1_000;
/// How long changes that nobody waits for may gather.
pub(crate) const LAZY: Duration = Duration::from_millis(200);
/// How often events are looked for whose time is over.
const RETENTION_EVERY: Duration = Duration::from_secs(60);
/// Rest before the state is read again after the disk refused.
const RELOAD_EVERY: Duration = Duration::from_millis(500);

/// A request to the engine.
pub(crate) enum Ask {
    Declare(TopicSpec, Answer<()>),
    Join(TopicName, GroupName, Position, Answer<()>),
    Publish(Vec<(TopicName, Event)>, Answer<Vec<Offset>>),
    Take(Take),
    Ack(Vec<Receipt>, Answer<()>),
    /// Answered at once, on disk within [`LAZY`].
    AckLazily(Vec<Receipt>, Answer<()>),
    Nack(Receipt, Duration, Answer<()>),
    /// The attempt does not count, and nothing is written. `true`: it is due again only after a while.
    Return(Receipt, bool),
    Resume(TopicName, GroupName),
    Bury(Receipt, String, Answer<()>),
    Dead(TopicName, GroupName, Offset, usize, Answer<Vec<DeadLetter>>),
    Replay(TopicName, GroupName, Offset, Answer<()>),
    Seek(TopicName, GroupName, Position, Answer<()>),
    Groups(TopicName, Answer<Vec<GroupState>>),
    Close(Answer<()>),
}

/// A wish for events that may wait.
pub(crate) struct Take {
    pub(crate) topic: TopicName,
    pub(crate) group: GroupName,
    pub(crate) want: Want,
    pub(crate) until: Instant,
    pub(crate) answer: Answer<Vec<Handed>>,
}

/// What a load was for and what it found.
enum Loaded {
    /// Bodies that a take or a burial needs.
    Bodies(TopicName, Vec<i64>, Result<Vec<(i64, Stored)>, StoreError>),
    Dead(TopicName, GroupName, Offset, Result<Option<Letter>, StoreError>, Answer<()>),
    /// Where a time lies, for an ask that waits for it.
    Place(Ask, Result<Option<i64>, StoreError>),
    Expired(TopicName, Vec<i64>),
}

/// A dead letter's event, and its text as it was kept.
type Letter = Box<(Stored, String)>;
type Told = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

pub(crate) struct Engine {
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    fence: Fence,
    topics: BTreeMap<TopicName, Topic>,
    asks: mpsc::Receiver<Ask>,
    /// The batch that gathers, and who waits for it.
    ops: Vec<Op>,
    told: Vec<Told>,
    /// Groups whose row is to be written with it, once, whatever happened to them.
    marks: BTreeSet<(TopicName, GroupName)>,
    appended: BTreeMap<TopicName, i64>,
    /// When it goes even if nobody waits for it.
    send_by: Option<Instant>,
    /// The batch on its way.
    under_way: Option<UnderWay>,
    parked: BTreeMap<TopicName, BTreeMap<GroupName, VecDeque<Take>>>,
    /// Topics whose parked takes may have become possible.
    stirred: BTreeSet<TopicName>,
    loads: JoinSet<Loaded>,
    loading: BTreeSet<TopicName>,
    /// Burials that wait for a body.
    blocked: Vec<Ask>,
    closing: Option<Answer<()>>,
    /// Why everything is refused: somebody else owns the tables by now.
    ousted: Option<StoreError>,
}

struct UnderWay {
    reply: Reply<()>,
    told: Vec<Told>,
    ends: BTreeMap<TopicName, i64>,
}

impl Engine {
    pub(crate) fn new(
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
        fence: Fence,
        topics: BTreeMap<TopicName, Topic>,
        asks: mpsc::Receiver<Ask>,
    ) -> Self {
        Self {
            journal,
            clock,
            fence,
            topics,
            asks,
            ops: vec![],
            told: vec![],
            marks: BTreeSet::new(),
            appended: BTreeMap::new(),
            send_by: None,
            under_way: None,
            parked: BTreeMap::new(),
            stirred: BTreeSet::new(),
            loads: JoinSet::new(),
            loading: BTreeSet::new(),
            blocked: vec![],
            closing: None,
            ousted: None,
        }
    }

    /// Serves asks until all handles are gone or one of them closes the engine.
    pub(crate) async fn run(mut self) {
        let mut retention = tokio::time::interval(RETENTION_EVERY);
        retention.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.serve();
            self.send();
            if self.under_way.is_none()
                && let Some(answer) = self.closing.take()
            {
                let _ = answer.send(Ok(()));
                return;
            }
            let open = self.closing.is_none() && self.ops.len() < MAX_BATCH_ROWS;
            let (wake, send_by) = (self.wake(), self.send_by);
            tokio::select! {
                ask = self.asks.recv(), if open => match ask {
                    Some(ask) => self.handle_all(ask),
                    None => self.closing = Some(Reply::new().0),
                },
                written = written(&mut self.under_way) => self.written(written).await,
                Some(Ok(loaded)) = self.loads.join_next() => self.loaded(loaded),
                () = until(send_by), if self.under_way.is_none() => {}
                () = until(wake) => self.stirred.extend(self.parked.keys().cloned()),
                _ = retention.tick() => {
                    let topics: Vec<_> = self.topics.keys().cloned().collect();
                    topics.iter().for_each(|topic| self.expire(topic));
                }
            }
        }
    }

    fn handle_all(&mut self, first: Ask) {
        let mut next = Some(first);
        while let Some(ask) = next {
            self.handle(ask);
            next = if self.ops.len() < MAX_BATCH_ROWS { self.asks.try_recv().ok() } else { None };
        }
    }

    fn handle(&mut self, ask: Ask) {
        if let Some(error) = &self.ousted {
            return ask.refuse(error.clone());
        }
        match ask {
            Ask::Declare(spec, answer) => {
                let done = self.declare(spec);
                self.tell(done, answer);
            }
            Ask::Join(topic, group, Position::Time(time), answer) => {
                self.find(topic.clone(), time, Ask::Join(topic, group, Position::End, answer));
            }
            Ask::Join(topic, group, from, answer) => {
                let done = self.join(&topic, &group, from);
                self.tell(done, answer);
            }
            Ask::Publish(events, answer) => {
                let done = self.publish(events);
                self.tell(done, answer);
            }
            Ask::Take(take) => self.park(take),
            Ask::Ack(receipts, answer) => {
                let done = self.ack(&receipts);
                self.tell(done, answer);
            }
            Ask::AckLazily(receipts, answer) => {
                let _ = answer.send(self.ack(&receipts));
            }
            Ask::Nack(receipt, delay, answer) => {
                let now = Instant::now();
                let back = |group: &mut Group, writes: &mut Vec<Write>| {
                    group.give_back(receipt.offset.0, now, delay.min(MAX_DELAY), writes);
                };
                let done = self.settle(&receipt, back);
                self.tell(done, answer);
            }
            Ask::Return(receipt, tried) => {
                let (place, now) = (receipt.offset.0, Instant::now());
                let back = |group: &mut Group, _: &mut Vec<Write>| match tried {
                    true => group.put_off(place, now),
                    false => group.take_back(place),
                };
                // Whoever gives back what is not his any more changes nothing.
                let _ = self.settle(&receipt, back);
            }
            Ask::Resume(topic, group) => {
                if let Ok(group) = self.group(&topic, &group) {
                    group.resume();
                    self.stirred.insert(topic);
                }
            }
            Ask::Bury(receipt, reason, answer) => self.bury(receipt, reason, answer),
            Ask::Dead(topic, group, from, limit, answer) => self.dead(&topic, &group, from, limit, answer),
            Ask::Replay(topic, group, offset, answer) => self.find_dead(topic, group, offset, answer),
            Ask::Seek(topic, group, Position::Time(time), answer) => {
                self.find(topic.clone(), time, Ask::Seek(topic, group, Position::End, answer));
            }
            Ask::Seek(topic, group, to, answer) => {
                let done = self.seek(&topic, &group, to);
                self.tell(done, answer);
            }
            Ask::Groups(topic, answer) => {
                let _ = answer.send(self.groups(&topic));
            }
            Ask::Close(answer) => self.closing = Some(answer),
        }
    }

    fn declare(&mut self, spec: TopicSpec) -> Result<(), StoreError> {
        let full = self.topics.len() == MAX_TOPICS;
        match self.topics.get_mut(&spec.name) {
            Some(topic) if topic.keep == spec.keep => return Ok(()),
            Some(topic) => topic.keep = spec.keep,
            None if full => {
                return Err(StoreError::Invalid(format!("there are {MAX_TOPICS} topics already")));
            }
            None => drop(self.topics.insert(spec.name.clone(), Topic::new(spec.keep, 1, 1))),
        }
        self.ops.push(rows::put_topic(&spec));
        Ok(())
    }

    fn join(&mut self, topic: &TopicName, group: &GroupName, from: Position) -> Result<(), StoreError> {
        let known = self.topic(topic)?;
        if known.groups.contains_key(group) {
            return Ok(());
        }
        if known.groups.len() == MAX_GROUPS {
            return Err(StoreError::Invalid(format!("`{topic}` has {MAX_GROUPS} groups already")));
        }
        let begins = Group::at(place(known, from));
        known.groups.insert(group.clone(), begins);
        self.marks.insert((topic.clone(), group.clone()));
        Ok(())
    }

    fn publish(&mut self, events: Vec<(TopicName, Event)>) -> Result<Vec<Offset>, StoreError> {
        // All or nothing: every topic is looked for before the first event gets its place.
        for (topic, _) in &events {
            self.topic(topic)?;
        }
        let accepted = self.clock.now();
        let mut places = vec![];
        for (topic, event) in events {
            let text = event.to_json().to_string();
            let known = self.topic(&topic)?;
            let place = known.append(Stored { event, accepted, bytes: text.len() });
            self.ops.push(rows::put_event(&topic, place, accepted, &text));
            self.appended.insert(topic, place + 1);
            places.push(Offset(place));
        }
        Ok(places)
    }

    fn ack(&mut self, receipts: &[Receipt]) -> Result<(), StoreError> {
        let mut seen = BTreeSet::new();
        for receipt in receipts {
            self.under_way(receipt)?;
            if !seen.insert((&receipt.topic, &receipt.group, receipt.offset)) {
                return Err(stale());
            }
        }
        receipts.iter().try_for_each(|r| self.settle(r, |group, writes| group.settle(r.offset.0, writes)))
    }

    /// Changes a group if exactly this attempt is under way.
    fn settle(
        &mut self,
        receipt: &Receipt,
        change: impl FnOnce(&mut Group, &mut Vec<Write>),
    ) -> Result<(), StoreError> {
        let mut writes = vec![];
        change(self.under_way(receipt)?, &mut writes);
        self.write(&receipt.topic, &receipt.group, writes);
        self.stirred.insert(receipt.topic.clone());
        Ok(())
    }

    fn bury(&mut self, receipt: Receipt, reason: String, answer: Answer<()>) {
        if let Err(error) = self.under_way(&receipt) {
            return drop(answer.send(Err(error)));
        }
        let stored = self.topics.get(&receipt.topic).and_then(|topic| topic.stored(receipt.offset.0));
        let Some(stored) = stored else {
            self.load(&receipt.topic, vec![receipt.offset.0]);
            return self.blocked.push(Ask::Bury(receipt, reason, answer));
        };
        let now = self.clock.now();
        let done = self.settle(&receipt, |group, writes| group.bury(receipt.offset.0, writes));
        if let Some(stored) = stored {
            let (topic, group, place) = (&receipt.topic, &receipt.group, receipt.offset.0);
            self.ops.push(rows::put_dead(topic, group, place, receipt.attempt, &stored, &reason, now));
        }
        self.tell(done, answer);
    }

    fn dead(
        &mut self,
        topic: &TopicName,
        group: &GroupName,
        from: Offset,
        limit: usize,
        answer: Answer<Vec<DeadLetter>>,
    ) {
        if let Err(error) = self.group(topic, group) {
            return drop(answer.send(Err(error)));
        }
        let query = dead_letters(topic, group, from).limit(limit.clamp(1, 1000));
        let journal = self.journal.clone();
        // Detached: it holds no state, and the answer is all it is for.
        tokio::spawn(async move {
            let page = journal.scan(query).await;
            let _ = answer.send(page.and_then(|page| page.rows.iter().map(rows::dead).collect()));
        });
    }

    fn find_dead(&mut self, topic: TopicName, group: GroupName, offset: Offset, answer: Answer<()>) {
        match self.group(&topic, &group).map(|g| g.is_dead(offset.0)) {
            Ok(true) => {}
            Ok(false) => return drop(answer.send(Err(no_dead(offset)))),
            Err(error) => return drop(answer.send(Err(error))),
        }
        let journal = self.journal.clone();
        self.loads.spawn(async move {
            let page = journal.scan(dead_letters(&topic, &group, offset).limit(1)).await;
            let found = page.and_then(|page| {
                let row = page.rows.first().filter(|row| row[2].int() == offset.0);
                row.map(|row| {
                    let (event, text) = (rows::dead(row)?.event, row[7].text().to_owned());
                    let accepted = ballet_core::Timestamp(row[5].int());
                    Ok(Box::new((Stored { event, accepted, bytes: text.len() }, text)))
                })
                .transpose()
            });
            Loaded::Dead(topic, group, offset, found, answer)
        });
    }

    fn replay(
        &mut self,
        topic: &TopicName,
        group: &GroupName,
        offset: Offset,
        letter: Letter,
    ) -> Result<(), StoreError> {
        let (stored, text) = *letter;
        let mut writes = vec![];
        if !self.group(topic, group)?.replay(offset.0, &mut writes) {
            return Err(no_dead(offset));
        }
        // The event itself may have been deleted since: the dead letter brings it back.
        self.ops.push(rows::put_event(topic, offset.0, stored.accepted, &text));
        self.ops.push(rows::delete_dead(topic, group, offset.0));
        self.topic(topic)?.loaded(&[], vec![(offset.0, stored)]);
        let known = self.topic(topic)?;
        known.first = known.first.min(offset.0);
        self.write(topic, group, writes);
        self.stirred.insert(topic.clone());
        Ok(())
    }

    fn seek(&mut self, topic: &TopicName, group: &GroupName, to: Position) -> Result<(), StoreError> {
        let to = place(self.topic(topic)?, to);
        let mut writes = vec![];
        self.group(topic, group)?.seek(to, &mut writes);
        self.write(topic, group, writes);
        self.stirred.insert(topic.clone());
        Ok(())
    }

    fn groups(&mut self, topic: &TopicName) -> Result<Vec<GroupState>, StoreError> {
        let topic = self.topic(topic)?;
        let (now, end) = (Instant::now(), topic.end);
        let state = |(name, group): (&GroupName, &Group)| {
            let (waiting, in_flight, dead) = group.counts(now, end);
            GroupState { group: name.clone(), waiting, in_flight, dead }
        };
        Ok(topic.groups.iter().map(state).collect())
    }

    fn park(&mut self, take: Take) {
        if let Err(error) = self.group(&take.topic, &take.group) {
            return drop(take.answer.send(Err(error)));
        }
        let parked = self.parked.entry(take.topic.clone()).or_default().entry(take.group.clone()).or_default();
        if parked.len() == MAX_PARKED {
            let why = StoreError::Failed(format!("{MAX_PARKED} consumers of this group wait already"));
            return drop(take.answer.send(Err(why)));
        }
        self.stirred.insert(take.topic.clone());
        parked.push_back(take);
    }

    /// Hands out to parked takes what can be handed out, and ends those whose wait is over.
    fn serve(&mut self) {
        let now = Instant::now();
        while let Some(name) = self.stirred.pop_first() {
            let Some(mut groups) = self.parked.remove(&name) else { continue };
            for (group, takes) in &mut groups {
                self.serve_group(&name, group, takes, now);
            }
            groups.retain(|_, takes| !takes.is_empty());
            if !groups.is_empty() {
                self.parked.insert(name, groups);
            }
        }
    }

    fn serve_group(&mut self, name: &TopicName, group: &GroupName, takes: &mut VecDeque<Take>, now: Instant) {
        takes.retain(|take| !take.answer.is_closed());
        while let Some(first) = takes.front() {
            let mut writes = vec![];
            let found = self.topics.get_mut(name).and_then(|topic| topic.take(group, first.want, now, &mut writes));
            self.write(name, group, writes);
            match found {
                None => {
                    let take = takes.pop_front().expect("it is there");
                    let _ = take.answer.send(Err(no_group(group)));
                }
                Some(Found::Load(places)) => {
                    self.load(name, places);
                    break;
                }
                Some(Found::Events(events)) if events.is_empty() => break,
                Some(Found::Events(events)) => {
                    let take = takes.pop_front().expect("it is there");
                    self.hand(take, events);
                }
            }
        }
        // Who waits for a load gets its answer a moment later.
        if self.loading.contains(name) {
            return;
        }
        let over = |take: &Take| take.until <= now;
        while let Some(place) = takes.iter().position(over) {
            let take = takes.remove(place).expect("it was found there");
            let _ = take.answer.send(Ok(vec![]));
        }
    }

    fn hand(&mut self, take: Take, events: Vec<(i64, u32, Arc<Stored>)>) {
        let Take { topic, group, answer, .. } = take;
        let handed = |(place, attempt, stored): (i64, u32, Arc<Stored>)| Handed {
            event: stored.event.clone(),
            receipt: Receipt { topic: topic.clone(), group: group.clone(), offset: Offset(place), attempt },
            accepted: stored.accepted,
        };
        let handed: Vec<Handed> = events.into_iter().map(handed).collect();
        // The taker has hung up: nobody saw them, so the attempt does not count.
        if let Err(Ok(unseen)) = answer.send(Ok(handed)) {
            for handed in unseen {
                let _ = self.settle(&handed.receipt, |group, _| group.take_back(handed.receipt.offset.0));
            }
        }
    }

    fn wake(&self) -> Option<Instant> {
        // A topic that is being loaded is looked at again when that is done.
        let parked = self.parked.iter().filter(|(topic, _)| !self.loading.contains(*topic));
        let waits = parked.flat_map(|(topic, groups)| groups.iter().map(move |(g, takes)| (topic, g, takes)));
        waits
            .flat_map(|(topic, group, takes)| {
                let due = self.topics.get(topic).and_then(|topic| topic.next_due(group));
                due.into_iter().chain(takes.iter().map(|take| take.until))
            })
            .min()
    }

    /// Sends the gathered batch if none is on its way and it is time.
    fn send(&mut self) {
        if self.under_way.is_some() || self.may_gather() {
            return;
        }
        self.send_by = None;
        for (topic, group) in std::mem::take(&mut self.marks) {
            if let Some(known) = self.topics.get(&topic).and_then(|topic| topic.groups.get(&group)) {
                self.ops.push(rows::op(&topic, &group, known.marks(), self.clock.now()));
            }
        }
        if self.ops.is_empty() {
            return self.told.drain(..).for_each(|told| told(Ok(())));
        }
        let batch = Batch::fenced(self.fence, std::mem::take(&mut self.ops));
        let reply = self.journal.commit(batch);
        let (told, ends) = (std::mem::take(&mut self.told), std::mem::take(&mut self.appended));
        self.under_way = Some(UnderWay { reply, told, ends });
    }

    /// Whether there is something to write that may still wait for company.
    fn may_gather(&mut self) -> bool {
        let anything = !self.ops.is_empty() || !self.marks.is_empty();
        if !anything || !self.told.is_empty() || self.closing.is_some() || self.ops.len() >= MAX_BATCH_ROWS {
            return false;
        }
        let now = Instant::now();
        *self.send_by.get_or_insert(now + LAZY) > now
    }

    async fn written(&mut self, result: Result<(), StoreError>) {
        let Some(sent) = self.under_way.take() else { return };
        match result {
            Ok(()) => {
                for (name, end) in sent.ends {
                    if let Some(topic) = self.topics.get_mut(&name) {
                        topic.committed(end);
                    }
                    self.stirred.insert(name);
                }
                sent.told.into_iter().for_each(|told| told(Ok(())));
            }
            Err(failure) => {
                error!(error = %failure, "the bus cannot write; what was not acknowledged is refused");
                sent.told.into_iter().for_each(|told| told(Err(failure.clone())));
                self.start_over(failure).await;
            }
        }
    }

    /// The state ran ahead of the disk: refuses what gathered meanwhile and reads the tables again.
    async fn start_over(&mut self, failure: StoreError) {
        (self.ops, self.marks, self.appended, self.send_by) = Default::default();
        // Nothing of the gathered batch was sent, whatever became of the one before.
        let refused = StoreError::Failed("an earlier write failed".into());
        self.told.drain(..).for_each(|told| told(Err(refused.clone())));
        self.blocked.drain(..).for_each(|ask| ask.refuse(refused.clone()));
        self.loads.abort_all();
        while self.loads.join_next().await.is_some() {}
        self.loading.clear();
        self.stirred.extend(self.parked.keys().cloned());
        if matches!(failure, StoreError::Fenced(_)) {
            error!("another process has taken over the bus; this one refuses everything");
            self.topics.clear();
            for take in std::mem::take(&mut self.parked).into_values().flat_map(BTreeMap::into_values).flatten() {
                let _ = take.answer.send(Err(failure.clone()));
            }
            self.ousted = Some(failure);
            return;
        }
        loop {
            match load::state(&*self.journal, self.clock.now()).await {
                Ok(topics) => {
                    self.topics = topics;
                    info!("the bus has read its tables again");
                    return;
                }
                Err(error) => warn!(%error, "the bus cannot read its tables"),
            }
            if self.asks.is_closed() {
                return;
            }
            tokio::time::sleep(RELOAD_EVERY).await;
        }
    }

    fn load(&mut self, topic: &TopicName, places: Vec<i64>) {
        if !self.loading.insert(topic.clone()) {
            return;
        }
        let (journal, topic) = (self.journal.clone(), topic.clone());
        self.loads.spawn(async move {
            let found = load::events(&*journal, &topic, &places).await;
            Loaded::Bodies(topic, places, found)
        });
    }

    fn loaded(&mut self, loaded: Loaded) {
        match loaded {
            Loaded::Bodies(name, places, found) => {
                self.loading.remove(&name);
                self.stirred.insert(name.clone());
                match (found, self.topics.get_mut(&name)) {
                    (Ok(rows), Some(topic)) => {
                        topic.loaded(&places, rows);
                        std::mem::take(&mut self.blocked).into_iter().for_each(|ask| self.handle(ask));
                    }
                    (Ok(_), None) => {}
                    (Err(error), _) => {
                        let parked = self.parked.remove(&name).into_iter().flat_map(BTreeMap::into_values).flatten();
                        parked.for_each(|take| drop(take.answer.send(Err(error.clone()))));
                        self.blocked.drain(..).for_each(|ask| ask.refuse(error.clone()));
                    }
                }
            }
            Loaded::Dead(topic, group, offset, found, answer) => {
                let found = found.and_then(|found| found.ok_or_else(|| no_dead(offset)));
                let done = found.and_then(|letter| self.replay(&topic, &group, offset, letter));
                self.tell(done, answer);
            }
            Loaded::Place(ask, found) => match (ask, found) {
                (ask, Err(error)) => ask.refuse(error),
                (Ask::Join(topic, group, _, answer), Ok(place)) => {
                    let from = place.map_or(Position::End, |place| Position::Offset(Offset(place)));
                    self.handle(Ask::Join(topic, group, from, answer));
                }
                (Ask::Seek(topic, group, _, answer), Ok(place)) => {
                    let to = place.map_or(Position::End, |place| Position::Offset(Offset(place)));
                    self.handle(Ask::Seek(topic, group, to, answer));
                }
                (ask, Ok(_)) => self.handle(ask),
            },
            Loaded::Expired(name, places) => {
                let Some(topic) = self.topics.get_mut(&name) else { return };
                // A group may have gone back meanwhile.
                let floor = topic.floor();
                let places: Vec<i64> = places.into_iter().filter(|place| *place < floor).collect();
                if places.is_empty() {
                    return;
                }
                topic.deleted(&places);
                self.ops.extend(places.iter().map(|place| rows::delete_event(&name, *place)));
                self.expire(&name);
            }
        }
    }

    /// Looks for events whose time is over and that all groups have settled.
    fn expire(&mut self, name: &TopicName) {
        let Some(topic) = self.topics.get(name) else { return };
        let keep = i64::try_from(topic.keep.as_millis()).unwrap_or(i64::MAX);
        let before = ballet_core::Timestamp(self.clock.now().millis().saturating_sub(keep));
        let (journal, name, first, floor) = (self.journal.clone(), name.clone(), topic.first, topic.floor());
        if first >= floor {
            return;
        }
        // Often the oldest event is in memory and young.
        if topic.accepted(first).is_some_and(|accepted| accepted >= before) {
            return;
        }
        self.loads.spawn(async move {
            let places = load::expired(&*journal, &name, first..floor, before).await.unwrap_or_else(|error| {
                warn!(%error, topic = %name, "old events cannot be looked for");
                vec![]
            });
            Loaded::Expired(name, places)
        });
    }

    fn find(&mut self, topic: TopicName, time: ballet_core::Timestamp, ask: Ask) {
        let journal = self.journal.clone();
        self.loads.spawn(async move {
            let place = load::at(&*journal, &topic, time).await;
            Loaded::Place(ask, place)
        });
    }

    fn write(&mut self, topic: &TopicName, group: &GroupName, writes: Vec<Write>) {
        let now = self.clock.now();
        for write in writes {
            match write {
                // Written once per batch, as it stands then.
                Write::Marks { .. } => drop(self.marks.insert((topic.clone(), group.clone()))),
                write => self.ops.push(rows::op(topic, group, write, now)),
            }
        }
    }

    /// Answers once everything so far is on disk; a refusal at once.
    fn tell<T: Send + 'static>(&mut self, done: Result<T, StoreError>, answer: Answer<T>) {
        match done {
            Ok(value) => self.told.push(Box::new(move |written| drop(answer.send(written.map(|()| value))))),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    fn topic(&mut self, name: &TopicName) -> Result<&mut Topic, StoreError> {
        self.topics.get_mut(name).ok_or_else(|| StoreError::Invalid(format!("no topic named `{name}`")))
    }

    fn group(&mut self, topic: &TopicName, group: &GroupName) -> Result<&mut Group, StoreError> {
        self.topic(topic)?.groups.get_mut(group).ok_or_else(|| no_group(group))
    }

    fn under_way(&mut self, receipt: &Receipt) -> Result<&mut Group, StoreError> {
        let group = self.group(&receipt.topic, &receipt.group)?;
        if group.under_way(receipt.offset.0, receipt.attempt) { Ok(group) } else { Err(stale()) }
    }
}

impl Ask {
    /// Answers that nothing was done.
    pub(crate) fn refuse(self, error: StoreError) {
        match self {
            Self::Declare(_, answer)
            | Self::Join(_, _, _, answer)
            | Self::Ack(_, answer)
            | Self::AckLazily(_, answer)
            | Self::Nack(_, _, answer)
            | Self::Bury(_, _, answer)
            | Self::Replay(_, _, _, answer)
            | Self::Seek(_, _, _, answer)
            | Self::Close(answer) => drop(answer.send(Err(error))),
            Self::Publish(_, answer) => drop(answer.send(Err(error))),
            Self::Take(take) => drop(take.answer.send(Err(error))),
            Self::Dead(_, _, _, _, answer) => drop(answer.send(Err(error))),
            Self::Groups(_, answer) => drop(answer.send(Err(error))),
            Self::Return(..) | Self::Resume(..) => {}
        }
    }
}

fn place(topic: &Topic, position: Position) -> i64 {
    match position {
        Position::Start => topic.first,
        // Times are looked up before; without an event since then, the next one it is.
        Position::End | Position::Time(_) => topic.end,
        Position::Offset(offset) => offset.0.clamp(topic.first, topic.end),
    }
}

fn dead_letters(topic: &TopicName, group: &GroupName, from: Offset) -> Query {
    let since = std::ops::Bound::Included(from.0.into());
    let filter = ballet_store::Filter::Range(2, since, std::ops::Bound::Unbounded);
    Query::of(&rows::DEAD).eq(0, topic.as_str()).eq(1, group.as_str()).filter(filter)
}

fn no_group(group: &GroupName) -> StoreError {
    StoreError::Invalid(format!("no group named `{group}`"))
}

fn no_dead(offset: Offset) -> StoreError {
    StoreError::Invalid(format!("no dead letter at {}", offset.0))
}

fn stale() -> StoreError {
    StoreError::Invalid("the delivery is settled or somebody else's by now".into())
}

async fn written(under_way: &mut Option<UnderWay>) -> Result<(), StoreError> {
    match under_way {
        Some(sent) => (&mut sent.reply).await,
        None => std::future::pending().await,
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
