//! What the bus is told: topics, subscriptions, and how often it tries.

use std::fmt;
use std::time::Duration;

use ballet_core::{GroupName, NameError, ServiceName, TopicName, WorkflowName};
use ballet_manifest::Template;
use ballet_resilience::Backoff;
use rand::Rng;

/// Everything that [`crate::Bus::apply`] brings about.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The topics. One that is left out later stays, with its events; nothing can be published to it.
    pub topics: Vec<TopicConfig>,
    /// Who is told of events. A subscription that is left out later stops; its group stays where it is.
    pub subscriptions: Vec<Subscription>,
}

/// A topic. Its name is its events' type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// Its name.
    pub name: TopicName,
    /// How long events stay once all groups have settled them. Default: 7 days.
    pub keep: Duration,
}

/// One consumer group that the bus pushes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// The topic.
    pub topic: TopicName,
    /// The consumer group. It sees the topic from its beginning.
    pub group: GroupName,
    /// Who is told.
    pub target: Target,
    /// Events under way at a time, of one ordering key never more than one. Default: 16.
    pub credit: usize,
    /// How often and how fast it tries.
    pub redelivery: Redelivery,
}

/// Who is told of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Gets it by POST as a structured CloudEvent.
    Service {
        /// Which.
        service: ServiceName,
        /// Where; scope `event`.
        path: Template,
        /// Under which policy. Default: the service's own.
        policy: Option<String>,
    },
    /// Is started, with the event's data as input.
    Workflow {
        /// Which.
        name: WorkflowName,
        /// The execution's id; scope `event`. Default: `NAME-SUBJECT`, or `NAME-ID` of an event without a subject.
        id: Option<Template>,
    },
}

/// How often an event is tried before it becomes a dead letter, and the rests between: exponential caps with full jitter
/// (Brooker, "Exponential Backoff And Jitter").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redelivery {
    /// Attempts, the first included. Default: 10.
    pub max_attempts: u32,
    /// Cap of the first rest; it doubles with each attempt. Default: 200 ms.
    pub backoff_first: Duration,
    /// No cap grows above this. Default: 30 s.
    pub backoff_max: Duration,
}

impl TopicConfig {
    /// A topic that keeps its events for 7 days.
    pub fn new(name: TopicName) -> Self {
        Self { name, keep: Duration::from_secs(7 * 24 * 3600) }
    }
}

impl Subscription {
    /// Tells a service, as a group of the service's name.
    ///
    /// # Errors
    /// None for a service name that was checked.
    pub fn service(topic: TopicName, service: ServiceName, path: Template) -> Result<Self, NameError> {
        let group = service.as_str().parse()?;
        Ok(Self::new(topic, group, Target::Service { service, path, policy: None }))
    }

    /// Starts a workflow, as a group named `workflow:NAME`.
    ///
    /// # Errors
    /// A workflow name that is too long for a group's.
    pub fn workflow(topic: TopicName, name: WorkflowName, id: Option<Template>) -> Result<Self, NameError> {
        let group = format!("workflow:{name}").parse()?;
        Ok(Self::new(topic, group, Target::Workflow { name, id }))
    }

    /// A subscription with the default credit and redelivery.
    pub fn new(topic: TopicName, group: GroupName, target: Target) -> Self {
        Self { topic, group, target, credit: 16, redelivery: Redelivery::default() }
    }
}

impl Redelivery {
    /// The rest after a failed attempt, 1 for the first.
    pub fn rest(&self, attempt: u32, rng: &mut impl Rng) -> Duration {
        Backoff::between(self.backoff_first, self.backoff_max).rest(attempt, rng)
    }
}

impl Default for Redelivery {
    fn default() -> Self {
        Self { max_attempts: 10, backoff_first: Duration::from_millis(200), backoff_max: Duration::from_secs(30) }
    }
}

/// As in the manifest: `inventory:/events`, `workflow:checkout`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { service, path, policy: _ } => write!(f, "{service}:{}", path.source()),
            Self::Workflow { name, id: _ } => write!(f, "workflow:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn rests_stay_under_caps_that_double() {
        let (redelivery, mut rng) = (Redelivery::default(), StdRng::seed_from_u64(1));
        for (attempt, cap_ms) in [(1, 200), (2, 400), (3, 800), (8, 25_600), (9, 30_000), (500, 30_000)] {
            let rests: Vec<u128> = (0..200).map(|_| redelivery.rest(attempt, &mut rng).as_millis()).collect();
            let most = rests.iter().max().copied().unwrap_or(0);
            assert!(most <= cap_ms && most > cap_ms * 8 / 10, "attempt {attempt}: {most} of {cap_ms}");
        }
    }
}
