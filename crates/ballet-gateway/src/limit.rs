//! Rate limits of routes: whose requests are counted together, and whether one more may come.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ballet_manifest::{Limit, LimitBy};
use ballet_proxy::Edits;
use ballet_resilience::{Rate, RateDecision, RateLimit};
use tokio::time::Instant;

use crate::refusal::{self, Refusal};
use crate::request::View;

/// One route's limit, shared by the plans of all reloads that do not change it.
#[derive(Debug)]
pub(crate) struct LimitPlan {
    pub(crate) limit: Limit,
    /// Tells the limit in every answer.
    pub(crate) edits: Arc<Edits>,
    rates: RateLimit,
}

/// The limit's answer to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// Time to wait before going on.
    pub(crate) after: Duration,
    /// How many more could follow at once.
    pub(crate) left: u32,
    /// Until the allowance is full again.
    pub(crate) reset: Duration,
}

impl LimitPlan {
    pub(crate) fn new(limit: &Limit) -> Self {
        let count = NonZeroU32::new(limit.count).unwrap_or(NonZeroU32::MIN);
        let rate = Rate { count, per: limit.period };
        let edits = Edits::default().set("ratelimit-policy", &refusal::policy(rate)).expect("a header of digits");
        Self {
            limit: limit.clone(),
            edits: Arc::new(edits),
            rates: RateLimit::new(rate, RateLimit::KEYS, Instant::now()),
        }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rates.rate()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.rates.refused()
    }

    /// Asks leave for one request. Whoever lacks the claim or header shares one allowance with all others who do.
    pub(crate) fn check(&self, view: &View<'_>) -> Result<Admitted, Refusal> {
        let now = Instant::now();
        let wait = self.limit.wait;
        let decision = match &self.limit.by {
            LimitBy::Everyone => self.rates.check((), now, wait),
            LimitBy::Ip => match view.peer {
                std::net::IpAddr::V4(address) => self.rates.check(address, now, wait),
                // One customer has at least a /64 to draw addresses from (RFC 6177).
                std::net::IpAddr::V6(address) => self.rates.check(&address.octets()[..8], now, wait),
            },
            LimitBy::Claim(path) => match view.claims.and_then(|claims| claims.get(path)) {
                Some(serde_json::Value::String(text)) => self.rates.check(text, now, wait),
                Some(value) => self.rates.check(value.to_string(), now, wait),
                None => self.rates.check((), now, wait),
            },
            LimitBy::Header(name) => self.rates.check(view.head.raw_header(name), now, wait),
        };
        match decision {
            RateDecision::Admit { after, remaining, reset } => Ok(Admitted { after, left: remaining, reset }),
            RateDecision::Refuse { retry_after, reset } => {
                Err(Refusal::Limited { retry_after, reset, rate: self.rate() })
            }
        }
    }
}
