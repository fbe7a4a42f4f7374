//! The bus as its owner sees it: starts, changes and stops the subscriptions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use ballet_core::{Clock, GroupName, TopicName, Workflows};
use ballet_proxy::Upstreams;
use ballet_store::{Position, TopicSpec};

use crate::config::{Config, Subscription, Target, TopicConfig};
use crate::engine::Engine;
use crate::error::BusError;
use crate::handle::{Handle, write};
use crate::push::{To, Worker};

/// The bus. Owns the tasks of the subscriptions; others use its [`Handle`].
pub struct Bus {
    handle: Handle,
    running: Mutex<Running>,
}

struct Running {
    subscriptions: BTreeMap<(TopicName, GroupName), Pushing>,
    rng: StdRng,
}

struct Pushing {
    subscription: Arc<Subscription>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Bus {
    /// A bus without topics. `seed` feeds the jitter of retries.
    pub fn new(engine: impl Into<Engine>, clock: Arc<dyn Clock>, seed: u64) -> Self {
        let running = Running { subscriptions: BTreeMap::new(), rng: StdRng::seed_from_u64(seed) };
        Self { handle: Handle::new(engine.into(), clock), running: Mutex::new(running) }
    }

    /// A way to publish and consume.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Makes these the topics; may come before [`Bus::apply`], for those who publish before anybody subscribes.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn declare(&self, topics: Vec<TopicConfig>) -> Result<(), BusError> {
        for topic in &topics {
            self.handle.0.engine.declare(TopicSpec { name: topic.name.clone(), keep: topic.keep }).await?;
        }
        *write(&self.handle.0.topics) = topics.into_iter().map(|topic| (topic.name.clone(), topic)).collect();
        Ok(())
    }

    /// Brings a configuration about: makes topics and groups, stops the subscriptions that are gone or changed, starts the
    /// new ones. Called again at each reload. A new group sees its topic from the beginning.
    ///
    /// # Errors
    /// Any [`BusError`]; after one of the configuration nothing has changed.
    pub async fn apply(
        &self,
        config: Config,
        upstreams: &Upstreams,
        workflows: &Arc<dyn Workflows>,
    ) -> Result<(), BusError> {
        check(&config)?;
        let mut running = self.running.lock().await;
        self.declare(config.topics).await?;
        let wanted: BTreeMap<_, _> = config
            .subscriptions
            .into_iter()
            .map(|wanted| ((wanted.topic.clone(), wanted.group.clone()), Arc::new(wanted)))
            .collect();
        for (topic, group) in wanted.keys() {
            self.handle.0.engine.join(topic, group, Position::Start).await?;
        }
        let targets = wanted.iter().map(|(name, wanted)| (name.clone(), wanted.target.to_string())).collect();
        *write(&self.handle.0.targets) = targets;

        let stays = |name: &_, pushing: &Pushing| {
            wanted.get(name).is_some_and(|w| *w == pushing.subscription) && !pushing.task.is_finished()
        };
        let gone = running.subscriptions.extract_if(.., |name, pushing| !stays(name, pushing)).collect::<Vec<_>>();
        for (_, pushing) in &gone {
            pushing.stop.send_replace(true);
        }
        for ((topic, group), pushing) in gone {
            if pushing.task.await.is_err() {
                warn!(%topic, %group, "a subscription's task had ended");
            }
        }
        for (name, subscription) in wanted {
            if running.subscriptions.contains_key(&name) {
                continue;
            }
            let to = match &subscription.target {
                Target::Service { service, policy, path: _ } => {
                    To::Service(upstreams.upstream(service, policy.as_deref()))
                }
                Target::Workflow { .. } => To::Workflows(workflows.clone()),
            };
            info!(topic = %subscription.topic, target = %subscription.target, "subscription started");
            let rng = StdRng::seed_from_u64(running.rng.next_u64());
            let worker = Worker { shared: self.handle.0.clone(), subscription: subscription.clone(), to, rng };
            let (stop, stopped) = watch::channel(false);
            let task = tokio::spawn(worker.run(stopped));
            running.subscriptions.insert(name, Pushing { subscription, stop, task });
        }
        Ok(())
    }

    /// Stops the subscriptions, lets what is under way end within `grace`, and closes the engine. What is cut off comes
    /// again at the next start.
    pub async fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut running = self.running.lock().await;
        for pushing in running.subscriptions.values() {
            pushing.stop.send_replace(true);
        }
        for ((topic, group), mut pushing) in std::mem::take(&mut running.subscriptions) {
            if tokio::time::timeout_at(deadline, &mut pushing.task).await.is_err() {
                warn!(%topic, %group, "deliveries were cut off; they come again");
                pushing.task.abort();
            }
        }
        let closed = tokio::time::timeout_at(
            deadline.max(Instant::now() + Duration::from_secs(1)),
            self.handle.0.engine.close(),
        );
        match closed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the bus' engine did not close"),
            Err(_) => warn!("the bus' engine did not close in time"),
        }
    }
}

fn check(config: &Config) -> Result<(), BusError> {
    for (i, Subscription { topic, group, .. }) in config.subscriptions.iter().enumerate() {
        if !config.topics.iter().any(|declared| declared.name == *topic) {
            return Err(BusError::UnknownTopic { topic: topic.clone(), group: group.clone() });
        }
        if config.subscriptions[..i].iter().any(|other| other.topic == *topic && other.group == *group) {
            return Err(BusError::SharedGroup { topic: topic.clone(), group: group.clone() });
        }
    }
    Ok(())
}
