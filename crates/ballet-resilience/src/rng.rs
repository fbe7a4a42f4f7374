//! Randomness that many tasks draw from without a lock.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::TryRng;

/// A seeded generator behind `&self`: SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
/// 2014) over an atomic counter. For jitter and balancing, not for secrets. Use it as `&mut &rng` where an
/// [`rand::Rng`] is asked for.
#[derive(Debug)]
pub struct SharedRng(AtomicU64);

impl SharedRng {
    /// The same seed draws the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next 64 bits.
    pub fn draw(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl TryRng for &SharedRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.draw() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.draw())
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), Infallible> {
        for chunk in into.chunks_mut(8) {
            chunk.copy_from_slice(&self.draw().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// A number below `n`, evenly enough for balancing (Lemire's multiplication, without its rejection). Zero for `n` = 0.
pub(crate) fn below(rng: &mut impl rand::Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// Nanoseconds from `origin` to `now`, zero before it; lasts 584 years.
pub(crate) fn nanos(origin: tokio::time::Instant, now: tokio::time::Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(origin).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn it_draws_what_the_reference_draws() {
        // First numbers of splitmix64.c (Vigna) for the seed 0.
        let rng = SharedRng::new(0);
        assert_eq!([rng.draw(), rng.draw()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
        assert_eq!((&mut &rng).next_u64(), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn below_reaches_every_number_and_no_other() {
        let rng = SharedRng::new(7);
        let mut seen = [0; 3];
        for _ in 0..3000 {
            seen[below(&mut &rng, 3)] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
        assert_eq!(below(&mut &rng, 0), 0);
    }
}
