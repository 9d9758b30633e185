//! The keys that a follower writes although another replica leads, and for how long.
//!
//! Such a key was overdue: other replicas were seen to serve younger requests and to skip this key.
//! We cannot see who they are. If the writer is a leader that does not want the key, we should
//! write it for good. But it may be another follower with adopted keys of its own. Each would take
//! the other's writes for the leader's, and the group would never have a leader again. So an
//! adoption expires. We then drop the key, and wait for it longer than any other replica would. If
//! another replica wanted the key all the time, it takes it over. A replica with adopted keys is
//! the first to do so, so that they gather in ever fewer hands. Once the last of these drops its
//! keys, no replica writes any more, and one competes for the lease. If the key is overdue for us
//! again, we adopt it for twice as long. A key that only we want then waits ever more rarely, and
//! no split lasts.
//!
//! When an adoption expires, all shorter ones expire with it: other replicas notice that we stopped
//! only if we stop everywhere. Longer ones continue, so that a newly adopted key does not disturb
//! keys adopted long ago. A replica that sees another take over a key also drops its own adoptions
//! that are past half their time, so that the last holders let go together. A key that was taken
//! over looks like one that a leader wrote late. Half of the time must have passed because some
//! leaders are often late, and our keys must not wait each time.

use std::{hash::Hash, time::Duration};

use hashbrown::HashMap;

use super::time::Timestamp;

#[derive(Debug)]
pub(super) struct Adopted<K> {
    adoptions: HashMap<K, Adoption>,
    /// How many adoptions run.
    running: usize,
    /// When the adoptions expire, by how many times they had expired before.
    ends: Vec<Option<Span>>,
}

#[derive(Clone, Copy, Debug)]
struct Adoption {
    /// How many times it had expired before.
    ended: usize,
    /// It has not expired again.
    runs: bool,
}

/// When the adoptions of one length expire.
#[derive(Clone, Copy, Debug)]
struct Span {
    half: Timestamp,
    end: Timestamp,
}

/// An adoption doubles at most this many times.
const DOUBLINGS: usize = 31;

impl<K: Hash + Eq> Adopted<K> {
    pub(super) fn new() -> Self {
        Self { adoptions: HashMap::new(), running: 0, ends: Vec::new() }
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        !self.adoptions.is_empty() && self.adoptions.get(key).is_some_and(|adoption| adoption.runs)
    }

    pub(super) fn is_any_active(&self) -> bool {
        self.running > 0
    }

    /// Returns whether the key was adopted until its adoption expired.
    pub(super) fn was_adopted(&self, key: &K) -> bool {
        self.adoptions.get(key).is_some_and(|adoption| !adoption.runs)
    }

    /// Adopts a key for `first`, and for twice as long each time that its adoption expired and no
    /// other replica wrote it in between. If an adoption of that length runs already, the key gets
    /// what is left of it.
    pub(super) fn adopt(&mut self, now: Timestamp, key: K, first: Duration) {
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

    /// Ends an adoption because another replica writes the key.
    pub(super) fn forget(&mut self, key: &K) {
        if !self.adoptions.is_empty()
            && let Some(adoption) = self.adoptions.remove(key)
        {
            self.running -= usize::from(adoption.runs);
        }
    }

    /// Ends the adoptions that have expired. Returns whether there were any.
    pub(super) fn end_due(&mut self, now: Timestamp) -> bool {
        self.end_where(|span| span.end <= now)
    }

    /// Ends the adoptions that are past half their time. Returns whether there were any.
    pub(super) fn end_early(&mut self, now: Timestamp) -> bool {
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
    fn adoption_of_unclaimed_key_doubles() {
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
        assert!(own.end_due(now + FIRST), "another replica wrote it, so the length starts anew");
    }

    #[test]
    fn adoption_ends_shorter_ones_with_it() {
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
    fn endless_adoptions_never_overflow() {
        let mut own = Adopted::new();
        let mut now = at(0);
        for _ in 0..100 {
            own.adopt(now, "key", Duration::MAX);
            now = Timestamp::from_nanos(u64::MAX);
            own.end_due(now);
        }
    }
}
