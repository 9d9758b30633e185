//! The slots that hold the keys, found by key, and lists through them.

use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::{Node, Place};

/// An index of a slot. Four bytes, because there may be millions.
pub(in crate::engine) type Slot = u32;

const NONE: Slot = Slot::MAX;

#[derive(Debug)]
pub(super) struct Slots<K, J> {
    hasher: DefaultHashBuilder,
    /// Finds a key's slot. It holds indices only, so that a key is stored once.
    index: HashTable<Slot>,
    nodes: Vec<Option<Node<K, J>>>,
    free: Vec<Slot>,
}

/// The two ends of a list. Its links are in the nodes' places.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    head: Slot,
    tail: Slot,
}

/// The neighbours of a node in its list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Links {
    prev: Slot,
    next: Slot,
}

impl<K: Hash + Eq, J> Slots<K, J> {
    pub(super) fn new() -> Self {
        let hasher = DefaultHashBuilder::default();
        Self { hasher, index: HashTable::new(), nodes: Vec::new(), free: Vec::new() }
    }

    pub(super) fn find(&self, key: &K) -> Option<Slot> {
        let is_it = |&slot: &Slot| self.get(slot).key == *key;
        self.index.find(self.hasher.hash_one(key), is_it).copied()
    }

    /// Returns the slot of a key. A key without one gets one, with the node that `new` makes.
    pub(super) fn find_or_insert(&mut self, key: K, new: impl FnOnce(K) -> Node<K, J>) -> Slot {
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        let key_of = |slot: Slot| &nodes[slot as usize].as_ref().expect("the index names slots in use").key;
        let entry = self.index.entry(
            hasher.hash_one(&key),
            |&slot| *key_of(slot) == key,
            |&slot| hasher.hash_one(key_of(slot)),
        );
        match entry {
            Entry::Occupied(found) => *found.get(),
            Entry::Vacant(vacant) => {
                let slot = self.free.pop().unwrap_or(self.nodes.len() as Slot);
                vacant.insert(slot);
                if slot as usize == self.nodes.len() {
                    self.nodes.push(None);
                }
                self.nodes[slot as usize] = Some(new(key));
                slot
            }
        }
    }

    pub(super) fn get(&self, slot: Slot) -> &Node<K, J> {
        self.nodes[slot as usize].as_ref().expect("a slot in use")
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut Node<K, J> {
        self.nodes[slot as usize].as_mut().expect("a slot in use")
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        let node = self.nodes[slot as usize].take().expect("a slot in use");
        if let Ok(found) = self.index.find_entry(self.hasher.hash_one(&node.key), |&other| other == slot) {
            found.remove();
        }
        self.free.push(slot);
    }

    /// Returns a number by which a key is known again, whichever slot it has then.
    pub(super) fn identity(&self, slot: Slot) -> u64 {
        self.hasher.hash_one(&self.get(slot).key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Node<K, J>)> {
        (0..).zip(&self.nodes).filter_map(|(slot, node)| Some((slot, node.as_ref()?)))
    }

    /// Appends a slot to a list. `place` makes the place of its node.
    pub(super) fn append(&mut self, list: &mut List, slot: Slot, place: impl FnOnce(Links) -> Place) {
        self.get_mut(slot).place = place(Links { prev: list.tail, next: NONE });
        match list.tail {
            NONE => list.head = slot,
            tail => self.links_mut(tail).next = slot,
        }
        list.tail = slot;
    }

    pub(super) fn unlink(&mut self, list: &mut List, links: Links) {
        match links.prev {
            NONE => list.head = links.next,
            prev => self.links_mut(prev).next = links.next,
        }
        match links.next {
            NONE => list.tail = links.prev,
            next => self.links_mut(next).prev = links.prev,
        }
    }

    fn links_mut(&mut self, slot: Slot) -> &mut Links {
        match &mut self.get_mut(slot).place {
            Place::Fresh(links) | Place::Idle(links) => links,
            _ => unreachable!("lists link slots that are in lists"),
        }
    }
}

impl List {
    pub(super) const EMPTY: Self = Self { head: NONE, tail: NONE };

    pub(super) fn first(&self) -> Option<Slot> {
        (self.head != NONE).then_some(self.head)
    }

    pub(super) fn last(&self) -> Option<Slot> {
        (self.tail != NONE).then_some(self.tail)
    }
}
