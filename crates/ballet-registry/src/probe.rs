//! Health checks: who asks, and what the answers amount to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ballet_core::{Chain, Later};
use ballet_proxy::{CallRequest, direct};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use crate::HealthCheck;
use crate::leases::{Health, Key};

/// Asks an instance whether it is well.
pub trait Probe: Send + Sync + 'static {
    /// Asks once; the error says in a few words why it is not. Dropped when the check's timeout is over.
    fn ask<'a>(&'a self, address: SocketAddr, check: &'a HealthCheck) -> Later<'a, Result<(), String>>;
}

/// Asks by HTTP `GET`, on a connection of its own; 2xx is well.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpProbe;

impl Probe for HttpProbe {
    fn ask<'a>(&'a self, address: SocketAddr, check: &'a HealthCheck) -> Later<'a, Result<(), String>> {
        Box::pin(async move {
            let request = CallRequest::new("GET", check.path.as_str())
                .header("user-agent", "ballet-registry")
                .timeout(check.timeout);
            match direct(address, request).await {
                Ok(response) if (200..300).contains(&response.status) => Ok(()),
                Ok(response) => Err(format!("it answers {}", response.status)),
                Err(error) => Err(Chain(&error).to_string()),
            }
        })
    }
}

/// What a check found out about one generation of a registration.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) key: Key,
    pub(crate) generation: u64,
    pub(crate) health: Health,
    pub(crate) reason: String,
}

/// Turns answers into health. Pure.
#[derive(Debug)]
struct Judge {
    health: Health,
    failed: u32,
}

impl Judge {
    /// Notes an answer; says the new health if it changed.
    fn note(&mut self, well: bool, failures: u32) -> Option<Health> {
        self.failed = if well { 0 } else { self.failed.saturating_add(1) };
        let health = match self.health {
            _ if well => Health::Passing,
            // Never well so far: it is still starting.
            Health::Unknown => Health::Unknown,
            Health::Passing | Health::Failing if self.failed >= failures => Health::Failing,
            Health::Passing | Health::Failing => self.health,
        };
        let changed = health != self.health;
        self.health = health;
        changed.then_some(health)
    }
}

/// One instance's check, for ever. Ends when the engine drops its end of `verdicts` or aborts it.
pub(crate) struct Checker {
    pub(crate) key: Key,
    pub(crate) generation: u64,
    pub(crate) address: SocketAddr,
    pub(crate) check: HealthCheck,
    pub(crate) known: Health,
    /// Rest before the first question.
    pub(crate) rest: Duration,
    pub(crate) probe: Arc<dyn Probe>,
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) verdicts: mpsc::Sender<Verdict>,
}

impl Checker {
    /// Rest between questions before the first good answer: services that start are wanted soon.
    const EAGER: Duration = Duration::from_millis(200);

    pub(crate) async fn run(self) {
        let mut judge = Judge { health: self.known, failed: 0 };
        sleep(self.rest).await;
        loop {
            let answer = {
                let Ok(_turn) = self.turns.acquire().await else { return };
                timeout(self.check.timeout, self.probe.ask(self.address, &self.check)).await
            };
            let answer = answer.unwrap_or_else(|_| Err("it gives no answer in time".into()));
            if let Some(health) = judge.note(answer.is_ok(), self.check.failures) {
                let reason = answer.err().unwrap_or_default();
                let verdict = Verdict { key: self.key.clone(), generation: self.generation, health, reason };
                if self.verdicts.send(verdict).await.is_err() {
                    return;
                }
            }
            sleep(match judge.health {
                Health::Unknown => self.check.interval.min(Self::EAGER),
                Health::Passing | Health::Failing => self.check.interval,
            })
            .await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_answer_is_forgiven_and_one_good_one_heals() {
        let mut judge = Judge { health: Health::Unknown, failed: 0 };
        let answers = [false, false, false, true, false, true, false, false, false, true];
        let found: Vec<_> = answers.into_iter().map(|well| judge.note(well, 2)).collect();
        let (up, down) = (Some(Health::Passing), Some(Health::Failing));
        assert_eq!(found, [None, None, None, up, None, None, None, down, None, up]);
    }
}
