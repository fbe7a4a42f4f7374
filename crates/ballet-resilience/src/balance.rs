//! Balancing: power of two choices (Mitzenmacher, 2001) over peak EWMA of latency (Finagle's `PeakEwma`).
//!
//! An endpoint's cost is its smoothed latency times the calls under way plus one. A latency above the average counts
//! at once, one below it slowly: so an endpoint that stalls is left alone at once and comes back by degrees.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::Outcome;
use crate::rng::{below, nanos};

/// How loaded one endpoint is.
#[derive(Debug)]
pub struct Load {
    origin: Instant,
    /// Smoothed latency in nanoseconds as the bits of an `f64`; 0 before the first answer.
    latency: AtomicU64,
    /// When it was noted, in nanoseconds since `origin`.
    noted: AtomicU64,
    pending: AtomicU32,
}

/// One call under way. [`Tracked::finish`] notes its latency; dropping it only counts it out.
#[derive(Debug)]
pub struct Tracked {
    load: Arc<Load>,
    began: Instant,
}

/// After this long an old latency weighs 1/e. Finagle's default.
const DECAY: Duration = Duration::from_secs(10);

impl Load {
    /// An endpoint nobody has called yet; costs nothing until its first answer, or call under way.
    pub fn new(now: Instant) -> Self {
        Self { origin: now, latency: AtomicU64::new(0), noted: AtomicU64::new(0), pending: AtomicU32::new(0) }
    }

    /// Counts a call in.
    pub fn begin(self: &Arc<Self>, now: Instant) -> Tracked {
        self.pending.fetch_add(1, Ordering::Relaxed);
        Tracked { load: self.clone(), began: now }
    }

    /// Calls under way.
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Smoothed latency as of `now`; zero before the first answer.
    pub fn latency(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.smoothed(nanos(self.origin, now)) as u64)
    }

    /// What a call to it would cost; comparable between endpoints.
    pub fn cost(&self, now: Instant) -> f64 {
        /// An endpoint that has calls under way but never answered may be stuck: others first. (Finagle's penalty.)
        const UNKNOWN: f64 = 1e15;
        let pending = f64::from(self.pending());
        let latency = self.smoothed(nanos(self.origin, now));
        if latency == 0.0 && pending > 0.0 { UNKNOWN + pending } else { latency * (pending + 1.0) }
    }

    /// Notes the latency of one answer. A failure never makes an endpoint look quicker than it was: who fails at once
    /// must not attract everyone.
    pub fn note(&self, latency: Duration, outcome: Outcome, now: Instant) {
        let now = nanos(self.origin, now);
        let (old, sample) = (self.smoothed(now), latency.as_nanos() as f64);
        let new = match outcome {
            _ if sample >= old => sample,
            Outcome::Failure => old,
            Outcome::Success => {
                let age = now.saturating_sub(self.noted.load(Ordering::Relaxed));
                let keep = (-(age as f64) / DECAY.as_nanos() as f64).exp();
                f64::from_bits(self.latency.load(Ordering::Relaxed)) * keep + sample * (1.0 - keep)
            }
        };
        // Two stores are not one: a reader between them sees a latency with its neighbour's age, for one choice.
        self.latency.store(new.max(1.0).to_bits(), Ordering::Relaxed);
        self.noted.store(now, Ordering::Relaxed);
    }

    fn smoothed(&self, now: u64) -> f64 {
        let latency = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let age = now.saturating_sub(self.noted.load(Ordering::Relaxed));
        if latency == 0.0 { 0.0 } else { latency * (-(age as f64) / DECAY.as_nanos() as f64).exp() }
    }
}

impl Tracked {
    /// Counts the call out and notes its latency.
    pub fn finish(self, outcome: Outcome, now: Instant) {
        self.load.note(now.saturating_duration_since(self.began), outcome, now);
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.load.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Chooses the cheaper of two usable endpoints drawn at random; `None` if none is usable. `usable` leaves out those
/// ejected or already tried.
pub fn choose<E>(
    endpoints: &[E],
    load: impl Fn(&E) -> &Load,
    usable: impl Fn(&E) -> bool,
    rng: &mut impl Rng,
    now: Instant,
) -> Option<usize> {
    let cheaper = |a: usize, b: usize| {
        if load(&endpoints[b]).cost(now) < load(&endpoints[a]).cost(now) { b } else { a }
    };
    let two = |n: usize, rng: &mut _| {
        let (a, b) = (below(rng, n), below(rng, n - 1));
        (a, if b >= a { b + 1 } else { b })
    };
    // Nearly always all are usable; then nothing has to be counted.
    if endpoints.len() > 1 {
        let (a, b) = two(endpoints.len(), rng);
        if usable(&endpoints[a]) && usable(&endpoints[b]) {
            return Some(cheaper(a, b));
        }
    }
    let nth = |n: usize| (0..endpoints.len()).filter(|i| usable(&endpoints[*i])).nth(n);
    match (0..endpoints.len()).filter(|i| usable(&endpoints[*i])).count() {
        0 => None,
        1 => nth(0),
        n => {
            let (a, b) = two(n, rng);
            Some(cheaper(nth(a)?, nth(b)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::SharedRng;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn loads<const N: usize>(now: Instant) -> [Arc<Load>; N] {
        [(); N].map(|()| Arc::new(Load::new(now)))
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_is_forgotten_by_degrees() {
        let (t, load) = (Instant::now(), Load::new(Instant::now()));
        load.note(ms(10), Outcome::Success, t);
        load.note(ms(1000), Outcome::Success, t);
        assert_eq!(load.latency(t), ms(1000), "peak");
        load.note(ms(10), Outcome::Success, t + ms(1));
        assert!(load.latency(t + ms(1)) > ms(990), "one quick answer is no recovery");
        assert!(load.latency(t + Duration::from_secs(10)) < ms(400), "1/e after ten seconds");
        let before = load.latency(t + ms(2));
        load.note(ms(1), Outcome::Failure, t + ms(2));
        assert!(load.latency(t + ms(2)) >= before - ms(1), "a quick failure is no speed");
    }

    #[test]
    fn the_quick_and_the_idle_get_more() {
        let (t, rng) = (Instant::now(), SharedRng::new(7));
        let loads: [_; 3] = loads(t);
        for (load, latency) in loads.iter().zip([ms(10), ms(10), ms(200)]) {
            load.note(latency, Outcome::Success, t);
        }
        let count = |loads: &[Arc<Load>; 3]| {
            let mut hits = [0; 3];
            for _ in 0..3000 {
                hits[choose(loads, |l| l, |_| true, &mut &rng, t).unwrap()] += 1;
            }
            hits
        };
        assert_eq!(count(&loads)[2], 0, "the slow one loses every pair");
        let _busy: Vec<_> = (0..5).map(|_| loads[0].begin(t)).collect();
        let hits = count(&loads);
        assert!(hits[1] > 1700 && hits[0] > 800, "the idle one wins its pairs: {hits:?}");
        assert_eq!(loads[0].pending(), 5);
    }

    #[test]
    fn who_never_answered_is_tried_once_and_then_last() {
        let (t, rng) = (Instant::now(), SharedRng::new(7));
        let loads: [_; 2] = loads(t);
        loads[0].note(ms(50), Outcome::Success, t);
        let pick = || choose(&loads, |l| l, |_| true, &mut &rng, t);
        assert_eq!(pick(), Some(1), "a new one gets a call");
        let call = loads[1].begin(t);
        assert_eq!(pick(), Some(0), "and no other before it has answered");
        call.finish(Outcome::Success, t + ms(1));
        assert_eq!((pick(), loads[1].pending()), (Some(1), 0));
    }

    proptest! {
        #[test]
        fn only_usable_ones_are_chosen_and_one_if_there_is_any(usable in proptest::collection::vec(any::<bool>(), 0..6), seed: u64) {
            let (t, rng) = (Instant::now(), SharedRng::new(seed));
            let endpoints: Vec<_> = usable.iter().map(|u| (*u, Load::new(t))).collect();
            for _ in 0..20 {
                let chosen = choose(&endpoints, |e| &e.1, |e| e.0, &mut &rng, t);
                prop_assert_eq!(chosen.is_some(), usable.contains(&true));
                prop_assert!(chosen.is_none_or(|i| usable[i]));
            }
        }
    }
}
