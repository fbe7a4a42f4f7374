//! What a handler has at hand.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;

use ballet_client::Client;
use ballet_core::{Clock, Timestamp, TraceContext};

use crate::auth::Keys;
use crate::calls::Peer;
use crate::command::Flights;
use crate::events::Handlers;
use crate::projection::Projector;
use crate::{Config, Result, Store};

/// What a handler has at hand: an extractor (`ctx: Context`) and the router's state. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) client: Client,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) keys: Keys,
    pub(crate) flights: Flights,
    pub(crate) handlers: Handlers,
    pub(crate) projector: Projector,
    pub(crate) states: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) rng: Mutex<StdRng>,
}

impl Context {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// The service's own database.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The configuration, with every variable of the environment.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Another service, at `$<NAME>_URL`.
    pub fn service(&self, name: &str) -> Peer {
        Peer {
            client: self.0.client.clone(),
            name: name.to_owned(),
            url: self.0.config.service_url(name).map(str::to_owned),
        }
    }

    /// The time to stamp records with.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// What [`Builder::state`](crate::Builder::state) was given.
    ///
    /// # Panics
    /// If nothing of that type was given: a mistake in `main` that the first request shows.
    pub fn state<T: Any + Send + Sync>(&self) -> &T {
        let state = self.0.states.get(&TypeId::of::<T>()).and_then(|state| state.downcast_ref());
        state.unwrap_or_else(|| panic!("`Builder::state` was not given a `{}`", std::any::type_name::<T>()))
    }

    /// Waits until the service is asked to end; for loops of [`Builder::task`](crate::Builder::task).
    pub async fn stopping(&self) {
        let mut stop = self.0.stop.clone();
        // The sender lives as long as the service; when it is gone, the service is.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Whether the service is asked to end.
    pub fn is_stopping(&self) -> bool {
        *self.0.stop.borrow()
    }

    /// Builds a projection anew from the commands' tables.
    ///
    /// # Errors
    /// No projection has that name; those of the projection and the store.
    pub async fn rebuild(&self, projection: &str) -> Result<()> {
        let (projector, name) = (self.0.projector.clone(), projection.to_owned());
        self.0.store.write(move |tx| projector.rebuild(&name, tx)).await
    }

    pub(crate) fn new_trace(&self) -> TraceContext {
        TraceContext::root(&mut *self.0.rng.lock().expect("nobody panics while drawing"))
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    pub(crate) fn flights(&self) -> &Flights {
        &self.0.flights
    }

    pub(crate) fn handlers(&self) -> &Handlers {
        &self.0.handlers
    }
}

/// A seed for what must only differ between processes: ids of traces, jitter.
pub(crate) fn seeded() -> StdRng {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    StdRng::seed_from_u64(high ^ low)
}
