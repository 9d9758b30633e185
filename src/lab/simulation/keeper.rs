//! A replica's part in the roster: as the task of the real one does, it reads the roster for the
//! engine, and makes the writes that the engine asks for.

use std::{collections::BTreeMap, sync::Arc};

use crate::engine::{Engine, Member, RosterRequest, Timestamp};

/// The name of an entry. Numbers are easier to send about than texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(u32);

/// An entry in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub version: u64,
    pub value: Value,
}

/// The content of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Value {
    pub is_suspected: bool,
    pub claims: u32,
}

/// A change of the roster on its way to one process.
#[derive(Clone, Copy, Debug)]
pub(super) enum RosterChange {
    /// A listing begins.
    Init,
    /// An entry of the listing.
    Listed(Name, Entry),
    /// The listing is complete.
    Done,
    Put(Name, Entry),
    Delete(Name),
    /// The roster cannot be read.
    Unreadable,
}

/// A write to the roster on its way to the store.
#[derive(Clone, Copy, Debug)]
pub(super) enum RosterWrite {
    /// Writes an entry of this version, or one that must not exist.
    Put(Name, Option<u64>, Value),
    /// Deletes an entry of this version.
    StrikeOff(Name, u64),
    /// Deletes an entry of whatever version, because its replica leaves.
    Leave(Name),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RosterAnswer {
    Written,
    Conflict,
    Denied,
}

pub(super) struct Keeper {
    own: Name,
    entries: BTreeMap<Name, Entry>,
    /// The listing that is being received.
    listing: Option<BTreeMap<Name, Entry>>,
    is_listed: bool,
    /// The members that the engine knows; `None` if it knows of none, or that they cannot be read.
    told: Option<Vec<Member>>,
    /// There may be an entry of ours: one was seen, or one was asked for.
    is_entered: bool,
}

impl Name {
    /// The name of a replica, the same in all its lives unless it has a new one in each.
    pub fn of(replica: usize, life: u32) -> Self {
        Self(replica as u32 + life * MOST)
    }

    /// The name of a replica that never lived.
    pub fn of_ghost(ghost: usize) -> Self {
        Self((MOST as usize / 2 + ghost) as u32)
    }

    pub fn member(self, value: Value) -> Member {
        let Value { is_suspected, claims } = value;
        Member { is_suspected, claims, ..Member::new(format!("member-{}", self.0), 1) }
    }

    fn read(name: &Arc<str>) -> Self {
        let number = name.rsplit('-').next().and_then(|number| number.parse().ok());
        Self(number.expect("the names are those that we gave"))
    }
}

impl Keeper {
    /// Joins the group that keeps the roster.
    pub fn new(engine: &mut Engine<usize, u64>, now: Timestamp, own: Name) -> Self {
        engine.handle_join(now, own.member(Value::default()));
        Self { own, entries: BTreeMap::new(), listing: None, is_listed: false, told: None, is_entered: false }
    }

    /// Takes a change in, and lets the engine know of it.
    pub fn take_in(&mut self, engine: &mut Engine<usize, u64>, now: Timestamp, change: RosterChange) {
        match change {
            RosterChange::Init => self.listing = Some(BTreeMap::new()),
            RosterChange::Listed(name, entry) => {
                self.listing.as_mut().and_then(|listing| listing.insert(name, entry));
            }
            RosterChange::Done => {
                self.entries = self.listing.take().unwrap_or_default();
                self.is_listed = true;
            }
            RosterChange::Put(name, entry) => {
                self.entries.insert(name, entry);
            }
            RosterChange::Delete(name) => {
                self.entries.remove(&name);
            }
            RosterChange::Unreadable => {
                (self.is_listed, self.told) = (false, None);
                engine.handle_roster_unreadable(now);
            }
        }
        if !self.is_listed {
            return;
        }
        self.is_entered |= self.entries.contains_key(&self.own);
        let members: Vec<_> = self.entries.iter().map(|(name, entry)| name.member(entry.value)).collect();
        if self.told.as_ref() != Some(&members) {
            engine.handle_members(now, members.clone());
            self.told = Some(members);
        }
    }

    /// Returns the writes that are due.
    pub fn poll(&mut self, engine: &mut Engine<usize, u64>, now: Timestamp) -> Vec<RosterWrite> {
        let requests = std::iter::from_fn(|| engine.poll_roster(now));
        requests.filter_map(|request| self.carry_out(&request)).collect()
    }

    /// Returns the write that carries a request out, if one does.
    fn carry_out(&mut self, request: &RosterRequest) -> Option<RosterWrite> {
        match request {
            RosterRequest::Join(own) => {
                self.is_entered = true;
                let value = Value { is_suspected: false, claims: own.claims };
                let known = self.entries.get(&self.own);
                known
                    .is_none_or(|known| known.value != value)
                    .then(|| RosterWrite::Put(self.own, known.map(|known| known.version), value))
            }
            RosterRequest::Suspect(name) => {
                let name = Name::read(name);
                let known = self.entries.get(&name)?;
                let value = Value { is_suspected: true, ..known.value };
                Some(RosterWrite::Put(name, Some(known.version), value))
            }
            RosterRequest::StrikeOff(name) => {
                let name = Name::read(name);
                Some(RosterWrite::StrikeOff(name, self.entries.get(&name)?.version))
            }
        }
    }

    /// Returns the write with which the replica leaves, unless it was never on the roster.
    pub fn leave(&self) -> Option<RosterWrite> {
        self.is_entered.then_some(RosterWrite::Leave(self.own))
    }
}

/// More than there are replicas, those that never lived included.
const MOST: u32 = 10_000;
