//! Two groups that want different values of one key.
//!
//! No lease can settle that: each write of one group makes a job for the other, forever. During a
//! rolling upgrade, two versions of a controller are such groups. The only remedy is to notice the
//! fight, to stop writing the key for a while, and to report it.
//!
//! A key is contended if its value was right, another writer changed it, it was made right again,
//! and it was changed again. A job that changes its mind makes no fight: only the loss of the
//! *same* value counts. The idea is that of the contention tracker beside [openshift/router's
//! `writerlease`]. There, five such keys stop all writes of all keys; here each key stops itself.
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

use crate::{clock::Moment, engine::nanos};

/// A tracker of keys over whose values two groups fight, each key by itself.
///
/// Every [`Guard`](crate::Guard) has its own, with the defaults. Use one directly where writes do
/// not go through a guard: call [`lost`](Self::lost) each time that another writer changed a value
/// that was right, and ask [`contended_until`](Self::contended_until) before each write.
///
/// It remembers lost keys only, and at most [`capacity`](Self::capacity) of them. A loss counts
/// until the interval has passed. The first call of [`lost`](Self::lost) or
/// [`contended_until`](Self::contended_until), for any key, then frees its memory, or one up to a
/// quarter of the interval later.
///
/// ```
/// use writerlease::ContentionTracker;
///
/// // The time of a write does not make two values different.
/// let same = |a: &(&str, u64), b: &(&str, u64)| a.0 == b.0;
/// let tracker = ContentionTracker::<String, _>::comparing(same);
///
/// assert!(tracker.lost("route", ("admitted", 1)).is_none()); // may be a mistake
/// let until = tracker.lost("route", ("admitted", 2)).expect("again within the interval: a fight");
/// assert_eq!(tracker.contended_until("route", &("admitted", 3)), Some(until));
///
/// assert!(tracker.contended_until("other", &("admitted", 3)).is_none());
/// assert!(tracker.contended_until("route", &("rejected", 4)).is_none()); // a new value is no fight yet
/// ```
pub struct ContentionTracker<K, V> {
    records: DashMap<K, Record<V>>,
    /// Until when keys rest whose closures are never content.
    rests: DashMap<K, Moment>,
    /// The origin of `sweep_at`.
    created: Moment,
    /// When expired records and rests are removed next, in nanoseconds; [`NEVER`] while there are
    /// none, or while one caller removes them.
    sweep_at: AtomicU64,
    same: Box<Same<V>>,
    interval: Duration,
    capacity: usize,
    losses: AtomicU64,
    contended: AtomicU64,
    held_back: AtomicU64,
    untracked: AtomicU64,
}

type Same<V> = dyn Fn(&V, &V) -> bool + Send + Sync;

/// Counts since a [`ContentionTracker`] was created, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContentionCounters {
    /// Times that another writer changed a value that was right.
    pub losses: u64,
    /// Times that a key became contended.
    pub contended: u64,
    /// Times that [`contended_until`](ContentionTracker::contended_until) advised against a write.
    pub held_back: u64,
    /// Losses that were not remembered, because the tracker was full.
    pub untracked: u64,
}

/// A key that was lost.
struct Record<V> {
    /// Its value when it was right.
    right: V,
    /// When the loss is forgotten.
    expires: Moment,
    contended: bool,
}

/// The default interval.
const INTERVAL: Duration = Duration::from_secs(60);
/// The default capacity, in keys.
const CAPACITY: usize = 10_000;

/// After all times.
const NEVER: u64 = u64::MAX;

impl<K: Hash + Eq + Debug, V> ContentionTracker<K, V> {
    /// Creates a tracker whose values are the same if they are equal.
    pub fn new() -> Self
    where
        V: PartialEq + 'static,
    {
        Self::comparing(V::eq)
    }

    /// Creates a tracker whose values are the same if `same` returns true. Leave out parts that
    /// differ from write to write, such as timestamps. The tracker calls `same` under a lock of its
    /// own, and a guard holds no lock then. So `same` must be quick, and must not use the tracker,
    /// which every `ensure` of its guards does.
    pub fn comparing(same: impl Fn(&V, &V) -> bool + Send + Sync + 'static) -> Self {
        Self {
            records: DashMap::new(),
            rests: DashMap::new(),
            created: Moment::now(),
            sweep_at: AtomicU64::new(NEVER),
            same: Box::new(same),
            interval: INTERVAL,
            capacity: CAPACITY,
            losses: AtomicU64::new(0),
            contended: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            untracked: AtomicU64::new(0),
        }
    }

    /// Sets the interval. Two losses of a value within it are a fight, and a contended key should
    /// be left alone for as long. With zero no key is ever contended. A guard's keys whose closures
    /// are never content rest for the interval, too. Default: 60 s.
    ///
    /// ```
    /// use std::time::Duration;
    /// use writerlease::ContentionTracker;
    ///
    /// let tracker = ContentionTracker::<String, String>::new().interval(Duration::from_secs(300)).capacity(1_000);
    /// assert!(tracker.contended().is_empty());
    /// ```
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets how many keys are remembered at most. Fights over further keys go unnoticed. Default:
    /// 10,000.
    #[must_use]
    pub fn capacity(mut self, keys: usize) -> Self {
        self.capacity = keys;
        self
    }

    /// Records that the value of a key was `right` and another writer changed it. Returns until
    /// when the key is contended, if it is.
    ///
    /// A new fight is logged as a warning.
    pub fn lost(&self, key: impl Into<K>, right: V) -> Option<Moment> {
        self.losses.fetch_add(1, Relaxed);
        let now = Moment::now();
        self.sweep(now);
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
                        "contended: another writer changed a right value twice; the key is left alone for a while. Do \
                         two controllers, or two versions of one, want different values? Or does the store change \
                         the values that are written?",
                    );
                }
                known.insert(Record { right, expires, contended: again });
                again.then_some(expires)
            }
            Entry::Vacant(new) if has_room => {
                // The next removal is set after the insertion, so that one at the same moment, which
                // may have passed the entry's place already, leaves no record without a next one.
                drop(new.insert(Record { right, expires, contended: false }));
                self.sweep_no_later_than(expires);
                None
            }
            Entry::Vacant(_) => {
                self.untracked.fetch_add(1, Relaxed);
                None
            }
        }
    }

    /// Returns until when a key should not be written, if it is contended and `wanted` is the value
    /// that was lost. If another value is wanted, the loss is forgotten, because a job that changes
    /// its mind makes no fight.
    pub fn contended_until<Q>(&self, key: &Q, wanted: &V) -> Option<Moment>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let now = Moment::now();
        self.sweep(now);
        // First a look, which locks less than a removal; most keys were never lost.
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

    /// Lets a key rest for the interval, because its closure wants to change what it wrote itself.
    /// Returns until when, unless the key rests already.
    pub(crate) fn rest(&self, key: K) -> Option<Moment> {
        let now = Moment::now();
        self.sweep(now);
        let has_room = self.rests.len() < self.capacity;
        let until = now + self.interval;
        match self.rests.entry(key) {
            Entry::Occupied(known) if now < *known.get() => return None,
            Entry::Vacant(_) if !has_room || self.interval.is_zero() => return None,
            entry => {
                tracing::warn!(
                    key = ?entry.key(),
                    seconds = self.interval.as_secs_f64(),
                    "never content: the closure wants to change what it wrote itself; the key rests for a while. \
                     Does the closure write the time, a counter, or a set in random order?",
                );
                drop(entry.insert(until));
            }
        }
        self.sweep_no_later_than(until);
        Some(until)
    }

    /// Returns until when a key [rests](Self::rest).
    pub(crate) fn rests_until<Q>(&self, key: &Q) -> Option<Moment>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.rests.get(key).map(|until| *until).filter(|until| Moment::now() < *until)
    }

    /// Returns until when a key is contended.
    pub(crate) fn contended_now<Q>(&self, key: &Q) -> Option<Moment>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let contended = self.records.get(key).filter(|record| record.contended).map(|record| record.expires);
        contended.filter(|until| Moment::now() < *until)
    }

    /// Forgets the losses of a key, for example when it is removed.
    pub fn forget<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.records.remove(key);
        self.rests.remove(key);
    }

    /// Returns the keys that are contended now, in any order.
    pub fn contended(&self) -> Vec<K>
    where
        K: Clone,
    {
        let now = Moment::now();
        let contended = self.records.iter().filter(|record| record.contended && now < record.expires);
        contended.map(|record| record.key().clone()).collect()
    }

    /// Returns the counts since the tracker was created.
    pub fn counters(&self) -> ContentionCounters {
        ContentionCounters {
            losses: self.losses.load(Relaxed),
            contended: self.contended.load(Relaxed),
            held_back: self.held_back.load(Relaxed),
            untracked: self.untracked.load(Relaxed),
        }
    }

    /// Removes expired records, once per quarter of the interval. A walk over all records thus meets
    /// each at most five times, and a loss costs the same in a full tracker as in an empty one.
    fn sweep(&self, now: Moment) {
        let at = self.sweep_at.load(Relaxed);
        // One caller walks; the others do not wait for it.
        if self.since_created(now) >= at
            && self.sweep_at.compare_exchange(at, NEVER, Relaxed, Relaxed).is_ok()
        {
            self.records.retain(|_, record| now < record.expires);
            self.rests.retain(|_, until| now < *until);
            if !self.records.is_empty() || !self.rests.is_empty() {
                self.sweep_no_later_than(now + self.interval / 4);
            }
        }
    }

    fn sweep_no_later_than(&self, at: Moment) {
        self.sweep_at.fetch_min(self.since_created(at), Relaxed);
    }

    fn since_created(&self, at: Moment) -> u64 {
        nanos(at - self.created)
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
    async fn value_lost_twice_is_contended_for_an_interval() {
        let tracker = Tracker::new().interval(10 * SECOND);
        assert_eq!(tracker.lost("key", "ours"), None);
        advance(9 * SECOND).await;
        assert_eq!(tracker.contended_until("key", &"ours"), None);
        let until = tracker.lost("key", "ours").unwrap();
        assert_eq!(until.remaining(), 10 * SECOND);
        assert_eq!(tracker.lost("key", "ours"), Some(until), "a further loss does not prolong it");
        assert_eq!(tracker.contended(), ["key"]);
        advance(9 * SECOND).await;
        assert_eq!(tracker.contended_until("key", &"ours"), Some(until));
        advance(SECOND).await;
        assert_eq!(tracker.contended_until("key", &"ours"), None);
        assert_eq!(tracker.contended(), [""; 0]);
        assert_eq!(tracker.lost("key", "ours"), None, "the count starts anew");
        assert_eq!(
            tracker.counters(),
            ContentionCounters { losses: 4, contended: 1, held_back: 1, untracked: 0 }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn losses_far_apart_or_of_different_values_are_no_fight() {
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
    async fn job_that_changes_its_mind_may_write() {
        let tracker = Tracker::new();
        tracker.lost("key", "true");
        assert_eq!(tracker.contended_until("key", &"false"), None);
        assert_eq!(tracker.lost("key", "true"), None, "the earlier loss is forgotten");
        assert!(tracker.lost("key", "true").is_some());
        assert_eq!(tracker.contended_until("key", &"false"), None, "even if it was contended");
        assert_eq!(tracker.contended_until("key", &"true"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_is_contended_by_itself() {
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
    async fn memory_is_bounded_and_expired_losses_make_room() {
        let tracker: ContentionTracker<u32, ()> = ContentionTracker::new().capacity(3);
        for key in 0..10_u32 {
            tracker.lost(key, ());
        }
        assert_eq!((tracker.records.len(), tracker.counters().untracked), (3, 7));
        assert!(tracker.lost(2_u32, ()).is_some(), "known keys are still tracked");
        advance(INTERVAL).await;
        tracker.lost(99_u32, ());
        assert_eq!((tracker.records.len(), tracker.counters().untracked), (1, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn expired_losses_are_freed_before_it_is_full() {
        let tracker: ContentionTracker<u32, ()> = ContentionTracker::new().interval(8 * SECOND);
        for key in 0..8_u32 {
            tracker.lost(key, ());
            advance(SECOND).await;
        }
        // The first five have expired.
        advance(4 * SECOND).await;
        tracker.lost(8_u32, ());
        assert_eq!(tracker.records.len(), 4);
        advance(3600 * SECOND).await;
        assert_eq!(tracker.contended_until(&100, &()), None);
        assert_eq!(tracker.records.len(), 0, "a look frees them, too");
    }

    #[tokio::test(start_paused = true)]
    async fn full_tracker_is_walked_once_per_quarter() {
        let tracker: ContentionTracker<u32, ()> = ContentionTracker::new().capacity(100);
        let mut walks = 0;
        for key in 0..10_000_u32 {
            let before = tracker.sweep_at.load(Relaxed);
            tracker.lost(key, ());
            walks += u32::from(before != NEVER && tracker.sweep_at.load(Relaxed) != before);
            advance(INTERVAL / 1000).await;
        }
        assert_eq!(tracker.counters().losses, 10_000);
        assert_eq!(walks, 36, "each quarter of nine intervals");
    }
}
