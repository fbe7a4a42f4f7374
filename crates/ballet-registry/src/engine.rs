//! The task that owns the lease table.
//!
//! ```text
//! Handle ──commands──▶ Engine ──batches──▶ Journal
//!                        │  ▲
//!          snapshots ◀───┘  └──verdicts── one checker per instance with a check
//! ```
//!
//! A change is taken into the table and published at once, and acknowledged when the journal has it. Heartbeats change
//! the table only; what they leave to write goes into one commit a second. A commit that fails is answered with the
//! error, and its rows go with the next one.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ballet_core::{Chain, Clock, Later, ServiceName};
use ballet_store::{Batch, Journal, Op, Query, StoreError, row};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::select;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use crate::handle::{Ack, Command, Counters};
use crate::leases::{Expired, Health, Key, Leases};
use crate::probe::{Checker, Verdict};
use crate::published::Published;
use crate::{Handle, Probe, Registered, RegistryError, limits, rows};

/// Owns the lease table; [`Engine::run`] is its task.
pub struct Engine {
    leases: Leases,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    probe: Arc<dyn Probe>,
    commands: mpsc::Receiver<Command>,
    verdicts: (mpsc::Sender<Verdict>, mpsc::Receiver<Verdict>),
    published: Arc<Published>,
    counters: Arc<Counters>,
    checks: HashMap<Key, Check>,
    turns: Arc<Semaphore>,
    commits: FuturesUnordered<Later<'static, Done>>,
    /// Registrations whose rows are behind.
    dirty: HashSet<Key>,
    /// Services to publish.
    touched: HashSet<ServiceName>,
    /// A batch of renewals is under way.
    flushing: bool,
    flushed: Instant,
    pulse: Pulse,
}

/// A running health check; ends when dropped.
struct Check(JoinHandle<()>);

/// A commit that has ended.
struct Done {
    keys: Vec<Key>,
    result: Result<(), StoreError>,
    answer: Option<Answer>,
}

/// Who waits for a commit.
enum Answer {
    Registered(Ack<Registered>, Registered),
    Plain(Ack<()>),
}

/// Counts time as observed: when this process was halted (a suspended laptop, a stopped container) no heartbeat could
/// come in, so that time does not count against anybody's lease.
struct Pulse {
    last: Instant,
    halted: Duration,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.published.close();
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Pulse {
    /// The engine wakes at least once a second; a gap beyond this was a halt.
    const GAP: Duration = Duration::from_secs(2);

    /// Observed time at `now`.
    fn observe(&mut self, now: Instant) -> Instant {
        let gap = now.saturating_duration_since(self.last);
        if gap > Self::GAP {
            warn!(gap_ms = gap.as_millis() as u64, "the registry was halted; leases are longer by as much");
            self.halted += gap;
        }
        self.last = now;
        now - self.halted
    }
}

impl Engine {
    /// Opens the registry's tables and reads what is registered. Every lease begins anew.
    ///
    /// # Errors
    /// [`RegistryError::Store`] if the journal cannot be read or written.
    pub async fn open(
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
        probe: Arc<dyn Probe>,
    ) -> Result<(Self, Handle), RegistryError> {
        journal.open(&[&rows::INSTANCES, &rows::RUNS]).await.map_err(RegistryError::Store)?;
        let runs = journal.scan(Query::of(&rows::RUNS)).await.map_err(RegistryError::Store)?.rows;
        let run = runs.first().map_or(0, |row| row[1].int()) + 1;
        let counted = journal.commit(Batch::of(vec![Op::Put(&rows::RUNS, row!["registry", run])]));
        counted.await.map_err(RegistryError::Store)?;

        let now = Instant::now();
        // Versions of a later run are greater than any of an earlier one, and fit a JSON number for two million runs.
        let mut leases = Leases::new((run as u64) << 32);
        let mut query = Query::of(&rows::INSTANCES);
        loop {
            let page = journal.scan(query.clone()).await.map_err(RegistryError::Store)?;
            for row in &page.rows {
                match rows::read(row) {
                    Ok((registration, health, renewed)) => leases.restore(registration, health, renewed, now),
                    Err(column) => error!(
                        service = row[0].text(),
                        instance = row[1].text(),
                        column,
                        "skipped a row that makes no sense"
                    ),
                }
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        info!(instances = leases.len(), run, "the registry is open");

        let published = Arc::new(Published::default());
        for service in leases.services() {
            published.publish(service, leases.instances(service));
        }
        let (commands, receiver) = mpsc::channel(limits::COMMANDS);
        let handle = Handle { commands, published: published.clone(), counters: Arc::default() };
        let engine = Self {
            leases,
            journal,
            clock,
            probe,
            commands: receiver,
            verdicts: mpsc::channel(limits::PROBES),
            published,
            counters: handle.counters.clone(),
            checks: HashMap::new(),
            turns: Arc::new(Semaphore::new(limits::PROBES)),
            commits: FuturesUnordered::new(),
            dirty: HashSet::new(),
            touched: HashSet::new(),
            flushing: false,
            flushed: now,
            pulse: Pulse { last: now, halted: Duration::ZERO },
        };
        Ok((engine, handle))
    }

    /// Serves until [`Handle::stop`], or until all handles are gone; then writes what is left.
    pub async fn run(mut self) {
        let restored: Vec<_> =
            self.leases.entries().map(|(s, i, _)| Key { service: s.clone(), instance: i.clone() }).collect();
        restored.into_iter().for_each(|key| self.start_check(&key));

        // Time between `open` and now was nobody's fault either.
        self.pulse.observe(Instant::now());
        let mut waiting = Vec::with_capacity(512);
        let stopped = loop {
            let tick = self.pulse.last + limits::FLUSH;
            let wake = self.leases.next_end().map_or(tick, |end| tick.min(end + self.pulse.halted));
            let room = self.commits.len() < limits::COMMITS;
            select! {
                biased;
                Some(done) = self.commits.next(), if !self.commits.is_empty() => self.done(done),
                Some(verdict) = self.verdicts.1.recv() => self.verdict(verdict),
                n = self.commands.recv_many(&mut waiting, 512), if room => if n == 0 { break None },
                () = sleep_until(wake) => {}
            }
            let now = self.pulse.observe(Instant::now());
            let mut stop = None;
            for command in waiting.drain(..) {
                if let Some(ack) = self.command(command, now) {
                    stop = Some(ack);
                }
            }
            // Heartbeats that have arrived count before leases end.
            if self.commands.is_empty() {
                self.expire(now);
            }
            self.publish();
            if self.pulse.last >= self.flushed + limits::FLUSH {
                self.flush(limits::FLUSH_ROWS);
            }
            if let Some(ack) = stop {
                break Some(ack);
            }
        };
        self.commands.close();
        self.checks.clear();
        while let Some(done) = self.commits.next().await {
            self.done(done);
        }
        self.flush(usize::MAX);
        while let Some(done) = self.commits.next().await {
            self.done(done);
        }
        if let Some(ack) = stopped {
            let _ = ack.send(Ok(()));
        }
        info!("the registry has stopped");
    }

    /// Returns who asked to stop.
    fn command(&mut self, command: Command, now: Instant) -> Option<Ack<()>> {
        let at = self.clock.now();
        match command {
            Command::Register(registration, ack) => {
                let instance = &registration.instance;
                let key = Key { service: instance.service.clone(), instance: instance.id.clone() };
                let new = self.leases.get(&key).is_none();
                if new {
                    info!(service = %key.service, instance = %key.instance, address = %instance.address, "registered");
                }
                match self.leases.register(*registration, now, at) {
                    Err(error) => self.refuse(ack, error),
                    Ok(_) => {
                        self.touched.insert(key.service.clone());
                        self.start_check(&key);
                        self.commit(vec![key], Some(Answer::Registered(ack, Registered { new })));
                    }
                }
            }
            Command::Renew(key, ack) => match self.leases.renew(&key, now, at) {
                Err(error) => self.refuse(ack, error),
                Ok(renewed) => {
                    self.counters.renewals.fetch_add(1, Ordering::Relaxed);
                    if renewed.changed {
                        info!(service = %key.service, instance = %key.instance, "heartbeats are back");
                        self.touched.insert(key.service.clone());
                        self.publish();
                    }
                    if renewed.write {
                        self.dirty.insert(key);
                    }
                    let _ = ack.send(Ok(()));
                }
            },
            Command::SetState(key, state, ack) => match self.leases.set_state(&key, state, now, at) {
                Err(error) => self.refuse(ack, error),
                Ok(changed) => {
                    if changed {
                        info!(service = %key.service, instance = %key.instance, ?state, "state given");
                        self.touched.insert(key.service.clone());
                    }
                    self.commit(vec![key], Some(Answer::Plain(ack)));
                }
            },
            Command::Deregister(key, ack) => {
                if self.leases.deregister(&key) {
                    info!(service = %key.service, instance = %key.instance, "deregistered");
                    self.touched.insert(key.service.clone());
                    self.checks.remove(&key);
                    self.commit(vec![key], Some(Answer::Plain(ack)));
                } else {
                    let Key { service, instance } = key;
                    self.refuse(ack, RegistryError::UnknownInstance { service, instance });
                }
            }
            Command::Stop(ack) => return Some(ack),
        }
        None
    }

    fn refuse<T>(&self, ack: Ack<T>, error: RegistryError) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        let _ = ack.send(Err(error));
    }

    fn verdict(&mut self, verdict: Verdict) {
        let Verdict { key, generation, health, reason } = verdict;
        let changed = self.leases.set_health(&key, generation, health);
        if self.leases.get(&key).is_some_and(|e| e.generation == generation) {
            self.dirty.insert(key.clone());
        }
        if !changed {
            return;
        }
        match health {
            Health::Failing => warn!(service = %key.service, instance = %key.instance, reason, "health check fails"),
            Health::Passing | Health::Unknown => info!(service = %key.service, instance = %key.instance, "healthy"),
        }
        self.touched.insert(key.service);
    }

    fn expire(&mut self, now: Instant) {
        for expired in self.leases.expire(now) {
            let key = match expired {
                Expired::Down(key) => {
                    warn!(service = %key.service, instance = %key.instance, "lease ran out");
                    self.counters.expired.fetch_add(1, Ordering::Relaxed);
                    key
                }
                Expired::Removed(key) => {
                    info!(service = %key.service, instance = %key.instance, "removed");
                    self.counters.removed.fetch_add(1, Ordering::Relaxed);
                    self.checks.remove(&key);
                    self.dirty.insert(key.clone());
                    key
                }
            };
            self.touched.insert(key.service);
        }
    }

    fn publish(&mut self) {
        for service in self.touched.drain() {
            self.published.publish(&service, self.leases.instances(&service));
        }
    }

    /// Starts, restarts or ends an instance's check, as its registration says.
    fn start_check(&mut self, key: &Key) {
        self.checks.remove(key);
        let Some(entry) = self.leases.get(key) else { return };
        let Some(check) = entry.registration.check.clone() else { return };
        // After a restart all checks begin together; those of the healthy are spread over their interval.
        let rest = match entry.health {
            Health::Unknown => Duration::ZERO,
            Health::Passing | Health::Failing => spread(key, check.interval),
        };
        let checker = Checker {
            key: key.clone(),
            generation: entry.generation,
            address: entry.registration.instance.address,
            check,
            known: entry.health,
            rest,
            probe: self.probe.clone(),
            turns: self.turns.clone(),
            verdicts: self.verdicts.0.clone(),
        };
        self.checks.insert(key.clone(), Check(tokio::spawn(checker.run())));
    }

    /// Writes the rows as they are now.
    fn commit(&mut self, keys: Vec<Key>, answer: Option<Answer>) {
        let op = |key: &Key| self.leases.get(key).map_or_else(|| rows::delete(key), rows::put);
        let reply = self.journal.commit(Batch::of(keys.iter().map(op).collect()));
        keys.iter().for_each(|key| {
            self.dirty.remove(key);
        });
        self.commits.push(Box::pin(async move { Done { keys, result: reply.await, answer } }));
    }

    /// Writes what heartbeats and checks have left, unless that is under way.
    fn flush(&mut self, rows: usize) {
        self.flushed = self.pulse.last;
        if self.flushing || self.dirty.is_empty() {
            return;
        }
        self.flushing = true;
        let keys = self.dirty.iter().take(rows).cloned().collect();
        self.commit(keys, None);
    }

    fn done(&mut self, done: Done) {
        let Done { keys, result, answer } = done;
        if answer.is_none() {
            self.flushing = false;
        }
        if let Err(error) = &result {
            error!(error = %Chain(error), rows = keys.len(), "cannot write registrations; they stay in memory and are written later");
            self.counters.failed_commits.fetch_add(1, Ordering::Relaxed);
            self.dirty.extend(keys);
        }
        let result = result.map_err(RegistryError::Store);
        match answer {
            None => {}
            Some(Answer::Plain(ack)) => {
                let _ = ack.send(result);
            }
            Some(Answer::Registered(ack, registered)) => {
                if result.is_ok() {
                    self.counters.registrations.fetch_add(1, Ordering::Relaxed);
                }
                let _ = ack.send(result.map(|()| registered));
            }
        }
    }
}

fn spread(key: &Key, over: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    over.mul_f64((hasher.finish() >> 11) as f64 / (1u64 << 53) as f64)
}
