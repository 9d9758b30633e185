//! The store's side of the roster: entries with versions, and a watch of its own for each replica.

use std::{collections::BTreeMap, time::Duration};

use super::World;
use crate::lab::simulation::{
    event_queue::Event,
    keeper::{Entry, Name, RosterAnswer, RosterChange, RosterWrite, Value},
    message::ProcessId,
    plan::FaultKind,
};

#[derive(Clone, Default)]
pub(super) struct StoredRoster {
    entries: BTreeMap<Name, Entry>,
    /// The version of the last write.
    version: u64,
}

impl StoredRoster {
    fn put(&mut self, name: Name, value: Value) -> Entry {
        self.version += 1;
        let entry = Entry { version: self.version, value };
        self.entries.insert(name, entry);
        entry
    }
}

impl World<'_> {
    /// The roster before anybody joins: replicas that never lived may be on it.
    pub(super) fn found_roster(&mut self) {
        for ghost in 0..self.plan.roster.map_or(0, |roster| roster.ghosts) {
            self.roster.put(Name::of_ghost(ghost), Value::default());
        }
    }

    /// A process joins the group that keeps the roster.
    pub(super) fn join_roster(&mut self, replica: usize) {
        let Some(plan) = self.plan.roster else { return };
        let life = if plan.new_names { self.hosts[replica].incarnation } else { 0 };
        let now = self.now;
        self.process(replica).join_roster(now, Name::of(replica, life));
        self.watch_roster(replica);
    }

    /// A process watches the roster anew.
    pub(super) fn watch_roster(&mut self, replica: usize) {
        if self.plan.roster.is_none() {
            return;
        }
        let arrives = self.now + self.one_way(replica) + self.one_way(replica);
        let host = &mut self.hosts[replica];
        host.roster_watch += 1;
        host.roster_until = arrives;
        if self.plan.has_fault(self.now, FaultKind::RosterHidden) {
            return self.roster_changed(replica, arrives, RosterChange::Unreadable);
        }
        self.roster_changed(replica, arrives, RosterChange::Init);
        for (name, entry) in self.roster.entries.clone() {
            self.roster_changed(replica, arrives, RosterChange::Listed(name, entry));
        }
        self.roster_changed(replica, arrives, RosterChange::Done);
    }

    fn roster_changed(&mut self, replica: usize, arrives: Duration, change: RosterChange) {
        let (process, watch) = (self.id(replica), self.hosts[replica].roster_watch);
        self.arrives(arrives, Event::RosterChanged { process, watch, change });
    }

    pub(super) fn handle_roster_change(&mut self, process: ProcessId, watch: u32, change: RosterChange) {
        let (now, replica) = (self.now, process.replica);
        if !self.hosts[replica].sees_roster(watch) {
            return;
        }
        if let Some((keeper, engine, now)) = self.process(replica).keeper(now) {
            keeper.take_in(engine, now, change);
        }
        if matches!(change, RosterChange::Unreadable) {
            self.at(now + UNREADABLE, Event::RosterWatch { process });
        }
        self.poll(replica);
    }

    /// A write arrives at the store.
    pub(super) fn handle_roster_write(&mut self, process: ProcessId, write: RosterWrite) {
        let replica = process.replica;
        if !self.is_connected(replica) {
            return;
        }
        let answer = if self.plan.has_fault(self.now, FaultKind::RosterReadOnly) {
            RosterAnswer::Denied
        } else if self.write_roster(write) {
            self.stats.roster_writes += 1;
            RosterAnswer::Written
        } else {
            RosterAnswer::Conflict
        };
        if !self.hosts[replica].deaf {
            self.send(replica, Event::RosterAnswered { process, write, answer });
        }
    }

    pub(super) fn handle_roster_answer(
        &mut self,
        process: ProcessId,
        write: RosterWrite,
        answer: RosterAnswer,
    ) {
        let (now, replica) = (self.now, process.replica);
        if !self.is_connected(replica) {
            return;
        }
        match write {
            RosterWrite::Leave(_) => self.hosts[replica].crash(),
            RosterWrite::Put(_, _, Value { is_suspected: false, .. }) if answer == RosterAnswer::Denied => {
                if let Some((_, engine, now)) = self.process(replica).keeper(now) {
                    engine.handle_join_denied(now);
                }
                self.poll(replica);
            }
            // The watch shows how things are now.
            RosterWrite::Put(..) | RosterWrite::StrikeOff(..) => {}
        }
    }

    /// Carries a write out. Returns whether the roster was as the write expects.
    fn write_roster(&mut self, write: RosterWrite) -> bool {
        let version = |name| self.roster.entries.get(name).map(|entry| entry.version);
        let change = match write {
            RosterWrite::Put(name, expected, _) if version(&name) != expected => return false,
            RosterWrite::Put(name, _, value) => RosterChange::Put(name, self.roster.put(name, value)),
            RosterWrite::StrikeOff(name, expected) if version(&name) != Some(expected) => return false,
            RosterWrite::StrikeOff(name, _) | RosterWrite::Leave(name) => {
                if self.roster.entries.remove(&name).is_none() {
                    return false;
                }
                RosterChange::Delete(name)
            }
        };
        self.send_roster_news(change);
        true
    }

    /// Sends a change to everybody. The news of one watch stay in order.
    fn send_roster_news(&mut self, change: RosterChange) {
        for replica in 0..self.hosts.len() {
            let lateness = self.plan.members[replica].lag + self.network.lateness(self.now);
            let arrives = self.now + self.one_way(replica) + lateness;
            let host = &mut self.hosts[replica];
            host.roster_until = arrives.max(host.roster_until + Duration::from_nanos(1));
            let arrives = host.roster_until;
            self.roster_changed(replica, arrives, change);
        }
    }

    /// Somebody deletes all entries.
    pub(super) fn delete_roster(&mut self) {
        for name in std::mem::take(&mut self.roster.entries).into_keys() {
            self.send_roster_news(RosterChange::Delete(name));
        }
    }

    /// All watches of the roster end, because nobody may read it any more.
    pub(super) fn hide_roster(&mut self) {
        for replica in 0..self.hosts.len() {
            if self.hosts[replica].process.is_some() {
                self.watch_roster(replica);
            }
        }
    }

    /// The watches of the roster of these replicas stop, or go on with a listing.
    pub(super) fn stop_roster_watch(&mut self, replica: usize, stops: bool) {
        self.hosts[replica].roster_blind = stops;
        if !stops && self.hosts[replica].process.is_some() {
            self.watch_roster(replica);
        }
    }

    /// Sends the writes to the roster that are due.
    pub(super) fn poll_roster(&mut self, replica: usize) {
        let (now, process) = (self.now, self.id(replica));
        let Some((keeper, engine, local)) = self.process(replica).keeper(now) else { return };
        for write in keeper.poll(engine, local) {
            self.send(replica, Event::RosterArrives { process, write });
        }
    }

    /// Lets a process depart that leaves, once its last attempt has ended.
    pub(super) fn leave(&mut self, replica: usize) {
        let process = self.id(replica);
        if self.process(replica).may_depart() {
            self.at(self.now, Event::Departs { process, tries: 0 });
        }
    }

    /// A process that leaves has no attempt in flight any more, and now leaves the roster; or it tries
    /// to again, because there was no answer.
    pub(super) fn depart(&mut self, process: ProcessId, tries: usize) {
        let (now, replica) = (self.now, process.replica);
        let write = self.process(replica).keeper(now).and_then(|(keeper, ..)| keeper.leave());
        let Some((write, pause)) = write.zip(LEAVING.get(tries)) else { return self.hosts[replica].crash() };
        self.send(replica, Event::RosterArrives { process, write });
        self.at(self.now + *pause, Event::Departs { process, tries: tries + 1 });
    }
}

/// How long a process waits before it tries again to read a roster that cannot be read.
const UNREADABLE: Duration = Duration::from_secs(60);
/// How long a process that leaves waits for each answer, and then until its next try.
const LEAVING: [Duration; 4] = [
    Duration::from_millis(5_200),
    Duration::from_millis(6_000),
    Duration::from_millis(10_000),
    Duration::from_millis(5_000),
];
