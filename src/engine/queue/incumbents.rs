//! The incumbents of keys.

use std::hash::Hash;

use super::{Node, Place, Queue, Slot};
use crate::engine::{incumbent::Incumbent, time::Timestamp};

impl<K: Hash + Eq + Clone, J> Queue<K, J> {
    pub(in crate::engine) fn incumbent(&self, key: &K) -> Incumbent {
        self.slots.find(key).map_or(Incumbent::Nobody, |slot| self.slots.get(slot).incumbent)
    }

    /// Notes who wrote a key of a shard last. Returns who did before.
    pub(in crate::engine) fn set_incumbent(
        &mut self,
        now: Timestamp,
        shard: u16,
        key: &K,
        incumbent: Incumbent,
    ) -> Incumbent {
        match self.slots.find(key) {
            Some(slot) => self.set_incumbent_of(now, slot, incumbent),
            None if incumbent == Incumbent::Nobody => Incumbent::Nobody,
            None => {
                let slot = self.slots.find_or_insert(key.clone(), |key| Node::new(key, shard));
                self.set_incumbent_of(now, slot, incumbent)
            }
        }
    }

    /// Notes who wrote the key of a slot last. Returns who did before.
    pub(in crate::engine) fn set_incumbent_of(
        &mut self,
        now: Timestamp,
        slot: Slot,
        incumbent: Incumbent,
    ) -> Incumbent {
        let node = self.slots.get(slot);
        let (before, place) = (node.incumbent, node.place);
        match place {
            Place::Idle(_) | Place::Nowhere => {
                self.leave(slot);
                self.slots.get_mut(slot).incumbent = incumbent;
                self.rest(now, slot);
            }
            Place::Fresh(_) | Place::Again if before != incumbent => {
                self.leave(slot);
                self.slots.get_mut(slot).incumbent = incumbent;
                self.enter_ready(slot);
            }
            _ => self.slots.get_mut(slot).incumbent = incumbent,
        }
        before
    }

    /// Changes the incumbent of each key to what `change` makes of its shard and its incumbent.
    pub(in crate::engine) fn change_incumbents(
        &mut self,
        now: Timestamp,
        change: impl Fn(u16, Incumbent) -> Incumbent,
    ) {
        let changed = self.slots.iter().filter_map(|(slot, node)| {
            let to = change(node.shard, node.incumbent);
            (to != node.incumbent).then_some((slot, to))
        });
        for (slot, to) in changed.collect::<Vec<(Slot, Incumbent)>>() {
            self.set_incumbent_of(now, slot, to);
        }
    }
}
