//! What waits for workers, and the workers that wait, by task type.

use std::collections::{HashSet, VecDeque};

use ballet_core::ExecutionId;

/// Entries below which nobody looks for stale ones.
const SWEEP_FROM: usize = 64;

/// One task type's.
#[derive(Default)]
pub(crate) struct Queue {
    /// Attempts on offer, the oldest first. An attempt leaves its queue by no longer wanting to be there (it is paused,
    /// cancelled, settled by a signal), so some of them are stale: whoever takes one asks whether it still holds.
    ready: VecDeque<Offer>,
    sweep_at: usize,
    /// Tickets of polls that wait.
    pub(crate) parked: VecDeque<u64>,
    /// Who polled last: worker, and when in milliseconds since 1970.
    pub(crate) last_poll: Option<(String, i64)>,
}

/// An attempt on offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Its execution.
    pub(crate) execution: ExecutionId,
    /// Its index there.
    pub(crate) task: usize,
    /// Its id: another attempt may take over its index, and is not to be had before its own commit.
    pub(crate) id: String,
}

impl Queue {
    /// Puts an attempt at the end. `holds` says which offers are not stale; they are asked now and then, so that no
    /// more than about half of a long queue is stale.
    pub(crate) fn push(&mut self, offer: Offer, holds: impl Fn(&Offer) -> bool) {
        self.ready.push_back(offer);
        if self.ready.len() > self.sweep_at.max(SWEEP_FROM) {
            let mut seen = HashSet::new();
            self.ready.retain(|offer| holds(offer) && seen.insert(offer.id.clone()));
            self.sweep_at = 2 * self.ready.len();
        }
    }

    /// Takes the oldest offer, stale or not.
    pub(crate) fn pop(&mut self) -> Option<Offer> {
        self.ready.pop_front()
    }

    /// Whether nothing is on offer.
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(n: usize) -> Offer {
        Offer { execution: format!("x-{n}").parse().unwrap(), task: 0, id: format!("t{n}") }
    }

    #[test]
    fn stale_offers_do_not_pile_up() {
        let mut queue = Queue::default();
        // Of all that were ever offered, only every other one of the first hundred is still to be had.
        let holds = |o: &Offer| o.id[1..].parse::<usize>().is_ok_and(|n| n < 100 && n % 2 == 0);
        for n in 0..10_000 {
            queue.push(offer(n), holds);
            // Paused and resumed again and again.
            queue.push(offer(0), holds);
            assert!(queue.ready.len() <= 2 * 50 + SWEEP_FROM, "{n}: {}", queue.ready.len());
        }
        let mut left: Vec<Offer> = std::iter::from_fn(|| queue.pop()).filter(holds).collect();
        assert!(queue.is_empty());
        left.dedup();
        let first: Vec<Offer> = left.iter().take(50).cloned().collect();
        assert_eq!(first, (0..50).map(|n| offer(2 * n)).collect::<Vec<_>>(), "each keeps its place");
    }
}
