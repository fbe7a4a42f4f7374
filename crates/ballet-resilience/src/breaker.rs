//! Circuit breaker: stop calling what keeps failing, ask again later.
//!
//! Names follow Nygard, *Release It!*, 2nd ed.: **closed** lets calls pass, **open** refuses them,
//! **half-open** admits one probe. Some proxies use open and closed the other way round.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ballet_core::BreakerPolicy;
use tokio::time::Instant;

/// Guards one upstream. Pure: it is told the time, it never sleeps.
#[derive(Debug)]
pub struct Breaker {
    failures: u32,
    open_for: Duration,
    state: State,
    /// Grows with every change of state.
    term: u64,
}

#[derive(Debug)]
enum State {
    Closed { consecutive_failures: u32 },
    Open { until: Instant },
    HalfOpen { until: Instant },
}

/// Leave to call. Hand it back with [`Breaker::record`]; dropping it counts for nothing.
#[derive(Debug)]
#[must_use = "hand it back with `record`"]
pub struct Permit {
    term: u64,
}

/// The breaker's answer to who wants to call.
#[derive(Debug)]
pub enum Admission {
    /// Call.
    Call(Permit),
    /// Call: the breaker was open and has gone half-open; this call decides.
    Probe(Permit),
    /// Do not call; ask again after this time.
    Refuse {
        /// Time until the next probe.
        retry_after: Duration,
    },
}

/// How a call ended, as far as the upstream's health goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream works; a refusal of the request (4xx) is a success.
    Success,
    /// No whole answer, or one that says that the upstream is unwell.
    Failure,
}

/// A breaker's state, for people and metrics. An open one stays so until somebody asks for leave after its rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// One probe is under way, the other calls are refused.
    HalfOpen,
}

/// A [`Breaker`] that many tasks share. A call that succeeds while nothing has failed takes no lock.
pub struct SharedBreaker {
    /// The term while the breaker is closed and counts no failure, else [`UNWELL`].
    calm: AtomicU64,
    heart: Mutex<Breaker>,
}

const UNWELL: u64 = u64::MAX;

impl Breaker {
    /// A closed breaker.
    pub fn new(policy: &BreakerPolicy) -> Self {
        Self {
            failures: policy.failures.get(),
            open_for: policy.open_for,
            state: State::Closed { consecutive_failures: 0 },
            term: 0,
        }
    }

    /// Obeys another policy from the next event on; a rest that has begun keeps its length.
    pub fn set_policy(&mut self, policy: &BreakerPolicy) {
        (self.failures, self.open_for) = (policy.failures.get(), policy.open_for);
    }

    /// Its state.
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// How often its state has changed.
    pub fn transitions(&self) -> u64 {
        self.term
    }

    /// Asks leave to call the upstream at `now`.
    pub fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Closed { .. } => Admission::Call(Permit { term: self.term }),
            State::Open { until } | State::HalfOpen { until } if now < until => {
                Admission::Refuse { retry_after: until - now }
            }
            // Half-open also ends here: a probe whose caller hung up never reports,
            // so after `open_for` the next caller takes its place.
            State::Open { .. } | State::HalfOpen { .. } => {
                self.enter(State::HalfOpen { until: now + self.open_for });
                Admission::Probe(Permit { term: self.term })
            }
        }
    }

    /// Notes how a permitted call ended; says the new state if this changed it.
    pub fn record(&mut self, permit: Permit, outcome: Outcome, now: Instant) -> Option<BreakerState> {
        // A slow call from before the last change of state says nothing about today.
        if permit.term != self.term {
            return None;
        }
        match (outcome, &mut self.state) {
            (Outcome::Success, State::Closed { consecutive_failures }) => {
                *consecutive_failures = 0;
                None
            }
            (Outcome::Success, State::Open { .. } | State::HalfOpen { .. }) => {
                self.enter(State::Closed { consecutive_failures: 0 })
            }
            (Outcome::Failure, State::Closed { consecutive_failures: n }) if *n + 1 < self.failures => {
                *n += 1;
                None
            }
            (Outcome::Failure, State::Closed { .. } | State::Open { .. } | State::HalfOpen { .. }) => {
                self.enter(State::Open { until: now + self.open_for })
            }
        }
    }

    fn enter(&mut self, state: State) -> Option<BreakerState> {
        self.state = state;
        self.term += 1;
        Some(self.state())
    }

    fn calm(&self) -> u64 {
        match self.state {
            State::Closed { consecutive_failures: 0 } => self.term,
            State::Closed { .. } | State::Open { .. } | State::HalfOpen { .. } => UNWELL,
        }
    }
}

impl SharedBreaker {
    /// A closed breaker.
    pub fn new(policy: &BreakerPolicy) -> Self {
        Self { calm: AtomicU64::new(0), heart: Mutex::new(Breaker::new(policy)) }
    }

    /// See [`Breaker::set_policy`].
    pub fn set_policy(&self, policy: &BreakerPolicy) {
        self.heart().set_policy(policy);
    }

    /// See [`Breaker::state`].
    pub fn state(&self) -> BreakerState {
        self.heart().state()
    }

    /// See [`Breaker::transitions`].
    pub fn transitions(&self) -> u64 {
        self.heart().transitions()
    }

    /// See [`Breaker::admit`].
    pub fn admit(&self, now: Instant) -> Admission {
        let term = self.calm.load(Ordering::Acquire);
        if term != UNWELL {
            return Admission::Call(Permit { term });
        }
        let mut heart = self.heart();
        let admission = heart.admit(now);
        self.calm.store(heart.calm(), Ordering::Release);
        admission
    }

    /// See [`Breaker::record`].
    pub fn record(&self, permit: Permit, outcome: Outcome, now: Instant) -> Option<BreakerState> {
        // While all is calm a success changes nothing. A failure noted at this very moment then came after it.
        if outcome == Outcome::Success && self.calm.load(Ordering::Acquire) == permit.term {
            return None;
        }
        let mut heart = self.heart();
        let change = heart.record(permit, outcome, now);
        self.calm.store(heart.calm(), Ordering::Release);
        change
    }

    fn heart(&self) -> MutexGuard<'_, Breaker> {
        self.heart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.heart().fmt(f)
    }
}

/// `closed`, `open` or `half-open`.
impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn policy(failures: u32) -> BreakerPolicy {
        BreakerPolicy { failures: NonZeroU32::new(failures).unwrap(), open_for: secs(5) }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn permit(admission: Admission) -> Permit {
        match admission {
            Admission::Call(permit) | Admission::Probe(permit) => permit,
            Admission::Refuse { retry_after } => panic!("refused for {retry_after:?}"),
        }
    }

    #[test]
    fn it_opens_rests_probes_and_closes() {
        let (breaker, t) = (SharedBreaker::new(&policy(2)), Instant::now());
        let (first, second, late) = (permit(breaker.admit(t)), permit(breaker.admit(t)), permit(breaker.admit(t)));
        assert_eq!(breaker.record(first, Outcome::Failure, t), None);
        assert_eq!(breaker.record(second, Outcome::Failure, t), Some(BreakerState::Open));
        let Admission::Refuse { retry_after } = breaker.admit(t + secs(2)) else { panic!("it is open") };
        assert_eq!(retry_after, secs(3));

        let Admission::Probe(probe) = breaker.admit(t + secs(5)) else { panic!("the rest is over") };
        assert!(matches!(breaker.admit(t + secs(5)), Admission::Refuse { .. }), "one probe at a time");
        assert_eq!(breaker.record(late, Outcome::Success, t + secs(6)), None, "an answer from before says nothing");
        assert_eq!(breaker.record(probe, Outcome::Failure, t + secs(6)), Some(BreakerState::Open));

        drop(permit(breaker.admit(t + secs(11))));
        assert!(matches!(breaker.admit(t + secs(15)), Admission::Refuse { .. }));
        let probe = permit(breaker.admit(t + secs(16)));
        assert_eq!(breaker.record(probe, Outcome::Success, t + secs(16)), Some(BreakerState::Closed));
        assert!(matches!(breaker.admit(t + secs(16)), Admission::Call(_)));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Admit,
        /// Ends one of the calls under way.
        End(usize, bool),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Admit),
            4 => (any::<usize>(), any::<bool>()).prop_map(|(n, good)| Step::End(n, good)),
            1 => (0..8_000u64).prop_map(Step::Pass),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// The shared one, with its way around the lock, decides as the plain one; at most one probe is out at a time;
        /// whoever waits long enough gets leave.
        #[test]
        fn shared_and_plain_agree(steps in steps(), failures in 1u32..4) {
            let (shared, mut plain) = (SharedBreaker::new(&policy(failures)), Breaker::new(&policy(failures)));
            let mut now = Instant::now();
            let mut calls: Vec<(Permit, Permit)> = vec![];
            for step in steps {
                match step {
                    Step::Admit => match (shared.admit(now), plain.admit(now)) {
                        (Admission::Call(a), Admission::Call(b)) | (Admission::Probe(a), Admission::Probe(b)) => calls.push((a, b)),
                        (Admission::Refuse { retry_after: a }, Admission::Refuse { retry_after: b }) => {
                            prop_assert_eq!(a, b);
                            prop_assert!(a <= secs(5), "it always heals");
                        }
                        (a, b) => prop_assert!(false, "shared says {:?}, plain {:?}", a, b),
                    },
                    Step::End(n, good) if !calls.is_empty() => {
                        let (a, b) = calls.swap_remove(n % calls.len());
                        let outcome = if good { Outcome::Success } else { Outcome::Failure };
                        prop_assert_eq!(shared.record(a, outcome, now), plain.record(b, outcome, now));
                    }
                    Step::End(..) => {}
                    Step::Pass(ms) => now += Duration::from_millis(ms),
                }
                prop_assert_eq!(shared.state(), plain.state());
                prop_assert_eq!(shared.transitions(), plain.transitions());
            }
            let refused = matches!(plain.admit(now + secs(5)), Admission::Refuse { .. });
            prop_assert!(!refused);
        }
    }
}
