//! The keyed queue of jobs: which keys have a job pending, since when, which of them may start
//! next, and who wrote them last.
//!
//! At most one job per key is pending, and at most one attempt of a key is in flight. Every
//! operation on the hot path (push, first, start, finish, clear) takes O(1), however much is pending. The
//! rarer ones (a key that waits for its retry, or whose incumbent changes while ready) take O(log n).
//!
//! A key is in exactly one place:
//!
//! ```text
//!   push ──> Fresh ──start──> Running ──finish──> Idle (or Again, if a newer job came meanwhile)
//!          (a FIFO list)         │              (a FIFO list)
//!                                └─requeue──> Waiting ──due──> Again
//!                                          (by due time)    (by age)
//! ```
//!
//! Fresh keys are in order of arrival because time only grows; keys that come back are sorted by
//! their age. So the oldest ready key is always at one of two heads. These two exist once for each
//! [`Incumbent`], because a replica may write its own keys when it may write no other. Keys whose
//! last attempt failed have an order of their own: by their failures in a row, then by age.
//!
//! An idle key has no job. It is remembered for its incumbent, and forgotten when that is old; a key
//! that nobody is known to have written is forgotten immediately.

mod incumbents;
mod look;
mod slots;

use std::{collections::BTreeSet, hash::Hash, time::Duration};

use self::slots::{Links, List, Slots};
pub(super) use self::{look::Position, slots::Slot};
use super::{incumbent::Incumbent, time::Timestamp};

#[derive(Debug)]
pub(super) struct Queue<K, J> {
    slots: Slots<K, J>,
    shards: Box<[Lanes]>,
    waiting: BTreeSet<(Timestamp, Slot)>,
    /// By the time since when they are idle.
    idle: List,
    pending: usize,
    failing: usize,
}

/// The keys of one shard.
#[derive(Debug)]
struct Lanes {
    /// By incumbent.
    ready: [Lane; Incumbent::ALL.len()],
    pending: usize,
}

#[cfg(test)]
pub(super) const LANES_SIZE: usize = size_of::<Lanes>();

/// The ready keys of one incumbent.
#[derive(Debug)]
struct Lane {
    fresh: List,
    /// By class.
    again: [BTreeSet<Ready>; 2],
}

/// 64 bytes for a key and a payload of two words each.
#[derive(Debug)]
struct Node<K, J> {
    key: K,
    /// `None` while idle, or while an attempt is in flight and no newer job came.
    job: Option<J>,
    /// When the first unfulfilled job of this key was handed in; since when it is idle.
    since: Timestamp,
    place: Place,
    tries: u16,
    shard: u16,
    setbacks: u8,
    attempted: bool,
    /// The last attempt failed, or panicked.
    failed: bool,
    incumbent: Incumbent,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Fresh(Links),
    Again,
    Waiting {
        at: Timestamp,
        /// The store denied the last attempt.
        denied: bool,
    },
    /// The age and the tries of the job in flight. A newer job of the key has its own in the node.
    Running {
        since: Timestamp,
        tries: u16,
    },
    Idle(Links),
    /// It was just made.
    Nowhere,
}

impl<K, J> Node<K, J> {
    fn new(key: K, shard: u16) -> Self {
        Self {
            key,
            shard,
            job: None,
            since: Timestamp::ZERO,
            place: Place::Nowhere,
            tries: 0,
            setbacks: 0,
            attempted: false,
            failed: false,
            incumbent: Incumbent::Nobody,
        }
    }
}

/// The terms on which a job is tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requeue {
    /// When.
    pub(super) at: Timestamp,
    /// The attempt found the request fulfilled, so that a repetition is a new request with a new
    /// age.
    pub(super) fulfilled: bool,
    /// How many refusals and failures in a row the key has had.
    pub(super) setbacks: u8,
    /// The attempt failed, or panicked.
    pub(super) failed: bool,
    /// The store denied it.
    pub(super) denied: bool,
}

/// Keys whose last attempt failed, or all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Clean,
    Failed,
}

impl Class {
    pub(super) const ALL: [Self; 2] = [Self::Clean, Self::Failed];
}

/// A ready key, in the order in which such keys start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ready {
    /// How many setbacks in a row a key of [`Class::Failed`] has had; 0 for all others.
    pub(super) failures: u8,
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
    /// The writer of its last value until then.
    pub(super) before: Incumbent,
    /// The key's slot, if an attempt of it is in flight.
    pub(super) running: Option<Slot>,
}

impl<J> Cleared<J> {
    /// The key was not known.
    fn nothing() -> Self {
        Self { job: None, since: None, attempted: false, before: Incumbent::Nobody, running: None }
    }
}

/// How many idle keys are forgotten with each job or evidence at most. Each of these adds one, so
/// that two suffice, and none takes long.
const FORGOTTEN_AT_ONCE: usize = 2;

impl<K: Hash + Eq + Clone, J> Queue<K, J> {
    /// Creates an empty queue. Its keys are in so many shards.
    pub(super) fn new(shards: u16) -> Self {
        let lane = || Lane { fresh: List::EMPTY, again: Default::default() };
        let lanes = || Lanes { ready: Incumbent::ALL.map(|_| lane()), pending: 0 };
        Self {
            slots: Slots::new(),
            shards: (0..shards).map(|_| lanes()).collect(),
            waiting: BTreeSet::new(),
            idle: List::EMPTY,
            pending: 0,
            failing: 0,
        }
    }

    /// Returns how many keys have a pending job, attempts in flight not counted.
    pub(super) fn len(&self) -> usize {
        self.pending
    }

    /// Returns how many keys of a shard have a pending job, attempts in flight not counted.
    pub(super) fn pending_in(&self, shard: u16) -> usize {
        self.shards[usize::from(shard)].pending
    }

    /// Returns how many keys' last attempts failed.
    pub(super) fn failing(&self) -> usize {
        self.failing
    }

    /// Returns how many keys are known, pending or not.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.slots.iter().count()
    }

    /// Adds a job to a shard. It replaces a job of the same key that is still pending, which is
    /// returned.
    pub(super) fn push(&mut self, now: Timestamp, shard: u16, key: K, job: J) -> Option<J> {
        let slot = self.slots.find_or_insert(key, |key| Node::new(key, shard));
        let lanes = &mut self.shards[usize::from(shard)];
        let node = self.slots.get_mut(slot);
        let old = node.job.replace(job);
        node.tries = 0;
        match node.place {
            Place::Running { .. } if old.is_none() => {
                node.since = now;
                self.pending += 1;
                lanes.pending += 1;
            }
            Place::Nowhere | Place::Idle(_) => {
                self.pending += 1;
                lanes.pending += 1;
                self.leave(slot);
                let node = self.slots.get_mut(slot);
                node.since = now;
                let lane = &mut self.shards[usize::from(shard)].ready[node.incumbent as usize];
                self.slots.append(&mut lane.fresh, slot, Place::Fresh);
            }
            // A delay that the old job asked for does not bind the new one; a backoff after a
            // refusal or failure does.
            Place::Waiting { denied, .. } if node.setbacks == 0 => {
                // A request for later has become a request for now. A denial has answered those before
                // it: denied keys that are wanted often would otherwise stand before all others.
                node.since = if denied { now } else { node.since.min(now) };
                self.leave(slot);
                self.enter_ready(slot);
            }
            _ => {}
        }
        old
    }

    /// Returns the first ready key of a shard, an incumbent and a class.
    pub(super) fn first(&self, shard: u16, incumbent: Incumbent, class: Class) -> Option<Ready> {
        let lane = self.lane(shard, incumbent);
        let fresh = lane.fresh.first().filter(|_| class == Class::Clean).map(|slot| self.ready(slot).1);
        match (fresh, lane.again[class as usize].first().copied()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Returns the youngest key of a shard and an incumbent that was never attempted.
    pub(super) fn youngest_fresh(&self, shard: u16, incumbent: Incumbent) -> Option<Ready> {
        self.lane(shard, incumbent).fresh.last().map(|slot| self.ready(slot).1)
    }

    /// Returns when the next waiting key becomes ready.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.waiting.first().map(|&(at, _)| at)
    }

    /// Makes those keys ready whose wait is over, and tells their shards.
    pub(super) fn release_due(&mut self, now: Timestamp, mut tell: impl FnMut(u16)) {
        while let Some(&(at, slot)) = self.waiting.first()
            && at <= now
        {
            self.waiting.pop_first();
            self.enter_ready(slot);
            tell(self.shard(slot));
        }
    }

    /// Takes the job of a ready key for an attempt. Returns the key, the job and the attempt's
    /// number.
    pub(super) fn start(&mut self, slot: Slot) -> (K, J, u32) {
        self.leave(slot);
        self.pending -= 1;
        let node = self.slots.get_mut(slot);
        self.shards[usize::from(node.shard)].pending -= 1;
        let tries = node.tries.saturating_add(1);
        node.place = Place::Running { since: node.since, tries };
        node.attempted = true;
        let job = node.job.take().expect("a ready key has a job");
        (node.key.clone(), job, tries.into())
    }

    pub(super) fn shard_of(&self, key: &K) -> Option<u16> {
        self.slots.find(key).map(|slot| self.shard(slot))
    }

    pub(super) fn shard(&self, slot: Slot) -> u16 {
        self.slots.get(slot).shard
    }

    /// Returns whether the key's last attempt failed.
    pub(super) fn class(&self, slot: Slot) -> Class {
        if self.slots.get(slot).failed { Class::Failed } else { Class::Clean }
    }

    /// Returns a number by which a key is known again, whichever slot it has then.
    pub(super) fn identity(&self, slot: Slot) -> u64 {
        self.slots.identity(slot)
    }

    /// Returns how many refusals and failures in a row the key has had.
    pub(super) fn setbacks(&self, slot: Slot) -> u8 {
        self.slots.get(slot).setbacks
    }

    /// Ends an attempt whose job is done. A newer job, if one came meanwhile, is ready from now on.
    pub(super) fn finish(&mut self, now: Timestamp, slot: Slot) {
        if self.slots.get(slot).job.is_some() {
            self.set_failed(slot, false);
            let node = self.slots.get_mut(slot);
            node.setbacks = 0;
            node.attempted = false;
            self.enter_ready(slot);
        } else {
            self.rest(now, slot);
        }
    }

    /// Ends an attempt whose job is tried again. A newer job takes its place and its age, and waits
    /// only after a setback. Returns the job that is no longer needed.
    pub(super) fn requeue(&mut self, slot: Slot, job: J, again: Requeue) -> Option<J> {
        self.set_failed(slot, again.failed);
        let node = self.slots.get_mut(slot);
        let Place::Running { since, tries } = node.place else { unreachable!("the key is in flight") };
        node.setbacks = again.setbacks;
        let superseded = if node.job.is_some() {
            if !again.fulfilled && !again.denied {
                node.since = since;
            }
            Some(job)
        } else {
            // A fulfilled request is repeated on purpose: its age starts when it is due.
            node.since = if again.fulfilled { again.at } else { since };
            node.job = Some(job);
            node.tries = tries;
            self.pending += 1;
            self.shards[usize::from(node.shard)].pending += 1;
            None
        };
        if superseded.is_some() && again.setbacks == 0 {
            self.enter_ready(slot);
        } else {
            self.slots.get_mut(slot).place = Place::Waiting { at: again.at, denied: again.denied };
            self.waiting.insert((again.at, slot));
        }
        superseded
    }

    /// Removes the pending job of `key`. An attempt in flight continues.
    pub(super) fn clear(&mut self, now: Timestamp, key: &K) -> Cleared<J> {
        let slot = self.slots.find(key);
        slot.map_or_else(Cleared::nothing, |slot| self.clear_slot(now, slot, None))
    }

    /// Removes the pending job of `key` in a shard, because `by` wrote it.
    pub(super) fn clear_written(&mut self, now: Timestamp, shard: u16, key: &K, by: Incumbent) -> Cleared<J> {
        match self.slots.find(key) {
            Some(slot) => self.clear_slot(now, slot, Some(by)),
            None => {
                self.set_incumbent(now, shard, key, by);
                Cleared::nothing()
            }
        }
    }

    fn clear_slot(&mut self, now: Timestamp, slot: Slot, by: Option<Incumbent>) -> Cleared<J> {
        let node = self.slots.get_mut(slot);
        let (job, before) = (node.job.take(), node.incumbent);
        let is_running = matches!(node.place, Place::Running { .. });
        let is_idle = matches!(node.place, Place::Idle(_));
        let since = (!is_idle).then_some(node.since);
        let attempted = node.attempted;
        self.pending -= usize::from(job.is_some());
        self.shards[usize::from(node.shard)].pending -= usize::from(job.is_some());
        if is_running {
            node.incumbent = by.unwrap_or(before);
        } else if !is_idle || by.is_some() {
            self.leave(slot);
            self.slots.get_mut(slot).incumbent = by.unwrap_or(before);
            self.rest(now, slot);
        }
        Cleared { job, since, attempted, before, running: is_running.then_some(slot) }
    }

    /// Forgets some of the keys that have been idle for `memory`.
    pub(super) fn forget_idle(&mut self, now: Timestamp, memory: Duration) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            match self.idle.first() {
                Some(slot) if self.slots.get(slot).since + memory <= now => {
                    self.leave(slot);
                    self.slots.remove(slot);
                }
                _ => return,
            }
        }
    }

    pub(super) fn key(&self, slot: Slot) -> &K {
        &self.slots.get(slot).key
    }

    /// Takes all pending jobs, oldest first. Attempts in flight stay.
    pub(super) fn drain(&mut self, now: Timestamp) -> Vec<(K, J)> {
        let pending = self.slots.iter().filter(|(_, node)| node.job.is_some());
        let mut slots: Vec<(Timestamp, Slot)> = pending.map(|(slot, node)| (node.since, slot)).collect();
        slots.sort_unstable();
        let take = |(_, slot): (Timestamp, Slot)| {
            let key = self.key(slot).clone();
            self.clear(now, &key).job.map(|job| (key, job))
        };
        slots.into_iter().filter_map(take).collect()
    }

    /// Lets a key without a job rest, after it left its place. It is remembered if somebody is known
    /// to have written it.
    fn rest(&mut self, now: Timestamp, slot: Slot) {
        self.set_failed(slot, false);
        let node = self.slots.get_mut(slot);
        if node.incumbent == Incumbent::Nobody {
            return self.slots.remove(slot);
        }
        (node.since, node.setbacks, node.attempted) = (now, 0, false);
        self.slots.append(&mut self.idle, slot, Place::Idle);
    }

    fn set_failed(&mut self, slot: Slot, failed: bool) {
        let node = self.slots.get_mut(slot);
        self.failing -= usize::from(node.failed);
        self.failing += usize::from(failed);
        node.failed = failed;
    }

    fn enter_ready(&mut self, slot: Slot) {
        let (class, ready) = self.ready(slot);
        let node = self.slots.get_mut(slot);
        node.place = Place::Again;
        let lane = &mut self.shards[usize::from(node.shard)].ready[node.incumbent as usize];
        lane.again[class as usize].insert(ready);
    }

    fn lane(&self, shard: u16, incumbent: Incumbent) -> &Lane {
        &self.shards[usize::from(shard)].ready[incumbent as usize]
    }

    /// Returns where a key stands among the ready ones.
    fn ready(&self, slot: Slot) -> (Class, Ready) {
        let node = self.slots.get(slot);
        let failures = if node.failed { node.setbacks } else { 0 };
        (self.class(slot), Ready { failures, since: node.since, slot })
    }

    /// Unlinks a slot from its place.
    fn leave(&mut self, slot: Slot) {
        let (class, ready) = self.ready(slot);
        let node = self.slots.get(slot);
        let lane = &mut self.shards[usize::from(node.shard)].ready[node.incumbent as usize];
        match node.place {
            Place::Fresh(links) => self.slots.unlink(&mut lane.fresh, links),
            Place::Idle(links) => self.slots.unlink(&mut self.idle, links),
            Place::Again => drop(lane.again[class as usize].remove(&ready)),
            Place::Waiting { at, .. } => drop(self.waiting.remove(&(at, slot))),
            Place::Running { .. } | Place::Nowhere => {}
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
        let Ready { since, slot, .. } = queue
            .first(0, Incumbent::Nobody, Class::Clean)
            .or_else(|| queue.first(0, Incumbent::Nobody, Class::Failed))?;
        let (key, job, number) = queue.start(slot);
        Some((key, job, number, since))
    }

    fn unfulfilled(at: Timestamp, setbacks: u8) -> Requeue {
        Requeue { at, fulfilled: false, setbacks, failed: false, denied: false }
    }

    #[test]
    fn pending_key_costs_64_bytes_beside_its_index() {
        assert!(size_of::<Option<Node<std::sync::Arc<str>, Box<dyn Fn()>>>>() <= 64);
    }

    #[test]
    fn keys_come_out_in_order_of_arrival() {
        let mut queue = Queue::new(1);
        for (i, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
            queue.push(at(i as u64), 0, key, 0);
        }
        queue.clear(at(0), &"b");
        let order: Vec<&str> = std::iter::from_fn(|| take(&mut queue).map(|(key, ..)| key)).collect();
        assert_eq!(order, ["a", "c", "d"]);
    }

    #[test]
    fn newer_job_takes_place_and_age_of_older() {
        let mut queue = Queue::new(1);
        queue.push(at(1), 0, "a", 1);
        queue.push(at(2), 0, "b", 2);
        assert_eq!(queue.push(at(3), 0, "a", 3), Some(1));
        assert_eq!(queue.len(), 2);
        assert_eq!(take(&mut queue), Some(("a", 3, 1, at(1))));
    }

    #[test]
    fn key_that_is_requeued_keeps_its_age() {
        let mut queue = Queue::new(1);
        queue.push(at(1), 0, "a", 1);
        let a = queue.first(0, Incumbent::Nobody, Class::Clean).unwrap().slot;
        let (_, job, _) = queue.start(a);
        queue.push(at(2), 0, "b", 2);
        queue.requeue(a, job, unfulfilled(at(10), 1));
        assert_eq!(queue.key(queue.first(0, Incumbent::Nobody, Class::Clean).unwrap().slot), &"b");
        assert_eq!(queue.next_due(), Some(at(10)));
        queue.release_due(at(10), |_| ());
        assert_eq!(
            queue.first(0, Incumbent::Nobody, Class::Clean),
            Some(Ready { failures: 0, since: at(1), slot: a })
        );
    }

    #[test]
    fn failed_keys_stand_last_by_failures_then_age() {
        let mut queue = Queue::new(1);
        for (i, key) in ["thrice", "once", "refused", "later once"].into_iter().enumerate() {
            queue.push(at(i as u64), 0, key, 0);
        }
        for (slot, setbacks, failed) in [(0, 3, true), (1, 1, true), (2, 9, false), (3, 1, true)] {
            let (_, job, _) = queue.start(slot);
            queue.requeue(slot, job, Requeue { failed, ..unfulfilled(at(10), setbacks) });
        }
        queue.release_due(at(10), |_| ());
        queue.push(at(11), 0, "fresh", 0);
        let order: Vec<&str> = std::iter::from_fn(|| take(&mut queue).map(|(key, ..)| key)).collect();
        assert_eq!(order, ["refused", "fresh", "once", "later once", "thrice"]);
    }

    #[test]
    fn newer_job_ends_a_voluntary_wait_only() {
        for (setbacks, ready) in [(1, false), (0, true)] {
            let mut queue = Queue::new(1);
            queue.push(at(1), 0, "a", 1);
            let a = queue.first(0, Incumbent::Nobody, Class::Clean).unwrap().slot;
            let (_, job, _) = queue.start(a);
            queue.requeue(a, job, unfulfilled(at(10), setbacks));
            queue.push(at(2), 0, "a", 2);
            assert_eq!(queue.first(0, Incumbent::Nobody, Class::Clean).is_some(), ready);
        }
    }

    #[test]
    fn newer_job_waits_for_the_attempt_in_flight() {
        let mut queue = Queue::new(1);
        queue.push(at(1), 0, "a", 1);
        take(&mut queue).unwrap();
        queue.push(at(5), 0, "a", 2);
        assert_eq!(queue.first(0, Incumbent::Nobody, Class::Clean), None);
        queue.finish(at(9), 0);
        assert_eq!(take(&mut queue), Some(("a", 2, 1, at(5))));
    }

    #[test]
    fn job_in_flight_keeps_its_own_age_and_number() {
        for (fulfilled, since) in [(false, at(1)), (true, at(10))] {
            let mut queue = Queue::new(1);
            queue.push(at(1), 0, "a", 1);
            let (_, job, _, _) = take(&mut queue).unwrap();
            queue.push(at(5), 0, "a", 2);
            queue.clear(at(0), &"a");
            queue.requeue(0, job, Requeue { fulfilled, ..unfulfilled(at(10), 0) });
            queue.release_due(at(10), |_| ());
            assert_eq!(take(&mut queue), Some(("a", 1, 2, since)));
        }
    }

    #[test]
    fn keys_of_each_incumbent_are_apart() {
        let mut queue = Queue::new(1);
        queue.set_incumbent(at(0), 0, &"theirs", Incumbent::Other);
        for (i, key) in ["theirs", "ours", "nobody's"].into_iter().enumerate() {
            queue.push(at(1 + i as u64), 0, key, 0);
        }
        assert_eq!(queue.set_incumbent(at(5), 0, &"ours", Incumbent::Us), Incumbent::Nobody);
        let first =
            |queue: &Queue<_, _>, incumbent| Some(*queue.key(queue.first(0, incumbent, Class::Clean)?.slot));
        assert_eq!(
            Incumbent::ALL.map(|i| first(&queue, i)),
            [Some("nobody's"), Some("ours"), Some("theirs")]
        );
        queue.change_incumbents(at(6), |_, incumbent| match incumbent {
            Incumbent::Other => Incumbent::Nobody,
            incumbent => incumbent,
        });
        assert_eq!(Incumbent::ALL.map(|i| first(&queue, i)), [Some("theirs"), Some("ours"), None]);
    }

    #[test]
    fn incumbent_is_remembered_for_a_while() {
        let memory = Duration::from_nanos(10);
        let mut queue = Queue::new(1);
        queue.push(at(0), 0, "ours", 0);
        queue.start(0);
        queue.set_incumbent_of(at(1), 0, Incumbent::Us);
        queue.finish(at(2), 0);
        queue.set_incumbent(at(3), 0, &"theirs", Incumbent::Other);
        queue.forget_idle(at(11), memory);
        queue.push(at(11), 0, "ours", 0);
        assert!(queue.first(0, Incumbent::Us, Class::Clean).is_some());
        queue.forget_idle(at(13), memory);
        queue.push(at(13), 0, "theirs", 0);
        assert!(queue.first(0, Incumbent::Other, Class::Clean).is_none(), "it is nobody's by now");
        queue.clear(at(14), &"ours");
        queue.clear(at(14), &"theirs");
        queue.forget_idle(at(24), memory);
        assert!(queue.slots.iter().next().is_none(), "nothing is remembered for ever");
    }

    #[test]
    fn failing_keys_are_counted() {
        let mut queue = Queue::new(1);
        for (i, key) in ["a", "b"].into_iter().enumerate() {
            queue.push(at(0), 0, key, 0);
            let (_, job, _) = queue.start(i as Slot);
            queue.requeue(i as Slot, job, Requeue { failed: true, ..unfulfilled(at(1), 1) });
        }
        assert_eq!(queue.failing(), 2);
        queue.clear(at(1), &"a");
        queue.release_due(at(1), |_| ());
        assert_eq!(queue.failing(), 1);
        queue.start(1);
        queue.finish(at(2), 1);
        assert_eq!(queue.failing(), 0);
    }

    #[test]
    fn drain_returns_pending_jobs_oldest_first() {
        let mut queue = Queue::new(1);
        for (i, key) in ["out", "again", "fresh"].into_iter().enumerate() {
            queue.push(at(i as u64), 0, key, i as u32);
        }
        take(&mut queue);
        let (_, job, ..) = take(&mut queue).unwrap();
        queue.requeue(1, job, unfulfilled(at(99), 1));
        assert_eq!(queue.drain(at(9)), [("again", 1), ("fresh", 2)]);
        assert_eq!(queue.len(), 0);
        queue.finish(at(9), 0);
        assert!(queue.slots.iter().next().is_none());
    }

    #[test]
    fn slots_are_reused() {
        let mut queue = Queue::new(1);
        for i in 0..1000_u64 {
            queue.push(at(i), 0, i, ());
            queue.clear(at(0), &i);
        }
        assert_eq!(queue.slots.iter().count(), 0);
        queue.push(at(0), 0, 0, ());
        assert_eq!(queue.slots.find(&0), Some(0));
    }
}
