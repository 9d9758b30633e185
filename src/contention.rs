//! Two groups that want different values of one key.
//!
//! No lease can settle that: each write of the one makes work for the other, for ever. During a rolling upgrade two versions
//! of a controller are such groups. All that can be done is to notice it, to stop writing the key for a while, and to tell
//! somebody.
//!
//! A key is contended if its value was right, somebody else changed it, it was made right again, and changed again. Work that
//! changes its mind is none of that: what counts is that the *same* value was lost twice. The idea is that of the contention
//! tracker beside [openshift/router's `writerlease`]; there, five such keys stop all writes of all keys, and here each one
//! stops itself.
//!
//! [openshift/router's `writerlease`]: https://github.com/openshift/router/tree/master/pkg/router/writerlease

use std::{
    borrow::Borrow,
    fmt::{self, Debug},
    hash::Hash,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use dashmap::{DashMap, Entry};

use crate::clock::Moment;

/// Notices keys over whose values two groups fight, each key by itself.
///
/// Every [`Guard`](crate::Guard) has one of its own, with the defaults. By itself it is of use where writes go another way:
/// tell it with [`lost`](Self::lost) each time that somebody changed what was right, and ask
/// [`contended_until`](Self::contended_until) before a write.
///
/// It remembers only keys that were lost, each until the interval has passed since, and at most so many.
///
/// ```
/// use writerlease::ContentionTracker;
///
/// // Values are the same whenever they were written.
/// let same = |a: &(&str, u64), b: &(&str, u64)| a.0 == b.0;
/// let tracker = ContentionTracker::<String, _>::comparing(same);
///
/// assert!(tracker.lost("route", ("admitted", 1)).is_none()); // anybody's mistake
/// let until = tracker.lost("route", ("admitted", 2)).expect("again within the interval: a fight");
/// assert_eq!(tracker.contended_until("route", &("admitted", 3)), Some(until));
///
/// assert!(tracker.contended_until("other", &("admitted", 3)).is_none());
/// assert!(tracker.contended_until("route", &("rejected", 4)).is_none()); // a new want is no fight yet
/// ```
pub struct ContentionTracker<K, V> {
    records: DashMap<K, Record<V>>,
    same: Box<Same<V>>,
    interval: Duration,
    capacity: usize,
    losses: AtomicU64,
    contended: AtomicU64,
    held_back: AtomicU64,
    untracked: AtomicU64,
}

type Same<V> = dyn Fn(&V, &V) -> bool + Send + Sync;

/// What a [`ContentionTracker`] has seen so far, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContentionCounters {
    /// Times that somebody changed what was right.
    pub losses: u64,
    /// Times that a key became contended.
    pub contended: u64,
    /// Times that a write was asked about, and is better left.
    pub held_back: u64,
    /// Losses that were not remembered, because too many keys were.
    pub untracked: u64,
}

/// A key that was lost.
struct Record<V> {
    /// What it was when it was right.
    right: V,
    /// Forgotten then.
    expires: Moment,
    contended: bool,
}

/// For so long a lost key is remembered, and a contended one left alone.
const INTERVAL: Duration = Duration::from_secs(60);
/// So many keys are remembered.
const CAPACITY: usize = 10_000;

impl<K: Hash + Eq + Debug, V> ContentionTracker<K, V> {
    /// A tracker whose values are the same if they are equal.
    pub fn new() -> Self
    where
        V: PartialEq + 'static,
    {
        Self::comparing(V::eq)
    }

    /// A tracker whose values are the same if `same` says so; leave out what differs from write to write, such as
    /// timestamps. Called under a lock: it must be quick, and must not use the tracker.
    pub fn comparing(same: impl Fn(&V, &V) -> bool + Send + Sync + 'static) -> Self {
        Self {
            records: DashMap::new(),
            same: Box::new(same),
            interval: INTERVAL,
            capacity: CAPACITY,
            losses: AtomicU64::new(0),
            contended: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            untracked: AtomicU64::new(0),
        }
    }

    /// Two losses of a value within this time are a fight, and a contended key is left alone for as long. Default: 60 s. With
    /// zero nothing is ever contended.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How many keys are remembered at most. If there are more, the fights over the others are not noticed. Default: 10,000.
    #[must_use]
    pub fn capacity(mut self, keys: usize) -> Self {
        self.capacity = keys;
        self
    }

    /// The value of a key was `right`, and somebody else changed it. Returns until when the key is contended, if that makes
    /// it so, or if it is.
    pub fn lost(&self, key: impl Into<K>, right: V) -> Option<Moment> {
        self.losses.fetch_add(1, Relaxed);
        let now = Moment::now();
        self.make_room(now);
        let has_room = self.records.len() < self.capacity;
        let expires = now + self.interval;
        match self.records.entry(key.into()) {
            Entry::Occupied(mut known) => {
                let record = known.get();
                let again = now < record.expires && (self.same)(&record.right, &right);
                if again && record.contended {
                    return Some(record.expires);
                }
                if again {
                    self.contended.fetch_add(1, Relaxed);
                    tracing::warn!(
                        key = ?known.key(),
                        seconds = self.interval.as_secs_f64(),
                        "contended: the value was right, and somebody else changed it twice; it is left alone for a while. \
                         Do two controllers, or two versions of one, want different values? Or does the store change \
                         what is written?",
                    );
                }
                known.insert(Record { right, expires, contended: again });
                again.then_some(expires)
            }
            Entry::Vacant(new) if has_room => {
                new.insert(Record { right, expires, contended: false });
                None
            }
            Entry::Vacant(_) => {
                self.untracked.fetch_add(1, Relaxed);
                None
            }
        }
    }

    /// Until when a key is better not written, if it is contended and `wanted` is what was lost. If something else is wanted,
    /// what was lost is forgotten: that work changes its mind is no fight.
    pub fn contended_until<Q>(&self, key: &Q, wanted: &V) -> Option<Moment>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let now = Moment::now();
        let is_over = |record: &Record<V>| now >= record.expires || !(self.same)(&record.right, wanted);
        let contended = self.records.get(key).map(|record| match is_over(&record) {
            true => None,
            false => Some(record.contended.then_some(record.expires)),
        });
        match contended? {
            Some(until) => {
                self.held_back.fetch_add(u64::from(until.is_some()), Relaxed);
                until
            }
            None => {
                self.records.remove_if(key, |_, record| is_over(record));
                None
            }
        }
    }

    /// Forgets what happened to a key.
    pub fn forget<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.records.remove(key);
    }

    /// The keys that are contended now.
    pub fn contended(&self) -> Vec<K>
    where
        K: Clone,
    {
        let now = Moment::now();
        let contended = self.records.iter().filter(|record| record.contended && now < record.expires);
        contended.map(|record| record.key().clone()).collect()
    }

    /// What has been seen so far.
    pub fn counters(&self) -> ContentionCounters {
        ContentionCounters {
            losses: self.losses.load(Relaxed),
            contended: self.contended.load(Relaxed),
            held_back: self.held_back.load(Relaxed),
            untracked: self.untracked.load(Relaxed),
        }
    }

    /// Forgets what is over, if there are too many.
    fn make_room(&self, now: Moment) {
        if self.records.len() >= self.capacity {
            self.records.retain(|_, record| now < record.expires);
        }
    }
}

impl<K: Hash + Eq + Debug, V: PartialEq + 'static> Default for ContentionTracker<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Hash + Eq, V> fmt::Debug for ContentionTracker<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentionTracker")
            .field("interval", &self.interval)
            .field("keys", &self.records.len())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    type Tracker = ContentionTracker<&'static str, &'static str>;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_value_that_is_lost_twice_within_the_interval_is_contended_for_an_interval() {
        let tracker = Tracker::new().interval(10 * SECOND);
        assert_eq!(tracker.lost("key", "ours"), None);
        advance(9 * SECOND).await;
        assert_eq!(tracker.contended_until("key", &"ours"), None);
        let until = tracker.lost("key", "ours").unwrap();
        assert_eq!(until.remaining(), 10 * SECOND);
        assert_eq!(tracker.lost("key", "ours"), Some(until), "it does not last the longer for it");
        assert_eq!(tracker.contended(), ["key"]);
        advance(9 * SECOND).await;
        assert_eq!(tracker.contended_until("key", &"ours"), Some(until));
        advance(SECOND).await;
        assert_eq!(tracker.contended_until("key", &"ours"), None);
        assert_eq!(tracker.contended(), [""; 0]);
        assert_eq!(tracker.lost("key", "ours"), None, "it begins anew");
        assert_eq!(
            tracker.counters(),
            ContentionCounters { losses: 4, contended: 1, held_back: 1, untracked: 0 }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn losses_that_are_an_interval_apart_or_of_different_values_are_no_fight() {
        let tracker = Tracker::new().interval(10 * SECOND);
        for _ in 0..5 {
            assert_eq!(tracker.lost("key", "ours"), None);
            advance(10 * SECOND).await;
        }
        for value in ["true", "false", "true", "false"] {
            assert_eq!(tracker.lost("key", value), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_changes_its_mind_may_write() {
        let tracker = Tracker::new();
        tracker.lost("key", "true");
        assert_eq!(tracker.contended_until("key", &"false"), None);
        assert_eq!(tracker.lost("key", "true"), None, "what was lost before is forgotten");
        assert!(tracker.lost("key", "true").is_some());
        assert_eq!(tracker.contended_until("key", &"false"), None, "also if it was contended");
        assert_eq!(tracker.contended_until("key", &"true"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_stands_for_itself() {
        let tracker = Tracker::new();
        for key in ["a", "b", "c", "d", "e", "f"] {
            tracker.lost(key, "ours");
            assert!(tracker.lost(key, "ours").is_some());
        }
        assert_eq!(tracker.contended_until("innocent", &"ours"), None);
        tracker.forget("a");
        assert_eq!(tracker.contended_until("a", &"ours"), None);
        assert!(tracker.contended_until("b", &"ours").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_what_is_over_makes_room() {
        let tracker: ContentionTracker<u32, ()> = ContentionTracker::new().capacity(3);
        for key in 0..10_u32 {
            tracker.lost(key, ());
        }
        assert_eq!((tracker.records.len(), tracker.counters().untracked), (3, 7));
        assert!(tracker.lost(2_u32, ()).is_some(), "those that are known go on");
        advance(INTERVAL).await;
        tracker.lost(99_u32, ());
        assert_eq!((tracker.records.len(), tracker.counters().untracked), (1, 7));
    }
}
