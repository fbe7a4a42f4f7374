//! The relay: brings the outbox to the bus, in order, and forgets what is old.
//!
//! One instance at a time does it, by the lease `relay`. The lease is taken in the transaction that publishes and let go in
//! the transaction that marks the last row as sent, so neither an idle service writes nor does a row wait for a clock: either
//! the holder sees the new row before it lets go, or whoever wrote it gets the lease. The clock only helps after a crash.
//!
//! Nothing that the relay writes is synced by itself. A crash of the process loses none of it. A crash of the machine may
//! take back what was noted since the last ordinary write: then the events of that write are sent again, in order, as after
//! a crash between sending and noting; readers' inboxes know them. Leases need no disk: who shares the file shares the machine.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rusqlite::{Connection, params};

use ballet_core::{Chain, Classify, Clock, Event, Events, EventsError, Retry, Timestamp};

use crate::context::seeded;
use crate::sqlite::{RELAY, RELAY_LEASE};
use crate::{Error, Result, Store, Tx};

/// Events of one publish.
const BATCH: i64 = 100;
/// Bytes of one publish; at least one event goes in each.
const BATCH_BYTES: usize = 4 << 20;
/// How often an idle relay looks for what a crashed one left.
const TICK: Duration = Duration::from_secs(2);
/// Rest after the bus refused: this, doubling, to the cap.
const REST: Duration = Duration::from_millis(50);
const REST_CAP: Duration = Duration::from_secs(3);
/// Rest of an event that the bus does not want.
const HOLD: Duration = Duration::from_secs(1);
const HOLD_CAP: Duration = Duration::from_secs(60);
/// How often old rows are deleted, and how many at once.
const SWEEP: Duration = Duration::from_secs(600);
const SWEEP_ROWS: usize = 1_000;
/// How long sent events stay.
const KEEP_SENT: Duration = Duration::from_secs(3_600);

pub(crate) struct Relay {
    pub(crate) store: Store,
    pub(crate) events: Arc<dyn Events>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) instance: String,
}

struct Row {
    id: i64,
    event: Event,
}

/// What became of a batch.
#[derive(Default)]
struct Outcome {
    sent: Vec<i64>,
    held: Vec<(i64, String)>,
    failure: Option<EventsError>,
}

/// What the relay does next.
enum Next {
    More,
    Done,
    Rest(EventsError),
}

impl Relay {
    /// Runs until it is dropped. Dropping it loses nothing: unsent rows stay, a row sent but not marked is sent again.
    pub(crate) async fn run(self) {
        let mut rng = seeded();
        let mut woken = false;
        loop {
            // Woken: the lease is ours already. Not woken: look whether somebody left something.
            if woken || self.left_behind().await {
                self.drain().await;
            }
            let rest = TICK.mul_f64(0.5 + rng.random::<f64>());
            woken = tokio::time::timeout(rest, self.store.relay_wanted()).await.is_ok();
        }
    }

    /// Sends what there is; returns when nothing is left that may be sent now.
    pub(crate) async fn drain(&self) {
        let mut rest = REST;
        loop {
            match self.step().await {
                Ok(Next::More) => {
                    rest = REST;
                    continue;
                }
                Ok(Next::Done) => return,
                Ok(Next::Rest(error)) => tracing::warn!(error = %Chain(&error), "cannot relay events, trying again"),
                Err(error) => tracing::warn!(error = %Chain(&error), "cannot relay events, trying again"),
            }
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(REST_CAP);
            // Another instance may have taken over while we rested.
            match self.claim().await {
                Ok(true) => {}
                Ok(false) | Err(_) => return,
            }
        }
    }

    /// Sends one batch and marks it.
    async fn step(&self) -> Result<Next> {
        let (now, instance) = (self.clock.now(), self.instance.clone());
        let (rows, ours) = self.store.read(move |db| Ok((batch(db, now)?, is_ours(db, &instance, now)?))).await?;
        if !ours {
            // A wake-up may be older than the lease: whoever holds it by now sends these.
            let more = !rows.is_empty() && self.claim().await?;
            return Ok(if more { Next::More } else { Next::Done });
        }
        let Outcome { sent, held, failure } = self.publish(rows).await;
        let instance = self.instance.clone();
        self.store
            .write_unsynced(move |tx| {
                for id in sent {
                    tx.prepare_cached("UPDATE outbox SET sent_at = ?2, error = NULL WHERE id = ?1")?
                        .execute(params![id, tx.now().millis()])?;
                }
                for (id, said) in held {
                    hold(tx, id, &said, tx.now())?;
                }
                if let Some(error) = failure {
                    return Ok(Next::Rest(error));
                }
                if batch(tx, tx.now())?.is_empty() {
                    tx.prepare_cached("UPDATE leases SET until = 0 WHERE name = ?1 AND owner = ?2")?
                        .execute([RELAY, &instance])?;
                    return Ok(Next::Done);
                }
                Ok(if tx.claim(RELAY, &instance, RELAY_LEASE)? { Next::More } else { Next::Done })
            })
            .await
    }

    /// Publishes all of them at once. If the bus does not want one of them, singly: what follows a refused event with the
    /// same key waits behind it.
    async fn publish(&self, rows: Vec<Row>) -> Outcome {
        let mut outcome = Outcome::default();
        if rows.is_empty() {
            return outcome;
        }
        match self.events.publish(rows.iter().map(|row| row.event.clone()).collect()).await {
            Ok(_) => outcome.sent = rows.iter().map(|row| row.id).collect(),
            Err(error) if error.retry() != Retry::Never => outcome.failure = Some(error),
            Err(_) => {
                let mut blocked: HashSet<String> = HashSet::new();
                for row in rows {
                    let key = row.event.key().unwrap_or_default().to_owned();
                    if blocked.contains(&key) {
                        continue;
                    }
                    let (id, topic) = (row.id, row.event.topic.clone());
                    match self.events.publish(vec![row.event]).await {
                        Ok(_) => outcome.sent.push(id),
                        Err(error) if error.retry() == Retry::Never => {
                            tracing::error!(%topic, outbox = id, code = "CH021", %error, "the bus refuses an event");
                            outcome.held.push((id, error.to_string()));
                            if !key.is_empty() {
                                blocked.insert(key);
                            }
                        }
                        Err(error) => {
                            outcome.failure = Some(error);
                            break;
                        }
                    }
                }
            }
        }
        outcome
    }

    async fn claim(&self) -> Result<bool> {
        let instance = self.instance.clone();
        self.store.write_unsynced(move |tx| tx.claim(RELAY, &instance, RELAY_LEASE)).await
    }

    async fn left_behind(&self) -> bool {
        let now = self.clock.now();
        match self.store.read(move |db| Ok(!batch(db, now)?.is_empty())).await {
            Ok(true) => self.claim().await.unwrap_or(false),
            Ok(false) | Err(_) => false,
        }
    }
}

/// The next events to send. Behind a held one, others with its key wait.
fn batch(db: &Connection, now: Timestamp) -> Result<Vec<Row>> {
    let mut select = db.prepare_cached(
        "SELECT id, event FROM outbox o WHERE sent_at IS NULL AND NOT EXISTS (
             SELECT 1 FROM outbox h WHERE h.sent_at IS NULL AND h.attempts > 0 AND h.retry_at > ?1
             AND (h.id = o.id OR (h.key <> '' AND h.key = o.key AND h.id < o.id)))
         ORDER BY id LIMIT ?2",
    )?;
    let rows = select
        .query_map([now.millis(), BATCH], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?
        .collect::<Result<Vec<_>, _>>()?;
    let mut bytes = 0;
    rows.into_iter()
        .take_while(|(_, event)| {
            let first = bytes == 0;
            bytes += event.len();
            first || bytes <= BATCH_BYTES
        })
        .map(|(id, event)| {
            let event = Event::from_json(&serde_json::from_str(&event)?).map_err(Error::internal)?;
            Ok(Row { id, event })
        })
        .collect()
}

fn is_ours(db: &Connection, instance: &str, now: Timestamp) -> Result<bool> {
    Ok(db.prepare_cached("SELECT 1 FROM leases WHERE name = ?1 AND owner = ?2 AND until > ?3")?.exists(params![
        RELAY,
        instance,
        now.millis()
    ])?)
}

/// Puts an event aside that the bus does not want; longer each time.
fn hold(tx: &Tx<'_>, id: i64, said: &str, now: Timestamp) -> Result<()> {
    let attempts: u32 = tx.query_row("SELECT attempts FROM outbox WHERE id = ?1", [id], |row| row.get(0))?;
    let rest = HOLD.saturating_mul(1 << attempts.min(16)).min(HOLD_CAP);
    tx.execute(
        "UPDATE outbox SET attempts = attempts + 1, retry_at = ?2, error = ?3 WHERE id = ?1",
        params![id, now.plus(rest).millis(), said],
    )?;
    Ok(())
}

/// Deletes what nobody needs any more, now and then.
pub(crate) async fn keep_tidy(store: Store, clock: Arc<dyn Clock>, keep_inbox: Duration) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match sweep(&store, clock.now(), keep_inbox).await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(rows, "deleted old outbox and inbox rows"),
            Err(error) => tracing::warn!(error = %Chain(&error), "cannot delete old rows"),
        }
    }
}

/// Deletes sent events that every projection has seen, and inbox rows older than `keep_inbox`. Looks before it writes, so
/// that an idle service writes nothing. What a crash brings back is deleted again.
pub(crate) async fn sweep(store: &Store, now: Timestamp, keep_inbox: Duration) -> Result<usize> {
    let before = |age: Duration| now.millis().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    let (sent, seen) = (before(KEEP_SENT), before(keep_inbox));
    let old = "FROM outbox WHERE sent_at < ?1 AND id <= coalesce((SELECT min(position) FROM projections), id)";
    let mut deleted = 0;
    loop {
        let found = store.read(move |db| {
            let outbox = db.prepare(&format!("SELECT 1 {old} LIMIT 1"))?.exists([sent])?;
            Ok(outbox || db.prepare("SELECT 1 FROM inbox WHERE at < ?1 LIMIT 1")?.exists([seen])?)
        });
        if !found.await? {
            return Ok(deleted);
        }
        deleted += store
            .write_unsynced(move |tx| {
                let outbox =
                    tx.execute(&format!("DELETE FROM outbox WHERE id IN (SELECT id {old} LIMIT {SWEEP_ROWS})"), [sent])?;
                let inbox = tx.execute(
                    &format!(
                        "DELETE FROM inbox WHERE (scope, key) IN (SELECT scope, key FROM inbox WHERE at < ?1 LIMIT {SWEEP_ROWS})"
                    ),
                    [seen],
                )?;
                Ok(outbox + inbox)
            })
            .await?;
    }
}
