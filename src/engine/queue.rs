//! The keyed queue of jobs: which keys have a job pending, since when, and which of them may start
//! next.
//!
//! At most one job per key is pending, and at most one attempt of a key is in flight. Every
//! operation on the hot path (push, first, start, finish, clear) takes O(1), however much is
//! pending. The rarer ones (a key that waits for its retry, a key that this replica has adopted)
//! take O(log n).
//!
//! A key with a job is in exactly one place:
//!
//! ```text
//!   push ──> Fresh ──start──> Running ──finish──> gone (or Again, if a newer job came meanwhile)
//!          (a FIFO list)         │
//!                                └─requeue──> Waiting ──due──> Again
//!                                          (by due time)    (by age)
//! ```
//!
//! Fresh keys are in order of arrival because time only grows; keys that come back are sorted by
//! their age. So the oldest ready key is always at one of two heads. An adopted key goes to a third
//! place, `Adopted`, because a follower may write it when it may write no other. Keys whose last
//! attempt failed have an order of their own in each place: by their failures in a row, then by age.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hash},
    time::Duration,
};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::{adopted::Adopted, time::Timestamp};

/// An index of a slot. Four bytes, because there may be millions.
pub(super) type Slot = u32;

const NONE: Slot = Slot::MAX;

#[derive(Debug)]
pub(super) struct Queue<K, J> {
    hasher: DefaultHashBuilder,
    /// Finds a key's slot. It holds indices only, so that a key is stored once.
    index: HashTable<Slot>,
    slots: Vec<Option<Node<K, J>>>,
    free: Vec<Slot>,
    fresh_head: Slot,
    fresh_tail: Slot,
    again: [BTreeSet<Ready>; 2],
    adopted_ready: [BTreeSet<Ready>; 2],
    waiting: BTreeSet<(Timestamp, Slot)>,
    adopted: Adopted<K>,
    pending: usize,
}

/// 64 bytes for a key and a payload of two words each.
#[derive(Debug)]
struct Node<K, J> {
    key: K,
    /// `None` only while an attempt is in flight and no newer job came.
    job: Option<J>,
    /// When the first unfulfilled job of this key was handed in.
    since: Timestamp,
    place: Place,
    tries: u32,
    setbacks: u16,
    attempted: bool,
    /// The last attempt failed, or panicked.
    failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Fresh {
        prev: Slot,
        next: Slot,
    },
    Again,
    Adopted,
    Waiting(Timestamp),
    /// The age and the tries of the job in flight. A newer job of the key has its own in the node.
    Running {
        since: Timestamp,
        tries: u32,
    },
}

/// The terms on which a job is tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requeue {
    /// When.
    pub(super) at: Timestamp,
    /// The attempt fulfilled the request, so that a repetition is a new request with a new age.
    pub(super) fulfilled: bool,
    /// How many refusals and failures in a row the key has had.
    pub(super) setbacks: u16,
    /// The attempt failed, or panicked.
    pub(super) failed: bool,
}

/// Keys whose last attempt failed, or all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Clean,
    Failed,
}

/// A ready key, in the order in which such keys start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ready {
    /// How many setbacks in a row a key of [`Class::Failed`] has had; 0 for all others.
    pub(super) failures: u16,
    pub(super) since: Timestamp,
    pub(super) slot: Slot,
}

/// The state of a key when it was cleared.
#[derive(Debug)]
pub(super) struct Cleared<J> {
    pub(super) job: Option<J>,
    /// Since when the job was pending.
    pub(super) since: Option<Timestamp>,
    /// This replica attempted it.
    pub(super) attempted: bool,
    /// The key's slot, if an attempt of it is in flight.
    pub(super) running: Option<Slot>,
}

impl<K: Hash + Eq + Clone, J> Queue<K, J> {
    pub(super) fn new() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            fresh_head: NONE,
            fresh_tail: NONE,
            again: Default::default(),
            adopted_ready: Default::default(),
            waiting: BTreeSet::new(),
            adopted: Adopted::new(),
            pending: 0,
        }
    }

    /// Returns how many keys have a pending job, attempts in flight not counted.
    pub(super) fn len(&self) -> usize {
        self.pending
    }

    /// Adds a job. It replaces a job of the same key that is still pending, which is returned.
    pub(super) fn push(&mut self, now: Timestamp, key: K, job: J) -> Option<J> {
        let hash = self.hasher.hash_one(&key);
        let slots = &self.slots;
        match self.index.entry(
            hash,
            |&slot| slots[slot as usize].as_ref().is_some_and(|node| node.key == key),
            |&slot| slots[slot as usize].as_ref().map_or(0, |node| self.hasher.hash_one(&node.key)),
        ) {
            Entry::Occupied(found) => {
                let slot = *found.get();
                self.replace(now, slot, job)
            }
            Entry::Vacant(vacant) => {
                let adopted = self.adopted.contains(&key);
                let slot = self.free.pop().unwrap_or(self.slots.len() as Slot);
                vacant.insert(slot);
                let node = Node {
                    key,
                    job: Some(job),
                    since: now,
                    // Until it is linked into a place below.
                    place: Place::Again,
                    tries: 0,
                    setbacks: 0,
                    attempted: false,
                    failed: false,
                };
                if slot as usize == self.slots.len() {
                    self.slots.push(Some(node));
                } else {
                    self.slots[slot as usize] = Some(node);
                }
                self.pending += 1;
                if adopted {
                    self.enter_adopted(slot)
                } else {
                    self.append_fresh(slot)
                }
                None
            }
        }
    }

    fn replace(&mut self, now: Timestamp, slot: Slot, job: J) -> Option<J> {
        let node = self.node_mut(slot);
        let old = node.job.replace(job);
        node.tries = 0;
        match node.place {
            Place::Running { .. } if old.is_none() => {
                node.since = now;
                self.pending += 1;
            }
            // A delay that the old job asked for does not bind the new one; a backoff after a
            // refusal or failure does.
            Place::Waiting(at) if node.setbacks == 0 => {
                // A request for later has become a request for now.
                node.since = node.since.min(now);
                self.waiting.remove(&(at, slot));
                self.enter_ready(slot);
            }
            _ => {}
        }
        old
    }

    /// Returns whether any key is ready.
    pub(super) fn is_any_ready(&self) -> bool {
        self.fresh_head != NONE || self.again.iter().chain(&self.adopted_ready).any(|ready| !ready.is_empty())
    }

    /// Returns the first ready key of a class, adopted or not.
    pub(super) fn first(&self, class: Class) -> Option<Ready> {
        let first = self.first_common(class);
        match self.first_adopted(class) {
            None => first,
            Some(adopted) => Some(first.map_or(adopted, |other| other.min(adopted))),
        }
    }

    /// Returns the first ready key of a class that is not adopted.
    pub(super) fn first_common(&self, class: Class) -> Option<Ready> {
        let fresh = (class == Class::Clean && self.fresh_head != NONE).then(|| self.ready(self.fresh_head).1);
        match (fresh, self.again[class as usize].first().copied()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Returns the first ready key of a class that is adopted.
    pub(super) fn first_adopted(&self, class: Class) -> Option<Ready> {
        self.adopted_ready[class as usize].first().copied()
    }

    /// Returns the youngest key that was never attempted and is not adopted.
    pub(super) fn youngest_fresh(&self) -> Option<Ready> {
        (self.fresh_tail != NONE).then(|| self.ready(self.fresh_tail).1)
    }

    /// Returns when the next waiting key becomes ready.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.waiting.first().map(|&(at, _)| at)
    }

    /// Makes those keys ready whose wait is over.
    pub(super) fn release_due(&mut self, now: Timestamp) {
        while let Some(&(at, slot)) = self.waiting.first()
            && at <= now
        {
            self.waiting.pop_first();
            self.enter_ready(slot);
        }
    }

    /// Takes the job of a ready key for an attempt. Returns the key, the job and the attempt's
    /// number.
    pub(super) fn start(&mut self, slot: Slot) -> (K, J, u32) {
        self.leave(slot);
        self.pending -= 1;
        let node = self.node_mut(slot);
        let tries = node.tries.saturating_add(1);
        node.place = Place::Running { since: node.since, tries };
        node.attempted = true;
        let job = node.job.take().expect("a ready key has a job");
        (node.key.clone(), job, tries)
    }

    /// Returns whether the key's last attempt failed.
    pub(super) fn class(&self, slot: Slot) -> Class {
        if self.node(slot).failed { Class::Failed } else { Class::Clean }
    }

    /// Returns a number by which a key is known again, whichever slot it has then.
    pub(super) fn identity(&self, slot: Slot) -> u64 {
        self.hasher.hash_one(self.key(slot))
    }

    /// Returns how many refusals and failures in a row the key has had.
    pub(super) fn setbacks(&self, slot: Slot) -> u16 {
        self.node(slot).setbacks
    }

    /// Ends an attempt whose job is done. A newer job, if one came meanwhile, is ready from now on.
    pub(super) fn finish(&mut self, slot: Slot) {
        let node = self.node_mut(slot);
        if node.job.is_some() {
            node.setbacks = 0;
            node.attempted = false;
            node.failed = false;
            self.enter_ready(slot);
        } else {
            self.free(slot);
        }
    }

    /// Ends an attempt whose job is tried again. A newer job takes its place and its age, and waits
    /// only after a setback. Returns the job that is no longer needed.
    pub(super) fn requeue(&mut self, slot: Slot, job: J, again: Requeue) -> Option<J> {
        let node = self.node_mut(slot);
        let Place::Running { since, tries } = node.place else { unreachable!("the key is in flight") };
        node.setbacks = again.setbacks;
        node.failed = again.failed;
        let superseded = if node.job.is_some() {
            if !again.fulfilled {
                node.since = since;
            }
            Some(job)
        } else {
            // A fulfilled request is repeated on purpose: its age starts when it is due.
            node.since = if again.fulfilled { again.at } else { since };
            node.job = Some(job);
            node.tries = tries;
            self.pending += 1;
            None
        };
        if superseded.is_some() && again.setbacks == 0 {
            self.enter_ready(slot);
        } else {
            self.node_mut(slot).place = Place::Waiting(again.at);
            self.waiting.insert((again.at, slot));
        }
        superseded
    }

    /// Removes the pending job of `key`. An attempt in flight continues.
    pub(super) fn clear(&mut self, key: &K) -> Cleared<J> {
        let hash = self.hasher.hash_one(key);
        let slots = &self.slots;
        let Ok(found) = self
            .index
            .find_entry(hash, |&slot| slots[slot as usize].as_ref().is_some_and(|node| node.key == *key))
        else {
            return Cleared { job: None, since: None, attempted: false, running: None };
        };
        let slot = *found.get();
        let node = self.slots[slot as usize].as_mut().expect("the index names live slots");
        let job = node.job.take();
        if job.is_some() {
            self.pending -= 1;
        }
        let (since, attempted) = (Some(node.since), node.attempted);
        if matches!(node.place, Place::Running { .. }) {
            return Cleared { job, since, attempted, running: Some(slot) };
        }
        found.remove();
        self.leave(slot);
        self.slots[slot as usize] = None;
        self.free.push(slot);
        Cleared { job, since, attempted, running: None }
    }

    /// Adopts a key: we write it also as a follower, the first time for as long as `first`.
    pub(super) fn adopt(&mut self, now: Timestamp, key: K, first: Duration) {
        self.adopted.adopt(now, key, first);
    }

    /// Returns whether any key is adopted.
    pub(super) fn holds_adopted(&self) -> bool {
        self.adopted.is_any_active()
    }

    /// Ends an adoption because another replica writes the key after all.
    pub(super) fn unadopt(&mut self, key: &K) {
        self.adopted.forget(key);
    }

    /// Returns whether the key was adopted until its adoption expired.
    pub(super) fn was_adopted(&self, slot: Slot) -> bool {
        self.adopted.was_adopted(self.key(slot))
    }

    /// Ends the adoptions that have expired.
    pub(super) fn end_adoptions(&mut self, now: Timestamp) {
        if self.adopted.end_due(now) {
            self.release_adopted();
        }
    }

    /// Ends the adoptions that are past half their time.
    pub(super) fn end_adoptions_early(&mut self, now: Timestamp) {
        if self.adopted.end_early(now) {
            self.release_adopted();
        }
    }

    fn release_adopted(&mut self) {
        for ready in std::mem::take(&mut self.adopted_ready).into_iter().flatten() {
            self.enter_ready(ready.slot);
        }
    }

    pub(super) fn key(&self, slot: Slot) -> &K {
        &self.node(slot).key
    }

    /// Takes all pending jobs, oldest first. Attempts in flight stay.
    pub(super) fn drain(&mut self) -> Vec<(K, J)> {
        let mut slots: Vec<(Timestamp, Slot)> = (0..self.slots.len() as Slot)
            .filter_map(|slot| {
                let node = self.slots[slot as usize].as_ref()?;
                node.job.is_some().then_some((node.since, slot))
            })
            .collect();
        slots.sort_unstable();
        let take = |(_, slot): (Timestamp, Slot)| {
            let key = self.key(slot).clone();
            self.clear(&key).job.map(|job| (key, job))
        };
        slots.into_iter().filter_map(take).collect()
    }

    fn node(&self, slot: Slot) -> &Node<K, J> {
        self.slots[slot as usize].as_ref().expect("a slot in use")
    }

    fn node_mut(&mut self, slot: Slot) -> &mut Node<K, J> {
        self.slots[slot as usize].as_mut().expect("a slot in use")
    }

    fn free(&mut self, slot: Slot) {
        let node = self.slots[slot as usize].take().expect("a slot in use");
        let hash = self.hasher.hash_one(&node.key);
        if let Ok(found) = self.index.find_entry(hash, |&other| other == slot) {
            found.remove();
        }
        self.free.push(slot);
    }

    fn enter_ready(&mut self, slot: Slot) {
        let node = self.node(slot);
        if self.adopted.contains(&node.key) {
            return self.enter_adopted(slot);
        }
        let (class, ready) = self.ready(slot);
        self.node_mut(slot).place = Place::Again;
        self.again[class as usize].insert(ready);
    }

    fn enter_adopted(&mut self, slot: Slot) {
        let (class, ready) = self.ready(slot);
        self.node_mut(slot).place = Place::Adopted;
        self.adopted_ready[class as usize].insert(ready);
    }

    /// Returns where a key stands among the ready ones.
    fn ready(&self, slot: Slot) -> (Class, Ready) {
        let node = self.node(slot);
        let failures = if node.failed { node.setbacks } else { 0 };
        (self.class(slot), Ready { failures, since: node.since, slot })
    }

    fn append_fresh(&mut self, slot: Slot) {
        let prev = self.fresh_tail;
        self.node_mut(slot).place = Place::Fresh { prev, next: NONE };
        self.set_next(prev, slot);
        self.fresh_tail = slot;
    }

    /// Unlinks a slot from its place.
    fn leave(&mut self, slot: Slot) {
        let (class, ready) = self.ready(slot);
        match self.node(slot).place {
            Place::Fresh { prev, next } => {
                self.set_next(prev, next);
                self.set_prev(next, prev);
            }
            Place::Again => drop(self.again[class as usize].remove(&ready)),
            Place::Adopted => drop(self.adopted_ready[class as usize].remove(&ready)),
            Place::Waiting(at) => drop(self.waiting.remove(&(at, slot))),
            Place::Running { .. } => {}
        }
    }

    /// Makes `to` the successor of `slot` in the list of fresh keys; of its head if `slot` is
    /// `NONE`.
    fn set_next(&mut self, slot: Slot, to: Slot) {
        if slot == NONE {
            self.fresh_head = to;
        } else if let Place::Fresh { next, .. } = &mut self.node_mut(slot).place {
            *next = to;
        }
    }

    fn set_prev(&mut self, slot: Slot, to: Slot) {
        if slot == NONE {
            self.fresh_tail = to;
        } else if let Place::Fresh { prev, .. } = &mut self.node_mut(slot).place {
            *prev = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    /// Starts the oldest ready key. Returns its age beside what `start` returns.
    fn take(queue: &mut Queue<&'static str, u32>) -> Option<(&'static str, u32, u32, Timestamp)> {
        let Ready { since, slot, .. } = queue.first(Class::Clean).or_else(|| queue.first(Class::Failed))?;
        let (key, job, number) = queue.start(slot);
        Some((key, job, number, since))
    }

    fn unfulfilled(at: Timestamp, setbacks: u16) -> Requeue {
        Requeue { at, fulfilled: false, setbacks, failed: false }
    }

    #[test]
    fn pending_key_costs_64_bytes_beside_its_index() {
        assert!(size_of::<Option<Node<std::sync::Arc<str>, Box<dyn Fn()>>>>() <= 64);
    }

    #[test]
    fn keys_come_out_in_order_of_arrival() {
        let mut queue = Queue::new();
        for (i, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
            queue.push(at(i as u64), key, 0);
        }
        queue.clear(&"b");
        let order: Vec<&str> = std::iter::from_fn(|| take(&mut queue).map(|(key, ..)| key)).collect();
        assert_eq!(order, ["a", "c", "d"]);
    }

    #[test]
    fn newer_job_takes_place_and_age_of_older() {
        let mut queue = Queue::new();
        queue.push(at(1), "a", 1);
        queue.push(at(2), "b", 2);
        assert_eq!(queue.push(at(3), "a", 3), Some(1));
        assert_eq!(queue.len(), 2);
        assert_eq!(take(&mut queue), Some(("a", 3, 1, at(1))));
    }

    #[test]
    fn key_that_is_requeued_keeps_its_age() {
        let mut queue = Queue::new();
        queue.push(at(1), "a", 1);
        let a = queue.first(Class::Clean).unwrap().slot;
        let (_, job, _) = queue.start(a);
        queue.push(at(2), "b", 2);
        queue.requeue(a, job, unfulfilled(at(10), 1));
        assert_eq!(queue.key(queue.first(Class::Clean).unwrap().slot), &"b");
        assert_eq!(queue.next_due(), Some(at(10)));
        queue.release_due(at(10));
        assert_eq!(queue.first(Class::Clean), Some(Ready { failures: 0, since: at(1), slot: a }));
    }

    #[test]
    fn failed_keys_stand_last_by_failures_then_age() {
        let mut queue = Queue::new();
        for (i, key) in ["thrice", "once", "refused", "later once"].into_iter().enumerate() {
            queue.push(at(i as u64), key, 0);
        }
        for (slot, setbacks, failed) in [(0, 3, true), (1, 1, true), (2, 9, false), (3, 1, true)] {
            let (_, job, _) = queue.start(slot);
            queue.requeue(slot, job, Requeue { failed, ..unfulfilled(at(10), setbacks) });
        }
        queue.release_due(at(10));
        queue.push(at(11), "fresh", 0);
        let order: Vec<&str> = std::iter::from_fn(|| take(&mut queue).map(|(key, ..)| key)).collect();
        assert_eq!(order, ["refused", "fresh", "once", "later once", "thrice"]);
    }

    #[test]
    fn newer_job_ends_a_voluntary_wait_only() {
        for (setbacks, ready) in [(1, false), (0, true)] {
            let mut queue = Queue::new();
            queue.push(at(1), "a", 1);
            let a = queue.first(Class::Clean).unwrap().slot;
            let (_, job, _) = queue.start(a);
            queue.requeue(a, job, unfulfilled(at(10), setbacks));
            queue.push(at(2), "a", 2);
            assert_eq!(queue.first(Class::Clean).is_some(), ready);
        }
    }

    #[test]
    fn newer_job_waits_for_the_attempt_in_flight() {
        let mut queue = Queue::new();
        queue.push(at(1), "a", 1);
        take(&mut queue).unwrap();
        queue.push(at(5), "a", 2);
        assert_eq!(queue.first(Class::Clean), None);
        queue.finish(0);
        assert_eq!(take(&mut queue), Some(("a", 2, 1, at(5))));
    }

    #[test]
    fn job_in_flight_keeps_its_own_age_and_number() {
        for (fulfilled, since) in [(false, at(1)), (true, at(10))] {
            let mut queue = Queue::new();
            queue.push(at(1), "a", 1);
            let (_, job, _, _) = take(&mut queue).unwrap();
            queue.push(at(5), "a", 2);
            queue.clear(&"a");
            queue.requeue(0, job, Requeue { at: at(10), fulfilled, setbacks: 0, failed: false });
            queue.release_due(at(10));
            assert_eq!(take(&mut queue), Some(("a", 1, 2, since)));
        }
    }

    #[test]
    fn adopted_keys_are_apart_but_count_as_oldest() {
        let mut queue = Queue::new();
        let adoption = Duration::from_nanos(10);
        queue.adopt(at(0), "mine", adoption);
        queue.push(at(1), "mine", 1);
        queue.push(at(2), "other", 2);
        assert_eq!(queue.first_adopted(Class::Clean).unwrap().since, at(1));
        assert_eq!(queue.first_common(Class::Clean).unwrap().since, at(2));
        assert_eq!(queue.first(Class::Clean).unwrap().since, at(1));
        queue.unadopt(&"mine");
        queue.clear(&"mine");
        queue.push(at(3), "mine", 1);
        assert_eq!(queue.first_adopted(Class::Clean), None);
        queue.adopt(at(4), "lent", adoption);
        queue.push(at(5), "lent", 3);
        queue.end_adoptions(at(9));
        assert_eq!(queue.first_adopted(Class::Clean).unwrap().since, at(5));
        queue.end_adoptions(at(10));
        assert_eq!(queue.first_adopted(Class::Clean), None);
        assert_eq!(queue.first_common(Class::Clean).unwrap().since, at(2));
        assert_eq!(queue.drain(), [("other", 2), ("mine", 1), ("lent", 3)]);
    }

    #[test]
    fn drain_returns_pending_jobs_oldest_first() {
        let mut queue = Queue::new();
        for (i, key) in ["out", "again", "fresh"].into_iter().enumerate() {
            queue.push(at(i as u64), key, i as u32);
        }
        take(&mut queue);
        let (_, job, ..) = take(&mut queue).unwrap();
        queue.requeue(1, job, unfulfilled(at(99), 1));
        assert_eq!(queue.drain(), [("again", 1), ("fresh", 2)]);
        assert_eq!(queue.len(), 0);
        queue.finish(0);
        assert!(queue.index.is_empty());
    }

    #[test]
    fn slots_are_reused() {
        let mut queue = Queue::new();
        for i in 0..1000_u64 {
            queue.push(at(i), i, ());
            queue.clear(&i);
        }
        assert_eq!(queue.slots.len(), 1);
    }
}
