//! The keyed work queue: which keys have work pending, since when, and which of them may be taken next.
//!
//! At most one piece of work per key is pending, and at most one attempt of a key is out. Every operation on the hot path
//! (push, oldest, start, finish, clear) is O(1) whatever is pending; the rarer ones (a key that waits for its retry, a
//! key that this replica has made its own) are O(log n).
//!
//! A key with work is in exactly one place:
//!
//! ```text
//!   push ──> Fresh ──start──> Running ──finish──> gone (or Fresh, if newer work came meanwhile)
//!              (FIFO list)       │
//!                                └─requeue──> Waiting ──due──> Again   (sorted by age)
//!                                          (sorted by time)
//! ```
//!
//! Fresh keys are in order of arrival because time only grows; keys that come back are sorted in by their age. So the
//! oldest ready key is always at one of two heads. A key of our own (`Adopted`) goes to a third one, because a
//! follower may take it when it may take no other.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hash},
    time::Duration,
};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::{adopted::Adopted, time::Timestamp};

/// Index of a slot. Four bytes, because there may be millions.
pub(super) type Slot = u32;

const NONE: Slot = Slot::MAX;

#[derive(Debug)]
pub(super) struct Queue<K, W> {
    hasher: DefaultHashBuilder,
    /// Finds a key's slot; holds indices only, so that a key is stored once.
    index: HashTable<Slot>,
    slots: Vec<Option<Node<K, W>>>,
    free: Vec<Slot>,
    fresh_head: Slot,
    fresh_tail: Slot,
    again: BTreeSet<(Timestamp, Slot)>,
    adopted_ready: BTreeSet<(Timestamp, Slot)>,
    waiting: BTreeSet<(Timestamp, Slot)>,
    own: Adopted<K>,
    pending: usize,
}

/// 64 bytes for a key and a payload of two words each.
#[derive(Debug)]
struct Node<K, W> {
    key: K,
    /// `None` only while an attempt is out and no newer work came.
    work: Option<W>,
    /// When the first unfulfilled work of this key was handed in.
    since: Timestamp,
    place: Place,
    tries: u32,
    setbacks: u16,
    attempted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Fresh { prev: Slot, next: Slot },
    Again,
    Adopted,
    Waiting(Timestamp),
    Running,
}

/// What is known of a key's work when its attempt starts.
#[derive(Debug)]
pub(super) struct Taken<W> {
    pub work: W,
    pub since: Timestamp,
    pub tries: u32,
    pub setbacks: u16,
}

/// What a key brings back from an attempt whose work is to be tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Back {
    /// Since when the work was wanted; `None` if the attempt fulfilled it, so that what is wanted is wanted anew.
    pub since: Option<Timestamp>,
    pub tries: u32,
    pub setbacks: u16,
}

/// A ready key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ready {
    pub since: Timestamp,
    pub slot: Slot,
}

/// What clearing a key found.
#[derive(Debug)]
pub(super) struct Cleared<W> {
    pub work: Option<W>,
    /// Since when the work was pending.
    pub since: Option<Timestamp>,
    /// This replica attempted it.
    pub attempted: bool,
    /// An attempt of the key is out.
    pub running: Option<Slot>,
}

impl<K: Hash + Eq + Clone, W> Queue<K, W> {
    pub fn new() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            fresh_head: NONE,
            fresh_tail: NONE,
            again: BTreeSet::new(),
            adopted_ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            own: Adopted::new(),
            pending: 0,
        }
    }

    /// How many keys have work that no attempt is out with.
    pub fn len(&self) -> usize {
        self.pending
    }

    /// Adds work, in place of work of the same key that is still pending, which is returned. `now` is asked for only if
    /// that has to be known.
    pub fn push(&mut self, now: impl FnOnce() -> Timestamp, key: K, work: W) -> Option<W> {
        let hash = self.hasher.hash_one(&key);
        let slots = &self.slots;
        match self.index.entry(
            hash,
            |&slot| slots[slot as usize].as_ref().is_some_and(|node| node.key == key),
            |&slot| slots[slot as usize].as_ref().map_or(0, |node| self.hasher.hash_one(&node.key)),
        ) {
            Entry::Occupied(found) => {
                let slot = *found.get();
                self.replace(now, slot, work)
            }
            Entry::Vacant(vacant) => {
                let own = self.own.contains(&key);
                let slot = self.free.pop().unwrap_or(self.slots.len() as Slot);
                vacant.insert(slot);
                let node = Node {
                    key,
                    work: Some(work),
                    since: now(),
                    place: Place::Running,
                    tries: 0,
                    setbacks: 0,
                    attempted: false,
                };
                if slot as usize == self.slots.len() {
                    self.slots.push(Some(node));
                } else {
                    self.slots[slot as usize] = Some(node);
                }
                self.pending += 1;
                if own {
                    self.enter_adopted(slot)
                } else {
                    self.append_fresh(slot)
                }
                None
            }
        }
    }

    fn replace(&mut self, now: impl FnOnce() -> Timestamp, slot: Slot, work: W) -> Option<W> {
        let node = self.node_mut(slot);
        let old = node.work.replace(work);
        node.tries = 0;
        let (place, setbacks) = (node.place, node.setbacks);
        match place {
            Place::Running if old.is_none() => {
                node.since = now();
                self.pending += 1;
            }
            // It waited because its own work asked to; newer work doesn't. After a setback the store asked.
            Place::Waiting(at) if setbacks == 0 => {
                self.waiting.remove(&(at, slot));
                // What was to be wanted later is wanted now.
                let node = self.node_mut(slot);
                node.since = node.since.min(now());
                self.enter_ready(slot);
            }
            _ => {}
        }
        old
    }

    /// The oldest key that may be taken now by somebody who may take any.
    pub fn oldest(&self) -> Option<Ready> {
        let oldest = self.oldest_common();
        match self.oldest_adopted() {
            None => oldest,
            Some(own) => Some(oldest.map_or(own, |other| other.min(own))),
        }
    }

    /// The oldest ready key that is not one of our own.
    pub fn oldest_common(&self) -> Option<Ready> {
        let fresh = (self.fresh_head != NONE)
            .then(|| Ready { since: self.node(self.fresh_head).since, slot: self.fresh_head });
        if self.again.is_empty() {
            return fresh;
        }
        let again = self.again.first().map(|&(since, slot)| Ready { since, slot });
        match (fresh, again) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The oldest ready key that we have made our own.
    pub fn oldest_adopted(&self) -> Option<Ready> {
        self.adopted_ready.first().map(|&(since, slot)| Ready { since, slot })
    }

    /// When the next waiting key becomes ready.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.waiting.first().map(|&(at, _)| at)
    }

    /// Makes the keys ready whose wait is over.
    pub fn release_due(&mut self, now: Timestamp) {
        while let Some(&(at, slot)) = self.waiting.first()
            && at <= now
        {
            self.waiting.pop_first();
            self.enter_ready(slot);
        }
    }

    /// Takes the work of a ready key for an attempt.
    pub fn start(&mut self, slot: Slot) -> (K, Taken<W>) {
        self.leave(slot);
        self.pending -= 1;
        let node = self.node_mut(slot);
        node.place = Place::Running;
        node.tries = node.tries.saturating_add(1);
        node.attempted = true;
        let taken = Taken {
            work: node.work.take().expect("a ready key has work"),
            since: node.since,
            tries: node.tries,
            setbacks: node.setbacks,
        };
        (node.key.clone(), taken)
    }

    /// The attempt is over and its work is done. Newer work, if any came meanwhile, is ready from now on.
    pub fn finish(&mut self, slot: Slot) {
        let node = self.node_mut(slot);
        if node.work.is_some() {
            node.setbacks = 0;
            node.attempted = false;
            self.enter_ready(slot);
        } else {
            self.free(slot);
        }
    }

    /// The attempt is over and its work is to be tried again at `at`. Newer work takes its place, with its age; it waits
    /// after a setback only. Returns the work that is not needed any more.
    pub fn requeue(&mut self, slot: Slot, work: W, at: Timestamp, back: Back) -> Option<W> {
        let node = self.node_mut(slot);
        node.setbacks = back.setbacks;
        let superseded = if node.work.is_some() {
            node.since = back.since.unwrap_or(node.since);
            Some(work)
        } else {
            node.since = back.since.unwrap_or(at);
            node.work = Some(work);
            node.tries = back.tries;
            self.pending += 1;
            None
        };
        if superseded.is_some() && back.setbacks == 0 {
            self.enter_ready(slot);
        } else {
            self.node_mut(slot).place = Place::Waiting(at);
            self.waiting.insert((at, slot));
        }
        superseded
    }

    /// Removes what is pending for `key`. An attempt that is out goes on.
    pub fn clear(&mut self, key: &K) -> Cleared<W> {
        let hash = self.hasher.hash_one(key);
        let slots = &self.slots;
        let Ok(found) = self
            .index
            .find_entry(hash, |&slot| slots[slot as usize].as_ref().is_some_and(|node| node.key == *key))
        else {
            return Cleared { work: None, since: None, attempted: false, running: None };
        };
        let slot = *found.get();
        let node = self.slots[slot as usize].as_mut().expect("the index names live slots");
        let work = node.work.take();
        if work.is_some() {
            self.pending -= 1;
        }
        let (since, attempted) = (Some(node.since), node.attempted);
        if node.place == Place::Running {
            return Cleared { work, since, attempted, running: Some(slot) };
        }
        found.remove();
        self.leave(slot);
        self.slots[slot as usize] = None;
        self.free.push(slot);
        Cleared { work, since, attempted, running: None }
    }

    /// From now on this key is ours to write, also as a follower; the first time for as long as `first`.
    pub fn adopt(&mut self, now: Timestamp, key: K, first: Duration) {
        self.own.adopt(now, key, first);
    }

    /// Whether any key is ours.
    pub fn holds_adopted(&self) -> bool {
        self.own.is_any_active()
    }

    /// Somebody else does this key after all.
    pub fn unadopt(&mut self, key: &K) {
        self.own.forget(key);
    }

    /// Whether it was ours until the adoption ended.
    pub fn was_adopted(&self, slot: Slot) -> bool {
        self.own.was_adopted(self.key(slot))
    }

    /// Keys whose adoption is over are no longer ours.
    pub fn end_adoptions(&mut self, now: Timestamp) {
        if self.own.end_due(now) {
            self.release_adopted();
        }
    }

    /// Keys whose adoption has lasted for at least half of its time are no longer ours.
    pub fn end_adoptions_early(&mut self, now: Timestamp) {
        if self.own.end_early(now) {
            self.release_adopted();
        }
    }

    fn release_adopted(&mut self) {
        for (_, slot) in std::mem::take(&mut self.adopted_ready) {
            self.enter_ready(slot);
        }
    }

    pub fn key(&self, slot: Slot) -> &K {
        &self.node(slot).key
    }

    /// Takes everything that is pending, oldest first; attempts that are out stay.
    pub fn drain(&mut self) -> Vec<(K, W)> {
        let mut taken = Vec::with_capacity(self.pending);
        let mut slots: Vec<(Timestamp, Slot)> = (0..self.slots.len() as Slot)
            .filter_map(|slot| {
                let node = self.slots[slot as usize].as_ref()?;
                node.work.is_some().then_some((node.since, slot))
            })
            .collect();
        slots.sort_unstable();
        for (_, slot) in slots {
            let key = self.key(slot).clone();
            if let Some(work) = self.clear(&key).work {
                taken.push((key, work));
            }
        }
        taken
    }

    fn node(&self, slot: Slot) -> &Node<K, W> {
        self.slots[slot as usize].as_ref().expect("a slot in use")
    }

    fn node_mut(&mut self, slot: Slot) -> &mut Node<K, W> {
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
        if self.own.contains(&node.key) {
            return self.enter_adopted(slot);
        }
        let since = node.since;
        self.node_mut(slot).place = Place::Again;
        self.again.insert((since, slot));
    }

    fn enter_adopted(&mut self, slot: Slot) {
        let since = self.node(slot).since;
        self.node_mut(slot).place = Place::Adopted;
        self.adopted_ready.insert((since, slot));
    }

    fn append_fresh(&mut self, slot: Slot) {
        let prev = self.fresh_tail;
        self.node_mut(slot).place = Place::Fresh { prev, next: NONE };
        self.set_next(prev, slot);
        self.fresh_tail = slot;
    }

    /// Takes a slot out of the place where it is.
    fn leave(&mut self, slot: Slot) {
        let node = self.node(slot);
        let since = node.since;
        match node.place {
            Place::Fresh { prev, next } => {
                self.set_next(prev, next);
                self.set_prev(next, prev);
            }
            Place::Again => drop(self.again.remove(&(since, slot))),
            Place::Adopted => drop(self.adopted_ready.remove(&(since, slot))),
            Place::Waiting(at) => drop(self.waiting.remove(&(at, slot))),
            Place::Running => {}
        }
    }

    /// Makes `next` the successor of `slot` in the list of fresh keys.
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

    fn take(queue: &mut Queue<&'static str, u32>) -> Option<(&'static str, Taken<u32>)> {
        let oldest = queue.oldest()?;
        Some(queue.start(oldest.slot))
    }

    #[test]
    fn a_pending_key_costs_sixty_four_bytes_beside_its_index_entry() {
        assert!(size_of::<Option<Node<std::sync::Arc<str>, Box<dyn Fn()>>>>() <= 64);
    }

    #[test]
    fn keys_come_out_in_order_of_arrival() {
        let mut queue = Queue::new();
        for (i, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
            queue.push(|| at(i as u64), key, 0);
        }
        queue.clear(&"b");
        let order: Vec<&str> = std::iter::from_fn(|| take(&mut queue).map(|(key, _)| key)).collect();
        assert_eq!(order, ["a", "c", "d"]);
    }

    #[test]
    fn newer_work_takes_the_place_and_the_age_of_the_older() {
        let mut queue = Queue::new();
        queue.push(|| at(1), "a", 1);
        queue.push(|| at(2), "b", 2);
        assert_eq!(queue.push(|| at(3), "a", 3), Some(1));
        assert_eq!(queue.len(), 2);
        let (key, taken) = take(&mut queue).unwrap();
        assert_eq!((key, taken.work, taken.since), ("a", 3, at(1)));
    }

    #[test]
    fn a_key_that_comes_back_keeps_its_age() {
        let mut queue = Queue::new();
        queue.push(|| at(1), "a", 1);
        let a = queue.oldest().unwrap().slot;
        let (_, taken) = queue.start(a);
        queue.push(|| at(2), "b", 2);
        queue.requeue(
            a,
            taken.work,
            at(10),
            Back { since: Some(taken.since), tries: taken.tries, setbacks: 1 },
        );
        assert_eq!(queue.key(queue.oldest().unwrap().slot), &"b");
        assert_eq!(queue.next_due(), Some(at(10)));
        queue.release_due(at(10));
        assert_eq!(queue.oldest(), Some(Ready { since: at(1), slot: a }));
    }

    #[test]
    fn newer_work_does_not_shorten_the_wait_after_a_setback_but_ends_a_voluntary_one() {
        for (setbacks, ready) in [(1, false), (0, true)] {
            let mut queue = Queue::new();
            queue.push(|| at(1), "a", 1);
            let a = queue.oldest().unwrap().slot;
            let (_, taken) = queue.start(a);
            queue.requeue(
                a,
                taken.work,
                at(10),
                Back { since: Some(taken.since), tries: taken.tries, setbacks },
            );
            queue.push(|| at(2), "a", 2);
            assert_eq!(queue.oldest().is_some(), ready);
        }
    }

    #[test]
    fn work_handed_in_while_its_key_is_out_waits_for_it() {
        let mut queue = Queue::new();
        queue.push(|| at(1), "a", 1);
        let (_, _) = take(&mut queue).unwrap();
        queue.push(|| at(5), "a", 2);
        assert_eq!(queue.oldest(), None);
        queue.finish(0);
        let (_, taken) = take(&mut queue).unwrap();
        assert_eq!((taken.work, taken.since, taken.tries), (2, at(5), 1));
    }

    #[test]
    fn own_keys_are_apart_and_still_the_oldest_of_all() {
        let mut queue = Queue::new();
        let adoption = Duration::from_nanos(10);
        queue.adopt(at(0), "mine", adoption);
        queue.push(|| at(1), "mine", 1);
        queue.push(|| at(2), "other", 2);
        assert_eq!(queue.oldest_adopted().unwrap().since, at(1));
        assert_eq!(queue.oldest_common().unwrap().since, at(2));
        assert_eq!(queue.oldest().unwrap().since, at(1));
        queue.unadopt(&"mine");
        queue.clear(&"mine");
        queue.push(|| at(3), "mine", 1);
        assert_eq!(queue.oldest_adopted(), None);
        queue.adopt(at(4), "lent", adoption);
        queue.push(|| at(5), "lent", 3);
        queue.end_adoptions(at(9));
        assert_eq!(queue.oldest_adopted().unwrap().since, at(5));
        queue.end_adoptions(at(10));
        assert_eq!(queue.oldest_adopted(), None);
        assert_eq!(queue.oldest_common().unwrap().since, at(2));
        assert_eq!(queue.drain(), [("other", 2), ("mine", 1), ("lent", 3)]);
    }

    #[test]
    fn draining_hands_back_all_that_is_pending_oldest_first() {
        let mut queue = Queue::new();
        for (i, key) in ["out", "again", "fresh"].into_iter().enumerate() {
            queue.push(|| at(i as u64), key, i as u32);
        }
        take(&mut queue);
        let (_, taken) = take(&mut queue).unwrap();
        queue.requeue(1, taken.work, at(99), Back { since: Some(taken.since), tries: 1, setbacks: 1 });
        assert_eq!(queue.drain(), [("again", 1), ("fresh", 2)]);
        assert_eq!(queue.len(), 0);
        queue.finish(0);
        assert!(queue.index.is_empty());
    }

    #[test]
    fn slots_are_used_again() {
        let mut queue = Queue::new();
        for i in 0..1000_u64 {
            queue.push(|| at(i), i, ());
            queue.clear(&i);
        }
        assert_eq!(queue.slots.len(), 1);
    }
}
