//! The lease table: a plain struct that is told the time and what happened, and says what follows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use ballet_core::{InstanceId, InstanceState, Instances, ServiceName, Timestamp};
use tokio::time::Instant;

use crate::{Registration, RegistryError, limits};

/// Names one registration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceId,
}

/// What the health check knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Not asked yet, or never healthy so far.
    #[default]
    Unknown,
    /// The last check was good, or not enough have failed since.
    Passing,
    /// Enough checks failed in a row.
    Failing,
}

/// One registration and what became of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As registered; its instance's state is the registrant's last word.
    pub registration: Registration,
    /// What the check says.
    pub health: Health,
    /// Last registration or heartbeat.
    pub renewed: Timestamp,
    /// Tells this registration from an earlier one with the same key.
    pub generation: u64,
    /// The stamp of `renewed` that is on disk.
    saved: Timestamp,
    /// When the lease ends, and then when the instance goes; `None` without a lease.
    ends: Option<Instant>,
    /// The lease ran out.
    expired: bool,
    /// When its item in the queue is due; items with another time are stale.
    queued: Option<Instant>,
}

/// All registrations. Pure: it is told the time.
#[derive(Debug)]
pub struct Leases {
    services: HashMap<ServiceName, Service>,
    /// One living item for each entry with a lease, at or before its end: a renewal does not touch the queue. Stale items
    /// are swept out when they outnumber the living.
    queue: BinaryHeap<Reverse<(Instant, Key)>>,
    instances: usize,
    /// Grows with each change.
    index: u64,
}

#[derive(Debug, Default)]
struct Service {
    version: u64,
    entries: BTreeMap<InstanceId, Entry>,
}

/// What a renewal asks of the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// The instance came back: others must be told.
    pub changed: bool,
    /// Its stamp on disk is old: it should go with the next batch.
    pub write: bool,
}

/// What became of an instance whose lease ran out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expired {
    /// It is `Down` now.
    Down(Key),
    /// It is gone.
    Removed(Key),
}

impl Entry {
    /// Whether the instance may be called, from the registrant's word, the lease and the check together.
    pub fn state(&self) -> InstanceState {
        let given = self.registration.instance.state;
        match (given, self.health) {
            _ if self.expired => InstanceState::Down,
            (InstanceState::Draining | InstanceState::Down, _) => given,
            (InstanceState::Starting | InstanceState::Up, _) if self.registration.check.is_none() => given,
            (InstanceState::Starting | InstanceState::Up, Health::Unknown) => InstanceState::Starting,
            (InstanceState::Starting | InstanceState::Up, Health::Passing) => InstanceState::Up,
            (InstanceState::Starting | InstanceState::Up, Health::Failing) => InstanceState::Down,
        }
    }

    /// A registration read from disk after a restart: its lease begins anew, and whoever has none gets one that only
    /// a word of its registrant's ends.
    fn restored(registration: Registration, health: Health, renewed: Timestamp, now: Instant) -> Self {
        let grace = registration.lease.unwrap_or(limits::LEASE);
        Self {
            registration,
            health,
            renewed,
            generation: 0,
            saved: renewed,
            ends: Some(now + grace),
            expired: false,
            queued: None,
        }
    }
}

impl Leases {
    /// An empty table. Versions grow from `index` on.
    pub fn new(index: u64) -> Self {
        Self { services: HashMap::new(), queue: BinaryHeap::new(), instances: 0, index }
    }

    /// Takes in a registration read from disk after a restart, with a grace of one lease.
    pub fn restore(&mut self, registration: Registration, health: Health, renewed: Timestamp, now: Instant) {
        let key = Key { service: registration.instance.service.clone(), instance: registration.instance.id.clone() };
        self.put(key, Entry::restored(registration, health, renewed, now));
    }

    /// Registers an instance or replaces its registration. Health is kept if address and check are the same.
    /// Returns the entry's generation.
    ///
    /// # Errors
    /// [`RegistryError::Full`] when a limit is reached.
    pub fn register(&mut self, registration: Registration, now: Instant, at: Timestamp) -> Result<u64, RegistryError> {
        let key = Key { service: registration.instance.service.clone(), instance: registration.instance.id.clone() };
        if self.get(&key).is_none() && self.instances >= limits::INSTANCES {
            return Err(RegistryError::Full("too many instances"));
        }
        if !self.services.contains_key(&key.service) && self.services.len() >= limits::SERVICES {
            self.services.retain(|_, service| !service.entries.is_empty());
            if self.services.len() >= limits::SERVICES {
                return Err(RegistryError::Full("too many services"));
            }
        }
        let known = self.get(&key);
        let same = known.filter(|e| {
            e.registration.instance.address == registration.instance.address
                && e.registration.check == registration.check
        });
        let entry = Entry {
            health: same.map_or(Health::Unknown, |e| e.health),
            queued: known.and_then(|e| e.queued),
            ends: registration.lease.map(|lease| now + lease),
            registration,
            renewed: at,
            generation: 0,
            saved: at,
            expired: false,
        };
        Ok(self.put(key, entry))
    }

    /// A heartbeat.
    ///
    /// # Errors
    /// [`RegistryError::UnknownInstance`]: it must register again.
    pub fn renew(&mut self, key: &Key, now: Instant, at: Timestamp) -> Result<Renewed, RegistryError> {
        let entry = self.entry(key)?;
        let was = entry.state();
        entry.renewed = at;
        entry.ends = entry.registration.lease.map(|lease| now + lease);
        entry.expired = false;
        let half = entry.registration.lease.unwrap_or(limits::LEASE) / 2;
        let write = at.since(entry.saved) >= half;
        if write {
            entry.saved = at;
        }
        let changed = entry.state() != was;
        self.enqueue(key);
        if changed {
            self.touch(&key.service);
        }
        Ok(Renewed { changed, write })
    }

    /// The registrant's new word: draining, down, up again. Counts as a heartbeat. Says whether anybody could notice.
    ///
    /// # Errors
    /// [`RegistryError::UnknownInstance`].
    pub fn set_state(
        &mut self,
        key: &Key,
        state: InstanceState,
        now: Instant,
        at: Timestamp,
    ) -> Result<bool, RegistryError> {
        let entry = self.entry(key)?;
        let was = entry.state();
        entry.registration.instance.state = state;
        self.renew(key, now, at)?;
        let entry = self.entry(key)?;
        entry.saved = at;
        let changed = entry.state() != was;
        if changed {
            self.touch(&key.service);
        }
        Ok(changed)
    }

    /// The check's verdict about one generation of a registration. Says whether anybody could notice.
    pub fn set_health(&mut self, key: &Key, generation: u64, health: Health) -> bool {
        let Ok(entry) = self.entry(key) else { return false };
        if entry.generation != generation {
            return false;
        }
        let was = entry.state();
        entry.health = health;
        let changed = entry.state() != was;
        if changed {
            self.touch(&key.service);
        }
        changed
    }

    /// Takes an instance out. Says whether it was there.
    pub fn deregister(&mut self, key: &Key) -> bool {
        let Some(service) = self.services.get_mut(&key.service) else { return false };
        if service.entries.remove(&key.instance).is_none() {
            return false;
        }
        // Its item in the queue finds nobody when it is due.
        self.instances -= 1;
        self.touch(&key.service);
        true
    }

    /// Ends what is over by `now`.
    pub fn expire(&mut self, now: Instant) -> Vec<Expired> {
        let mut out = vec![];
        while let Some(Reverse((due, _))) = self.queue.peek()
            && *due <= now
        {
            let Some(Reverse((due, key))) = self.queue.pop() else { break };
            let Ok(entry) = self.entry(&key) else { continue };
            if entry.queued != Some(due) {
                continue;
            }
            entry.queued = None;
            let Some(ends) = entry.ends else { continue };
            if ends > now {
                self.enqueue(&key);
            } else if entry.expired {
                self.deregister(&key);
                out.push(Expired::Removed(key));
            } else {
                entry.expired = true;
                entry.ends = Some(now + limits::LINGER);
                self.enqueue(&key);
                self.touch(&key.service);
                out.push(Expired::Down(key));
            }
        }
        out
    }

    /// When to call [`Self::expire`] next; it may be for nothing.
    pub fn next_end(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((due, _))| *due)
    }

    /// What is known of a service.
    pub fn instances(&self, service: &ServiceName) -> Arc<Instances> {
        let Some(known) = self.services.get(service) else { return Arc::default() };
        let shown = |entry: &Entry| {
            let mut instance = entry.registration.instance.clone();
            instance.state = entry.state();
            instance
        };
        Arc::new(Instances { version: known.version, all: known.entries.values().map(shown).collect() })
    }

    /// All services that were ever known in this run.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// One registration.
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.services.get(&key.service)?.entries.get(&key.instance)
    }

    /// All registrations.
    pub fn entries(&self) -> impl Iterator<Item = (&ServiceName, &InstanceId, &Entry)> {
        self.services.iter().flat_map(|(name, service)| service.entries.iter().map(move |(id, e)| (name, id, e)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.instances
    }

    /// Whether nobody is registered.
    pub fn is_empty(&self) -> bool {
        self.instances == 0
    }

    fn entry(&mut self, key: &Key) -> Result<&mut Entry, RegistryError> {
        let entry = self.services.get_mut(&key.service).and_then(|service| service.entries.get_mut(&key.instance));
        entry.ok_or_else(|| RegistryError::UnknownInstance {
            service: key.service.clone(),
            instance: key.instance.clone(),
        })
    }

    fn put(&mut self, key: Key, mut entry: Entry) -> u64 {
        self.touch(&key.service);
        entry.generation = self.index;
        let service = self.services.entry(key.service.clone()).or_default();
        if service.entries.insert(key.instance.clone(), entry).is_none() {
            self.instances += 1;
        }
        self.enqueue(&key);
        self.index
    }

    /// Gives the service the next version.
    fn touch(&mut self, service: &ServiceName) {
        self.index += 1;
        match self.services.get_mut(service) {
            Some(known) => known.version = self.index,
            None => {
                let known = Service { version: self.index, ..Service::default() };
                self.services.insert(service.clone(), known);
            }
        }
    }

    /// Sees to it that an entry with a lease has an item in the queue at or before its end.
    fn enqueue(&mut self, key: &Key) {
        let Ok(entry) = self.entry(key) else { return };
        let Some(ends) = entry.ends.filter(|ends| entry.queued.is_none_or(|due| due > *ends)) else { return };
        entry.queued = Some(ends);
        self.queue.push(Reverse((ends, key.clone())));
        if self.queue.len() > 2 * self.instances + 1024 {
            let mut items = std::mem::take(&mut self.queue).into_vec();
            items.retain(|Reverse((due, key))| self.get(key).is_some_and(|e| e.queued == Some(*due)));
            items.sort_unstable();
            items.dedup();
            self.queue = items.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ballet_core::Instance;
    use proptest::prelude::*;

    use super::*;
    use crate::HealthCheck;

    fn key(service: usize, instance: usize) -> Key {
        Key {
            service: ["orders", "payments"][service].parse().unwrap(),
            instance: format!("{}-{instance}", ["orders", "payments"][service]).parse().unwrap(),
        }
    }

    fn registration(key: &Key, lease_s: u64, checked: bool) -> Registration {
        let instance = Instance {
            id: key.instance.clone(),
            service: key.service.clone(),
            address: "127.0.0.1:8080".parse().unwrap(),
            state: InstanceState::Up,
            version: String::new(),
            metadata: BTreeMap::new(),
        };
        let lease = (lease_s > 0).then(|| Duration::from_secs(lease_s));
        Registration { instance, lease, check: checked.then(HealthCheck::default) }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Register { lease_s: u64, checked: bool },
        Renew,
        Deregister,
        State(InstanceState),
        Health(Health),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        use InstanceState::{Down, Draining, Starting, Up};
        prop_oneof![
            3 => (0u64..40, any::<bool>()).prop_map(|(lease_s, checked)| Step::Register { lease_s, checked }),
            4 => Just(Step::Renew),
            1 => Just(Step::Deregister),
            2 => prop_oneof![Just(Starting), Just(Up), Just(Draining), Just(Down)].prop_map(Step::State),
            2 => prop_oneof![Just(Health::Unknown), Just(Health::Passing), Just(Health::Failing)].prop_map(Step::Health),
            5 => (0u64..30_000).prop_map(Step::Pass),
        ]
    }

    /// What a registration is, told from its whole story.
    #[derive(Clone)]
    struct Told {
        lease: Option<Duration>,
        heard: Instant,
        given: InstanceState,
        check: Option<Health>,
    }

    impl Told {
        fn state(&self, now: Instant) -> Option<InstanceState> {
            use InstanceState::{Down, Draining, Starting, Up};
            if let Some(lease) = self.lease {
                if now >= self.heard + lease + limits::LINGER {
                    return None;
                }
                if now >= self.heard + lease {
                    return Some(Down);
                }
            }
            Some(match (self.given, self.check) {
                (Draining, _) => Draining,
                (Down, _) | (_, Some(Health::Failing)) => Down,
                (given, None) => given,
                (_, Some(Health::Unknown)) => Starting,
                (_, Some(Health::Passing)) => Up,
            })
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_ledger(steps in proptest::collection::vec((0usize..2, 0usize..3, step()), 1..120)) {
            let mut now = Instant::now();
            let mut leases = Leases::new(7);
            let mut told: BTreeMap<Key, Told> = BTreeMap::new();
            let mut shown: HashMap<ServiceName, Arc<Instances>> = HashMap::new();
            for (service, instance, step) in steps {
                let key = key(service, instance);
                match step {
                    Step::Register { lease_s, checked } => {
                        let health = told.get(&key).and_then(|t| t.check).unwrap_or_default();
                        leases.register(registration(&key, lease_s, checked), now, Timestamp(0)).unwrap();
                        let lease = (lease_s > 0).then(|| Duration::from_secs(lease_s));
                        told.insert(key.clone(), Told { lease, heard: now, given: InstanceState::Up, check: checked.then_some(health) });
                    }
                    Step::Renew => {
                        prop_assert_eq!(leases.renew(&key, now, Timestamp(0)).is_ok(), told.contains_key(&key));
                        if let Some(t) = told.get_mut(&key) {
                            t.heard = now;
                        }
                    }
                    Step::Deregister => prop_assert_eq!(leases.deregister(&key), told.remove(&key).is_some()),
                    Step::State(given) => {
                        prop_assert_eq!(leases.set_state(&key, given, now, Timestamp(0)).is_ok(), told.contains_key(&key));
                        if let Some(t) = told.get_mut(&key) {
                            (t.given, t.heard) = (given, now);
                        }
                    }
                    Step::Health(health) => {
                        let generation = leases.get(&key).map_or(0, |e| e.generation);
                        prop_assert!(!leases.set_health(&key, generation + 1, health), "of another registration");
                        leases.set_health(&key, generation, health);
                        if let Some(t) = told.get_mut(&key) {
                            t.check = t.check.map(|_| health);
                        }
                    }
                    Step::Pass(ms) => {
                        // As the engine does: wakes at each end.
                        let until = now + Duration::from_millis(ms);
                        while let Some(end) = leases.next_end().filter(|end| *end <= until) {
                            leases.expire(end);
                        }
                        now = until;
                    }
                }
                told.retain(|_, t| t.state(now).is_some());
                prop_assert_eq!(leases.len(), told.len());
                prop_assert!(leases.queue.len() <= 2 * told.len() + 1025);
                for name in ["orders", "payments"].map(|n| n.parse::<ServiceName>().unwrap()) {
                    let known = leases.instances(&name);
                    let states: Vec<_> = known.all.iter().map(|i| (i.id.clone(), i.state)).collect();
                    let expected: Vec<_> = told.iter()
                        .filter(|(key, _)| key.service == name)
                        .map(|(key, t)| (key.instance.clone(), t.state(now).unwrap()))
                        .collect();
                    prop_assert_eq!(states, expected);
                    if let Some(before) = shown.insert(name, known.clone()) {
                        prop_assert!(before.all == known.all || known.version > before.version, "a change has a version");
                        prop_assert!(known.version >= before.version);
                    }
                }
            }
        }
    }

    #[test]
    fn the_queue_forgets_who_comes_and_goes() {
        let (mut leases, now) = (Leases::new(0), Instant::now());
        for _ in 0..10_000 {
            leases.register(registration(&key(0, 1), 3600, false), now, Timestamp(0)).unwrap();
            leases.deregister(&key(0, 1));
        }
        assert!(leases.queue.len() < 2000 && leases.is_empty());
    }

    #[test]
    fn a_full_table_refuses_newcomers_only() {
        let (mut leases, now) = (Leases::new(0), Instant::now());
        for n in 0..limits::INSTANCES {
            leases.register(registration(&key(0, n), 0, false), now, Timestamp(0)).unwrap();
        }
        let full = leases.register(registration(&key(0, limits::INSTANCES), 0, false), now, Timestamp(0));
        assert!(matches!(full, Err(RegistryError::Full(_))));
        assert!(leases.register(registration(&key(0, 1), 0, false), now, Timestamp(0)).is_ok());
    }
}
