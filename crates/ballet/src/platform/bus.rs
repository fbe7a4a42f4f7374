//! The bus as the manifest wants it: topics, subscriptions, engine.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ballet_bus::{Bus, Config, Embedded, Subscription, TopicConfig, TopicInfo};
use ballet_core::{SystemClock, Workflows};
use ballet_manifest::{Manifest, Target};
use ballet_proxy::Upstreams;
use ballet_store::Journal;
use ballet_telemetry::{Metrics, names};
use tokio::task::JoinHandle;

use crate::cli::CliError;

/// How old the numbers of `/metrics` may be.
const REFRESH: Duration = Duration::from_secs(2);

/// What the manifest says of topics and subscriptions, in the bus's words.
pub(crate) fn config(manifest: &Manifest) -> Result<Config, CliError> {
    let topic = |name: ballet_core::TopicName| {
        let mut topic = TopicConfig::new(name.clone());
        if let Some(declared) = manifest.topics.get(&name) {
            topic.keep = declared.keep;
        }
        topic
    };
    let subscription = |subscription: &ballet_manifest::Subscription| {
        let topic = subscription.topic.clone();
        let made = match &subscription.target {
            Target::Service { service, path } => Subscription::service(topic, service.clone(), path.clone()),
            Target::Workflow { name, id } => Subscription::workflow(topic, name.clone(), id.clone()),
        };
        made.map_err(CliError::wrong)
    };
    Ok(Config {
        topics: manifest.topic_names().into_iter().map(topic).collect(),
        subscriptions: manifest.subscriptions.iter().map(subscription).collect::<Result<_, _>>()?,
    })
}

/// The embedded bus on its journal, with everything the manifest wants of it.
pub(crate) async fn start(
    manifest: &Manifest,
    journal: Arc<dyn Journal>,
    upstreams: &Upstreams,
    workflows: &Arc<dyn Workflows>,
    seed: u64,
) -> Result<Arc<Bus>, CliError> {
    let clock = Arc::new(SystemClock);
    let broker = Embedded::open(journal, clock.clone()).await.map_err(|error| CliError::from_part(&error))?;
    let bus = Bus::new(broker, clock, seed);
    let applied = bus.apply(config(manifest)?, upstreams, workflows).await;
    applied.map_err(|error| CliError::from_part(&error))?;
    Ok(Arc::new(bus))
}

/// Tells `/metrics` how the groups stand. Asking the engine takes a moment, so a task keeps the last answer.
pub(crate) fn tell(metrics: &Metrics, handle: ballet_bus::Handle) -> JoinHandle<()> {
    let latest: Arc<ArcSwap<Vec<TopicInfo>>> = Arc::default();
    let read = latest.clone();
    metrics.register(move |sink| {
        for topic in read.load().iter() {
            for group in &topic.groups {
                let labels = [("topic", topic.name.as_str()), ("group", group.state.group.as_str())];
                let lag = group.state.waiting + group.state.in_flight;
                sink.sample(&names::BUS_LAG, &labels, lag as f64);
                sink.sample(&names::BUS_IN_FLIGHT, &labels, group.state.in_flight as f64);
                sink.sample(&names::BUS_DEAD, &labels, group.state.dead as f64);
            }
        }
    });
    tokio::spawn(async move {
        loop {
            if let Ok(topics) = handle.topics().await {
                latest.store(Arc::new(topics));
            }
            tokio::time::sleep(REFRESH).await;
        }
    })
}
