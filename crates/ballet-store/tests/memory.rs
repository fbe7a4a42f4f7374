//! The reference implementations pass the suites that every driver passes.
#![cfg(feature = "conformance")]

use std::sync::Arc;

use ballet_store::conformance::{BrokerRig, JournalRig};
use ballet_store::{Broker, Journal, Memory, MemoryBroker};

struct InMemory(Arc<Memory>);

impl JournalRig for InMemory {
    fn handle(&self) -> Arc<dyn Journal> {
        self.0.clone()
    }
}

struct BrokerInMemory(Arc<MemoryBroker>);

impl BrokerRig for BrokerInMemory {
    fn handle(&self) -> Arc<dyn Broker> {
        self.0.clone()
    }
}

mod journal {
    use super::*;
    ballet_store::journal_conformance!(InMemory(Arc::new(Memory::default())));
}

mod broker {
    use super::*;
    ballet_store::broker_conformance!(BrokerInMemory(Arc::new(MemoryBroker::default())));
}
