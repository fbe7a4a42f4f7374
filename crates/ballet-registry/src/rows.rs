//! Registrations as rows of the journal.

use std::collections::BTreeMap;
use std::time::Duration;

use ballet_core::{Instance, InstanceState, Timestamp};
use ballet_store::{Kind, Op, Row, Table, row};
use serde::{Deserialize, Serialize};

use crate::leases::{Entry, Health, Key};
use crate::{HealthCheck, Registration};

/// One row for each registration.
pub(crate) static INSTANCES: Table = Table {
    name: "registry_instances",
    key: 2,
    columns: &[
        ("service", Kind::Text),
        ("instance", Kind::Text),
        ("address", Kind::Text),
        ("state", Kind::Int),
        ("version", Kind::Text),
        ("metadata", Kind::Bytes),
        ("lease_ms", Kind::Int),
        ("health_check", Kind::Bytes),
        ("health", Kind::Int),
        ("renewed", Kind::Time),
    ],
    indexes: &[],
};

/// Counts the registry's starts, so that versions grow over restarts.
pub(crate) static RUNS: Table =
    Table { name: "registry_runs", key: 1, columns: &[("id", Kind::Text), ("runs", Kind::Int)], indexes: &[] };

#[derive(Serialize, Deserialize)]
struct StoredCheck {
    path: String,
    interval_ms: u64,
    timeout_ms: u64,
    failures: u32,
}

pub(crate) fn put(entry: &Entry) -> Op {
    let Registration { instance, lease, check } = &entry.registration;
    let check = check.as_ref().map(|check| StoredCheck {
        path: check.path.clone(),
        interval_ms: millis(check.interval),
        timeout_ms: millis(check.timeout),
        failures: check.failures,
    });
    let json = |value: Result<Vec<u8>, _>| value.expect("texts and numbers are JSON");
    Op::Put(
        &INSTANCES,
        row![
            instance.service.as_str(),
            instance.id.as_str(),
            instance.address.to_string(),
            match instance.state {
                InstanceState::Starting => 0,
                InstanceState::Up => 1,
                InstanceState::Draining => 2,
                InstanceState::Down => 3,
            },
            instance.version.as_str(),
            json(serde_json::to_vec(&instance.metadata)),
            lease.map_or(0, |lease| millis(lease) as i64),
            check.map(|check| json(serde_json::to_vec(&check))).unwrap_or_default(),
            match entry.health {
                Health::Unknown => 0,
                Health::Passing => 1,
                Health::Failing => 2,
            },
            entry.renewed.millis(),
        ],
    )
}

pub(crate) fn delete(key: &Key) -> Op {
    Op::Delete(&INSTANCES, row![key.service.as_str(), key.instance.as_str()])
}

/// Reads a row; says which column makes no sense.
pub(crate) fn read(row: &Row) -> Result<(Registration, Health, Timestamp), &'static str> {
    let [service, id, address, state, version, metadata, lease, check, health, renewed] = row.as_slice() else {
        return Err("its number of columns");
    };
    let metadata: BTreeMap<String, String> = serde_json::from_slice(metadata.bytes()).map_err(|_| "metadata")?;
    let check = match check.bytes() {
        [] => None,
        json => {
            let stored: StoredCheck = serde_json::from_slice(json).map_err(|_| "health_check")?;
            Some(HealthCheck {
                path: stored.path,
                interval: Duration::from_millis(stored.interval_ms),
                timeout: Duration::from_millis(stored.timeout_ms),
                failures: stored.failures,
            })
        }
    };
    let instance = Instance {
        id: id.text().parse().map_err(|_| "instance")?,
        service: service.text().parse().map_err(|_| "service")?,
        address: address.text().parse().map_err(|_| "address")?,
        state: match state.int() {
            0 => InstanceState::Starting,
            1 => InstanceState::Up,
            2 => InstanceState::Draining,
            3 => InstanceState::Down,
            _ => return Err("state"),
        },
        version: version.text().into(),
        metadata,
    };
    let health = match health.int() {
        0 => Health::Unknown,
        1 => Health::Passing,
        2 => Health::Failing,
        _ => return Err("health"),
    };
    let lease = u64::try_from(lease.int()).ok().filter(|ms| *ms > 0).map(Duration::from_millis);
    Ok((Registration { instance, lease, check }, health, Timestamp(renewed.int())))
}

fn millis(duration: Duration) -> u64 {
    // Durations in a registration are at most a day long.
    duration.as_millis() as u64
}
