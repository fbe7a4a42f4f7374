//! Read models: kept up to date from the service's own events, in order, and rebuilt when their shape changes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::{OptionalExtension, params};

use ballet_core::{Chain, Event};

use crate::sqlite::message;
use crate::{Error, Result, Tx};

/// How many events are applied at once when a projection has to catch up.
const STRIDE: i64 = 500;
/// How long a stuck projection rests before it tries again, in milliseconds.
const REST_MS: i64 = 1_000;

/// A read model, fed by the events that the service itself publishes.
///
/// It is brought up to date in the transaction that publishes, behind the commands and apart from them: when `apply`
/// fails, the command stands, the projection stays where it was (logged as an error, `CH020`) and tries again with a later
/// commit. So a query that follows a command's answer sees the command.
pub trait Projection: Send + Sync + 'static {
    /// Its name: a row of the table `projections`.
    fn name(&self) -> &'static str;

    /// A new number rebuilds it at the next start.
    fn version(&self) -> u32 {
        1
    }

    /// Takes in one event, in the order of the outbox. Topics it does not know it ignores.
    ///
    /// # Errors
    /// Whatever keeps the event from being applied; it comes again.
    fn apply(&self, tx: &Tx<'_>, event: &Event) -> Result<()>;

    /// Empties its tables and fills them from those of the commands. Old events are not kept for ever, so this is the way
    /// back.
    ///
    /// # Errors
    /// Whatever the store says.
    fn rebuild(&self, tx: &Tx<'_>) -> Result<()>;
}

/// All of a service's projections.
#[derive(Clone, Default)]
pub(crate) struct Projector {
    projections: Arc<Vec<Box<dyn Projection>>>,
    /// Stuck ones rest until then.
    rests_until: Arc<AtomicI64>,
}

impl Projector {
    pub(crate) fn new(projections: Vec<Box<dyn Projection>>) -> Self {
        Self { projections: Arc::new(projections), rests_until: Arc::default() }
    }

    /// Before the first command: forgets what is no more, builds what is new or changed, catches up the rest.
    pub(crate) fn prepare(&self, tx: &Tx<'_>) -> Result<()> {
        self.forget(tx)?;
        for projection in self.projections.iter() {
            let version = tx
                .query_row("SELECT version FROM projections WHERE name = ?1", [projection.name()], |row| row.get(0))
                .optional()?;
            if version != Some(projection.version()) {
                rebuild(projection.as_ref(), tx)?;
            }
        }
        for projection in self.projections.iter() {
            if let Err(error) = tx.nested(|tx| advance(projection.as_ref(), tx)) {
                stuck(projection.as_ref(), &error);
            }
        }
        Ok(())
    }

    /// Deletes the rows of projections that the service has no more: the outbox is kept until all have read it.
    fn forget(&self, tx: &Tx<'_>) -> Result<()> {
        let names = tx
            .prepare("SELECT name FROM projections")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<Vec<String>, _>>()?;
        for name in names.iter().filter(|name| self.projections.iter().all(|known| known.name() != name.as_str())) {
            tx.execute("DELETE FROM projections WHERE name = ?1", [name])?;
            tracing::info!(projection = name, "projection forgotten");
        }
        Ok(())
    }

    /// Behind the commands of a transaction that published.
    pub(crate) fn catch_up(&self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        if tx.now().millis() < self.rests_until.load(Ordering::Relaxed) {
            return Ok(());
        }
        for projection in self.projections.iter() {
            match tx.nested(|tx| advance(projection.as_ref(), tx)) {
                Ok(()) => {}
                Err(error) => {
                    self.rests_until.store(tx.now().millis() + REST_MS, Ordering::Relaxed);
                    stuck(projection.as_ref(), &error);
                }
            }
        }
        Ok(())
    }

    /// Rebuilds the one of that name.
    pub(crate) fn rebuild(&self, name: &str, tx: &Tx<'_>) -> Result<()> {
        let found = self.projections.iter().find(|projection| projection.name() == name);
        rebuild(found.ok_or_else(|| Error::internal(format!("no projection named `{name}`")))?.as_ref(), tx)
    }
}

fn stuck(projection: &dyn Projection, error: &Error) {
    tracing::error!(projection = projection.name(), code = "CH020", error = %Chain(error), "projection stuck");
}

fn rebuild(projection: &dyn Projection, tx: &Tx<'_>) -> Result<()> {
    projection.rebuild(tx)?;
    tx.execute(
        "INSERT OR REPLACE INTO projections SELECT ?1, ?2, coalesce((SELECT max(id) FROM outbox), 0)",
        params![projection.name(), projection.version()],
    )?;
    tracing::info!(projection = projection.name(), "projection rebuilt");
    Ok(())
}

/// A defect of a read model must not take the writer thread along: then nobody could write any more.
fn advance(projection: &dyn Projection, tx: &Tx<'_>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| follow(projection, tx)))
        .unwrap_or_else(|panic| Err(Error::Internal(format!("a projection panicked: {}", message(&*panic)))))
}

fn follow(projection: &dyn Projection, tx: &Tx<'_>) -> Result<()> {
    loop {
        let position: Option<i64> = tx
            .prepare_cached("SELECT position FROM projections WHERE name = ?1")?
            .query_row([projection.name()], |row| row.get(0))
            .optional()?;
        // An older version of the service has started on this store, and does not know this projection.
        let Some(position) = position else { return rebuild(projection, tx) };
        let events = tx
            .prepare_cached("SELECT id, event FROM outbox WHERE id > ?1 ORDER BY id LIMIT ?2")?
            .query_map([position, STRIDE], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?
            .collect::<Result<Vec<_>, _>>()?;
        let Some((last, _)) = events.last() else { return Ok(()) };
        for (_, event) in &events {
            let event = Event::from_json(&serde_json::from_str(event)?).map_err(Error::internal)?;
            projection.apply(tx, &event)?;
        }
        tx.prepare_cached("UPDATE projections SET position = ?2 WHERE name = ?1")?
            .execute(params![projection.name(), last])?;
    }
}
