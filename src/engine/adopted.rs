//! The keys that a follower writes although somebody else leads, and for how long.
//!
//! Such a key was overdue: others were seen at later work and passed it over. Who they are can't be seen from here. If it is
//! a leader that doesn't want the key, it is ours for good. But it may be another follower with overdue keys of its own: each
//! takes the other's writes for the leader's, and for good there would be none. So a key is lent. When the adoption ends, we let
//! go of it, and wait for longer than anybody else would. If somebody else wanted it all the time, they take it over; and who
//! has such keys already is the first to, so that they gather in ever fewer hands. Once the last of these let go, nobody writes
//! any more, and somebody competes for the lease. If the key is overdue for us again, it is lent for twice as long. That a key
//! which only we want has to wait becomes ever rarer, and no split lasts.
//!
//! When a adoption ends, all shorter ones do, too: it is our silence that tells the others. Longer ones go on, so that new keys do
//! not hold up the ones that were found to be ours long ago. For the same reason whoever sees somebody take over a key lets go
//! of its own, if they have been that for half of their time: so the last hands let go together. A key that was taken over
//! looks like one that a leader did late. Half of the time, because some leaders are often late, and our keys must not wait
//! each time.

use std::{hash::Hash, time::Duration};

use hashbrown::HashMap;

use super::time::Timestamp;

#[derive(Debug)]
pub(super) struct Adopted<K> {
    adoptions: HashMap<K, Adoption>,
    /// How many of them run.
    running: usize,
    /// When the adoptions end, by how many times they had ended before.
    ends: Vec<Option<Span>>,
}

#[derive(Clone, Copy, Debug)]
struct Adoption {
    /// How many times it had ended before.
    ended: usize,
    /// It has not ended again.
    runs: bool,
}

/// When the adoptions of a length end.
#[derive(Clone, Copy, Debug)]
struct Span {
    half: Timestamp,
    end: Timestamp,
}

/// A adoption that has doubled this many times is for good.
const DOUBLINGS: usize = 31;

impl<K: Hash + Eq> Adopted<K> {
    pub fn new() -> Self {
        Self { adoptions: HashMap::new(), running: 0, ends: Vec::new() }
    }

    pub fn contains(&self, key: &K) -> bool {
        !self.adoptions.is_empty() && self.adoptions.get(key).is_some_and(|adoption| adoption.runs)
    }

    pub fn is_any_active(&self) -> bool {
        self.running > 0
    }

    /// It was ours until the adoption ended.
    pub fn was_adopted(&self, key: &K) -> bool {
        self.adoptions.get(key).is_some_and(|adoption| !adoption.runs)
    }

    /// The key is ours for `first`, and for twice as long each time that nobody else did it in between; or for what is left
    /// of a adoption of that length that runs already.
    pub fn adopt(&mut self, now: Timestamp, key: K, first: Duration) {
        let adoption = self.adoptions.entry(key).or_insert(Adoption { ended: 0, runs: false });
        self.running += usize::from(!adoption.runs);
        adoption.runs = true;
        let ended = adoption.ended;
        if self.ends.len() <= ended {
            self.ends.resize(ended + 1, None);
        }
        let length = first.saturating_mul(1 << ended);
        self.ends[ended].get_or_insert_with(|| Span { half: now + length / 2, end: now + length });
    }

    /// Somebody else does it.
    pub fn forget(&mut self, key: &K) {
        if !self.adoptions.is_empty()
            && let Some(adoption) = self.adoptions.remove(key)
        {
            self.running -= usize::from(adoption.runs);
        }
    }

    /// Ends the adoptions that are due; returns whether any was.
    pub fn end_due(&mut self, now: Timestamp) -> bool {
        self.end_where(|span| span.end <= now)
    }

    /// Ends the adoptions that have lasted for at least half of their time; returns whether any was.
    pub fn end_early(&mut self, now: Timestamp) -> bool {
        self.end_where(|span| span.half <= now)
    }

    fn end_where(&mut self, is_over: impl Fn(Span) -> bool) -> bool {
        let Some(longest) = self.ends.iter().rposition(|span| span.is_some_and(&is_over)) else {
            return false;
        };
        self.ends[..=longest].fill(None);
        for adoption in self.adoptions.values_mut() {
            if adoption.runs && adoption.ended <= longest {
                self.running -= 1;
                adoption.runs = false;
                adoption.ended = (adoption.ended + 1).min(DOUBLINGS);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_loan_that_nobody_else_claims_doubles() {
        let mut own = Adopted::new();
        let mut now = at(0);
        for length in [1, 2, 4, 8, 16] {
            own.adopt(now, "key", FIRST);
            assert!(!own.end_due(now + Duration::from_millis(1_000 * length - 1)), "{length}");
            now = now + Duration::from_secs(length);
            assert!(own.contains(&"key"));
            assert!(own.end_due(now));
            assert!(!own.contains(&"key"));
            assert!(!own.end_due(now + Duration::from_secs(99)), "it has ended");
        }
        assert!(!own.is_any_active());
        own.forget(&"key");
        own.adopt(now, "key", FIRST);
        assert!(own.is_any_active());
        assert!(own.end_due(now + FIRST), "somebody else did it, and it starts anew");
    }

    #[test]
    fn new_keys_end_no_longer_loan_and_the_end_of_a_longer_one_ends_theirs() {
        let mut own = Adopted::new();
        own.adopt(at(0), "old", FIRST);
        own.end_due(at(1));
        own.adopt(at(10), "old", FIRST);
        own.adopt(at(10), "new", FIRST);
        assert!(own.end_due(at(11)));
        assert!(own.contains(&"old") && !own.contains(&"new"));
        own.adopt(at(11), "newer", FIRST * 100);
        assert!(own.end_due(at(12)));
        assert!(!own.contains(&"old") && !own.contains(&"newer"));
    }

    #[test]
    fn a_key_that_is_lent_for_ever_longer_never_overflows() {
        let mut own = Adopted::new();
        let mut now = at(0);
        for _ in 0..100 {
            own.adopt(now, "key", Duration::MAX);
            now = Timestamp::from_nanos(u64::MAX);
            own.end_due(now);
        }
    }
}
