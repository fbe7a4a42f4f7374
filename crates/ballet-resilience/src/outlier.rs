//! Outlier ejection: leaves a single bad instance out while its neighbours work. The breaker guards the whole service.
//!
//! An instance is ejected after so many failures in a row, or when so great a share of its calls fails in a window of
//! ten seconds (after Envoy's outlier detection). It always heals: an ejection ends by itself; the next failure then
//! ejects it again, for twice as long up to a limit, and a success forgives all. Never are more than half of the
//! instances ejected, so a lone instance never is: what ails them all is the breaker's business.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::Outcome;
use crate::rng::nanos;

/// When an instance is ejected and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierPolicy {
    /// Failures in a row that eject. Default: 5.
    pub consecutive: u32,
    /// Share of failed calls in a window of ten seconds that ejects, 0 to 1. Default: 0.5.
    pub share: f64,
    /// The share is not judged before so many calls in the window. Default: 20.
    pub share_calls: u32,
    /// The first ejection lasts so long; each further one twice as long. Default: 2 s.
    pub rest: Duration,
    /// No ejection lasts longer. Default: 30 s.
    pub rest_max: Duration,
}

/// The instances of one service, as seen by one caller.
#[derive(Debug)]
pub struct Outlier {
    origin: Instant,
    policy: OutlierPolicy,
    members: Mutex<Vec<Weak<Member>>>,
}

/// One instance. It leaves the group when its last `Arc` is dropped.
#[derive(Debug)]
pub struct Member {
    origin: Instant,
    /// Failures in a row.
    failures: AtomicU32,
    /// The window's number in the upper 24 bits, then 20 bits of calls, 20 bits of failures.
    window: AtomicU64,
    /// Ejected until then, in nanoseconds since the origin.
    ejected_until: AtomicU64,
    /// Ejections since it was last well.
    ejections: AtomicU32,
}

const WINDOW: Duration = Duration::from_secs(10);
const COUNT: u64 = (1 << 20) - 1;

impl Default for OutlierPolicy {
    fn default() -> Self {
        Self {
            consecutive: 5,
            share: 0.5,
            share_calls: 20,
            rest: Duration::from_secs(2),
            rest_max: Duration::from_secs(30),
        }
    }
}

impl Outlier {
    /// A group without instances.
    pub fn new(policy: OutlierPolicy, now: Instant) -> Self {
        Self { origin: now, policy, members: Mutex::default() }
    }

    /// Takes an instance into the group, as a healthy one.
    pub fn join(&self) -> Arc<Member> {
        let member = Arc::new(Member {
            origin: self.origin,
            failures: AtomicU32::new(0),
            window: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
        });
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|m| m.strong_count() > 0);
        members.push(Arc::downgrade(&member));
        member
    }

    /// Notes how a call to a member ended; says for how long it is ejected, if this ejected it.
    pub fn record(&self, member: &Member, outcome: Outcome, now: Instant) -> Option<Duration> {
        let now = nanos(self.origin, now);
        let (calls, failed) = member.count(outcome, now);
        match outcome {
            Outcome::Success => {
                // Loads first: a store to a line that every call reads costs more than the check.
                if member.failures.load(Ordering::Relaxed) != 0 {
                    member.failures.store(0, Ordering::Relaxed);
                }
                if member.ejections.load(Ordering::Relaxed) != 0 {
                    member.ejections.store(0, Ordering::Relaxed);
                }
                None
            }
            Outcome::Failure => {
                let row = member.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                let share =
                    calls >= self.policy.share_calls && f64::from(failed) >= self.policy.share * f64::from(calls);
                (row >= self.policy.consecutive || share).then(|| self.eject(member, now)).flatten()
            }
        }
    }

    /// How many members are ejected at `now`.
    pub fn ejected(&self, now: Instant) -> usize {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.iter().filter_map(Weak::upgrade).filter(|m| m.is_ejected(now)).count()
    }

    fn eject(&self, member: &Member, now: u64) -> Option<Duration> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|m| m.strong_count() > 0);
        let until = |m: &Member| m.ejected_until.load(Ordering::Relaxed);
        let ejected = members.iter().filter_map(Weak::upgrade).filter(|m| until(m) > now).count();
        if until(member) > now || (ejected + 1) * 2 > members.len() {
            return None;
        }
        let times = member.ejections.fetch_add(1, Ordering::Relaxed).min(16);
        let rest = self.policy.rest.saturating_mul(1 << times).min(self.policy.rest_max);
        // On probation: the first failure afterwards ejects it again. The failing window is forgotten.
        member.failures.store(self.policy.consecutive.saturating_sub(1), Ordering::Relaxed);
        member.window.store(0, Ordering::Relaxed);
        member.ejected_until.store(now.saturating_add(rest.as_nanos() as u64), Ordering::Relaxed);
        Some(rest)
    }
}

impl Member {
    /// Whether nothing should be sent there at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && until > nanos(self.origin, now)
    }

    /// Counts into the window of `now`; says its calls and failures.
    fn count(&self, outcome: Outcome, now: u64) -> (u32, u32) {
        let number = ((now / WINDOW.as_nanos() as u64) & 0xff_ffff) << 40;
        let failed = u64::from(outcome == Outcome::Failure);
        let mut seen = self.window.load(Ordering::Relaxed);
        loop {
            let (calls, failures) =
                if seen & !((1 << 40) - 1) == number { ((seen >> 20) & COUNT, seen & COUNT) } else { (0, 0) };
            // A full counter stays: by then the share hardly moves.
            let full = calls == COUNT;
            let (calls, failures) = if full { (calls, failures) } else { (calls + 1, failures + failed) };
            let next = number | calls << 20 | failures;
            match self.window.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return (calls as u32, failures as u32),
                Err(newer) => seen = newer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn failures_in_a_row_eject_and_rests_double_until_a_success() {
        let t = Instant::now();
        let group = Outlier::new(OutlierPolicy::default(), t);
        let (bad, _good) = (group.join(), group.join());
        let fail = |n, at| (0..n).filter_map(|_| group.record(&bad, Outcome::Failure, at)).next();
        assert_eq!(fail(4, t), None);
        group.record(&bad, Outcome::Success, t);
        assert_eq!(fail(4, t), None, "a success breaks the row");
        assert_eq!(fail(1, t), Some(secs(2)));
        assert!(bad.is_ejected(t + secs(1)) && !bad.is_ejected(t + secs(2)), "it heals");
        assert_eq!(fail(1, t + secs(2)), Some(secs(4)), "one failure on probation");
        assert_eq!(fail(1, t + secs(6)), Some(secs(8)));
        group.record(&bad, Outcome::Success, t + secs(14));
        assert_eq!(fail(5, t + secs(30)), Some(secs(2)), "a success forgives all");
    }

    #[test]
    fn a_great_share_of_failures_ejects_too() {
        let t = Instant::now();
        let group = Outlier::new(OutlierPolicy::default(), t);
        let (bad, _good) = (group.join(), group.join());
        let ejected = (0..40).find_map(|n| {
            let outcome = if n % 2 == 0 { Outcome::Success } else { Outcome::Failure };
            group.record(&bad, outcome, t).map(|_| n)
        });
        assert_eq!(ejected, Some(19), "half of twenty");
    }

    #[test]
    fn a_lone_instance_stays_and_one_that_left_counts_no_more() {
        let t = Instant::now();
        let group = Outlier::new(OutlierPolicy::default(), t);
        let bad = group.join();
        let fail = || (0..9).find_map(|_| group.record(&bad, Outcome::Failure, t));
        assert_eq!(fail(), None);
        let other = group.join();
        drop(other);
        assert_eq!(fail(), None);
        let _other = group.join();
        assert!(fail().is_some());
    }

    proptest! {
        /// Whatever happens: at most half are ejected, and half a minute later none is.
        #[test]
        fn never_more_than_half_and_always_heals(
            size in 1usize..6,
            steps in proptest::collection::vec((any::<usize>(), any::<bool>(), 0u64..3000), 1..300),
        ) {
            let mut now = Instant::now();
            let group = Outlier::new(OutlierPolicy { consecutive: 2, share_calls: 4, ..OutlierPolicy::default() }, now);
            let members: Vec<_> = (0..size).map(|_| group.join()).collect();
            for (who, good, pause) in steps {
                now += Duration::from_millis(pause);
                let outcome = if good { Outcome::Success } else { Outcome::Failure };
                let rest = group.record(&members[who % size], outcome, now);
                prop_assert_eq!(rest.is_some() && !members[who % size].is_ejected(now), false);
                prop_assert!(group.ejected(now) * 2 <= size);
            }
            prop_assert_eq!(group.ejected(now + secs(30)), 0);
        }
    }
}
