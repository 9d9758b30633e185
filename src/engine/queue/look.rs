//! A look at pending keys, which changes nothing.

use std::hash::Hash;

use super::{Class, Place, Queue, Ready, Slot};
use crate::engine::{incumbent::Incumbent, time::Timestamp};

/// A key with a job, or with an attempt in flight.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Look {
    /// When its first unfulfilled job was handed in; of the newer job, if an attempt is in flight.
    pub(in crate::engine) since: Timestamp,
    /// Attempts of that job.
    pub(in crate::engine) tries: u32,
    pub(in crate::engine) setbacks: u8,
    pub(in crate::engine) class: Class,
    pub(in crate::engine) incumbent: Incumbent,
    pub(in crate::engine) shard: u16,
    pub(in crate::engine) position: Position,
}

/// Where a pending key is.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum Position {
    Ready(Class, Ready),
    Waiting {
        until: Timestamp,
        denied: bool,
    },
    /// The age and the tries of the job in flight, and whether the key has a newer one.
    InFlight {
        slot: Slot,
        since: Timestamp,
        tries: u32,
        newer: bool,
    },
}

impl<K: Hash + Eq + Clone, J> Queue<K, J> {
    /// Returns the state of a key that has a job, or an attempt in flight.
    pub(in crate::engine) fn look(&self, key: &K) -> Option<Look> {
        let slot = self.slots.find(key)?;
        let node = self.slots.get(slot);
        let position = match node.place {
            Place::Fresh(_) | Place::Again => {
                let (class, ready) = self.ready(slot);
                Position::Ready(class, ready)
            }
            Place::Waiting { at, denied } => Position::Waiting { until: at, denied },
            Place::Running { since, tries } => {
                Position::InFlight { slot, since, tries: tries.into(), newer: node.job.is_some() }
            }
            Place::Idle(_) | Place::Nowhere => return None,
        };
        Some(Look {
            since: node.since,
            tries: node.tries.into(),
            setbacks: node.setbacks,
            class: self.class(slot),
            incumbent: node.incumbent,
            shard: node.shard,
            position,
        })
    }

    /// Returns since when a key in flight has been pending. If it was cleared, only a newer job is.
    pub(in crate::engine) fn pending_since(&self, slot: Slot, cleared: bool) -> Option<Timestamp> {
        let node = self.slots.get(slot);
        match node.place {
            Place::Running { since, .. } if !cleared => Some(since),
            _ => node.job.is_some().then_some(node.since),
        }
    }

    /// Returns the oldest key that is ready or waits, and since when it has been pending. Takes
    /// O(keys that wait for their next try + shards), because all others are in order of their age.
    pub(in crate::engine) fn oldest(&self) -> Option<(Timestamp, Slot)> {
        let aged = |slot: Slot| (self.slots.get(slot).since, slot);
        let lanes = || self.shards.iter().flat_map(|shard| &shard.ready);
        let heads = lanes().flat_map(|lane| {
            let again = lane.again[Class::Clean as usize].first().map(|ready| ready.slot);
            lane.fresh.first().into_iter().chain(again)
        });
        let failed = lanes().flat_map(|lane| &lane.again[Class::Failed as usize]);
        let waiting = self.waiting.iter().map(|&(_, slot)| slot);
        heads.chain(failed.map(|ready| ready.slot)).chain(waiting).map(aged).min()
    }
}
