//! The read model of users, fed by their events.

use ballet_service::{Event, Projection, Result, Tx};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// A user as others see them.
#[derive(Serialize, Deserialize)]
pub(crate) struct Profile {
    pub(crate) id: String,
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) phone: Option<String>,
}

/// Keeps the table `profiles`.
pub(crate) struct Profiles;

impl Projection for Profiles {
    fn name(&self) -> &'static str {
        "profiles"
    }

    fn apply(&self, tx: &Tx<'_>, event: &Event) -> Result<()> {
        if !matches!(event.topic.as_str(), "user.registered" | "user.updated") {
            return Ok(());
        }
        let profile: Profile = serde_json::from_value(event.data.clone())?;
        tx.prepare_cached("INSERT OR REPLACE INTO profiles VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            profile.id,
            profile.email,
            profile.name,
            profile.phone
        ])?;
        Ok(())
    }

    fn rebuild(&self, tx: &Tx<'_>) -> Result<()> {
        tx.execute("DELETE FROM profiles", [])?;
        tx.execute("INSERT INTO profiles SELECT id, email, name, phone FROM users", [])?;
        Ok(())
    }
}

pub(crate) fn find(db: &Connection, id: &str) -> Result<Option<Profile>> {
    let row = db.prepare_cached("SELECT id, email, name, phone FROM profiles WHERE id = ?1")?.query_row([id], |row| {
        Ok(Profile { id: row.get(0)?, email: row.get(1)?, name: row.get(2)?, phone: row.get(3)? })
    });
    Ok(row.optional()?)
}
