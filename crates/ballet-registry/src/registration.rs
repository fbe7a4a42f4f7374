//! What a registrant says of an instance, and the rules for it.

use std::time::Duration;

use ballet_core::Instance;

use crate::{RegistryError, limits};

/// An instance as its registrant describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The instance. Its state is the registrant's word; with a `check`, `Starting` and `Up` are decided by the check.
    pub instance: Instance,
    /// How long it lives without a heartbeat; `None`: until it is deregistered. 1 s to 24 h. Default: `None`.
    pub lease: Option<Duration>,
    /// How its health is asked. Default: not at all.
    pub check: Option<HealthCheck>,
}

/// A health check by `GET`: any 2xx is healthy. Until the first healthy answer it is repeated five times a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Path with query. Default: `/readyz`.
    pub path: String,
    /// Time between two checks, 100 ms to 1 h. Default: 2 s.
    pub interval: Duration,
    /// A check without an answer fails after this, 10 ms to 60 s. Default: 1 s.
    pub timeout: Duration,
    /// Failed checks in a row that make an instance `Down`, 1 to 100. Default: 2.
    pub failures: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { path: "/readyz".into(), interval: Duration::from_secs(2), timeout: Duration::from_secs(1), failures: 2 }
    }
}

impl Registration {
    /// Registers the instance without lease and check: the registrant speaks for it.
    pub fn new(instance: Instance) -> Self {
        Self { instance, lease: None, check: None }
    }

    /// Makes it depend on heartbeats.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Makes it depend on a check.
    #[must_use]
    pub fn check(mut self, check: HealthCheck) -> Self {
        self.check = Some(check);
        self
    }

    /// Checks the rules.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`] with the first field that breaks one.
    pub fn validate(&self) -> Result<(), RegistryError> {
        let bad = |field, detail: &str| Err(RegistryError::Invalid { field, detail: detail.into() });
        let instance = &self.instance;
        if instance.address.port() == 0 || instance.address.ip().is_unspecified() {
            return bad("address", "must be one that can be called: not `0.0.0.0`, not port 0");
        }
        let said: usize = instance.metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
        if instance.version.len() + said > limits::METADATA_BYTES {
            return bad("metadata", "and `version` must have at most 8 KiB together");
        }
        if instance.version.contains('\0') {
            return bad("version", "must not contain U+0000");
        }
        if self.lease.is_some_and(|lease| !(limits::LEASE_MIN..=limits::LEASE_MAX).contains(&lease)) {
            return bad("lease", "must be from `1s` to `24h`");
        }
        let Some(check) = &self.check else { return Ok(()) };
        let visible = check.path.bytes().all(|b| b.is_ascii_graphic()) && check.path.len() <= 1024;
        if !check.path.starts_with('/') || !visible {
            return bad("check.path", "must begin with `/` and have at most 1,024 visible ASCII characters");
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&check.interval) {
            return bad("check.interval", "must be from `100ms` to `1h`");
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&check.timeout) {
            return bad("check.timeout", "must be from `10ms` to `60s`");
        }
        if !(1..=100).contains(&check.failures) {
            return bad("check.failures", "must be from 1 to 100");
        }
        Ok(())
    }
}
