//! What the engine has published: snapshots that are read without asking it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ballet_core::{Instances, ServiceName};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::limits;

#[derive(Debug, Default)]
pub(crate) struct Published {
    services: RwLock<HashMap<ServiceName, watch::Sender<Arc<Instances>>>>,
    watches: AtomicUsize,
    closed: AtomicBool,
}

/// One parked watch; counted out when dropped.
struct Parked<'a>(&'a AtomicUsize);

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Published {
    pub(crate) fn publish(&self, service: &ServiceName, instances: Arc<Instances>) {
        let known = self.services.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = known.get(service) {
            sender.send_replace(instances);
            return;
        }
        drop(known);
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        // A watcher may have made it between the two locks.
        services.entry(service.clone()).or_insert_with(|| watch::Sender::new(Arc::default())).send_replace(instances);
    }

    pub(crate) fn get(&self, service: &ServiceName) -> Arc<Instances> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        services.get(service).map(|sender| sender.borrow().clone()).unwrap_or_default()
    }

    pub(crate) fn all(&self) -> Vec<(ServiceName, Arc<Instances>)> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = services
            .iter()
            .map(|(name, sender)| (name.clone(), sender.borrow().clone()))
            // Somebody watches for it, but nobody ever registered.
            .filter(|(_, instances)| instances.version > 0)
            .collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// The engine is gone: wakes everyone who watches.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.services.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What is known once its version differs from `seen`, or after `wait`; `None` once the engine is gone.
    pub(crate) async fn changed(&self, service: &ServiceName, seen: u64, wait: Duration) -> Option<Arc<Instances>> {
        let known = self.wait(service, seen, wait).await;
        (!self.closed.load(Ordering::Acquire)).then_some(known)
    }

    async fn wait(&self, service: &ServiceName, seen: u64, wait: Duration) -> Arc<Instances> {
        let now = self.get(service);
        if now.version != seen || self.watches.fetch_add(1, Ordering::Relaxed) >= limits::WATCHES {
            if now.version == seen {
                self.watches.fetch_sub(1, Ordering::Relaxed);
            }
            return now;
        }
        let _parked = Parked(&self.watches);
        let Some(mut changes) = self.subscribe(service) else { return now };
        // Whoever subscribed after `close` would find nobody to wake it.
        if self.closed.load(Ordering::Acquire) {
            return now;
        }
        let woken = timeout(wait.min(limits::WATCH), changes.wait_for(|known| known.version != seen)).await;
        match woken {
            Ok(Ok(known)) => known.clone(),
            // The time is over, or the engine is.
            Ok(Err(_)) | Err(_) => self.get(service),
        }
    }

    pub(crate) fn watches(&self) -> usize {
        self.watches.load(Ordering::Relaxed)
    }

    fn subscribe(&self, service: &ServiceName) -> Option<watch::Receiver<Arc<Instances>>> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = services.get(service) {
            return Some(sender.subscribe());
        }
        drop(services);
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        if services.len() >= limits::SERVICES {
            services.retain(|_, sender| sender.receiver_count() > 0 || !sender.borrow().all.is_empty());
        }
        if services.len() >= 2 * limits::SERVICES {
            return None;
        }
        Some(services.entry(service.clone()).or_insert_with(|| watch::Sender::new(Arc::default())).subscribe())
    }
}
