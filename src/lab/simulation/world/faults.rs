//! The faults of the world, from their beginning to their end, and the starts of replicas.

use std::{mem, time::Duration};

use rand::RngExt;

use super::World;
use crate::lab::simulation::{
    contender::Contender, event_queue::Event, host::Host, plan::FaultKind, process::Process,
};

impl World<'_> {
    /// Starts a replica, or starts it anew.
    pub(super) fn start(&mut self, replica: usize) {
        let plan = self.plan;
        let incarnation = self.hosts[replica].incarnation + 1;
        let contender = Contender::new(plan.algorithm, plan.config(replica, incarnation));
        self.hosts[replica].start(Process::new(plan.members[replica], plan.restless, contender, self.now));
        self.watch(replica);
        self.join_roster(replica);
        let process = self.id(replica);
        if plan.election.is_some() {
            // Nothing runs before the process is elected.
            let now = self.now;
            self.process(replica).not_elected(now);
            self.at(now + plan.latency, Event::Campaign { process });
        }
        if self.round > 0 {
            self.at(self.now, Event::Request { process, round: self.round });
        }
    }

    pub(super) fn begin_fault(&mut self, fault: usize) {
        let now = self.now;
        match self.plan.faults[fault].kind {
            FaultKind::Pause(replica) => self.hosts[replica].paused = true,
            FaultKind::Crash(replica) => self.hosts[replica].crash(),
            FaultKind::CrashLeader => {
                self.struck[fault] = self.hosts.iter().position(|host| host.leads(now));
                if let Some(leader) = self.struck[fault] {
                    self.hosts[leader].crash();
                }
            }
            FaultKind::Partition(replica) => self.hosts[replica].partitioned = true,
            FaultKind::Blind(replica) => self.hosts[replica].blind = true,
            FaultKind::Edits | FaultKind::Deletes => self.at(now, Event::Edit { fault }),
            FaultKind::Deaf(replica) => self.hosts[replica].deaf = true,
            FaultKind::Slow(replica) => self.hosts[replica].slow = true,
            FaultKind::Brownout => self.brownout = true,
            FaultKind::Restore => {
                self.backup = Some((self.store.clone(), self.revision, self.roster.clone()));
            }
            FaultKind::Sick(sickness) => self.sick.push(sickness),
            FaultKind::Leave(replica) => {
                if self.hosts[replica].serves() {
                    self.process(replica).leaving = true;
                    self.poll(replica);
                }
            }
            FaultKind::RosterStale => {
                (0..self.hosts.len()).for_each(|replica| self.stop_roster_watch(replica, true));
            }
            FaultKind::RosterBlind(replica) => self.stop_roster_watch(replica, true),
            FaultKind::RosterDeleted => self.delete_roster(),
            FaultKind::RosterHidden => self.hide_roster(),
            FaultKind::Outage | FaultKind::LostAnswers | FaultKind::Burst | FaultKind::RosterReadOnly => {}
        }
    }

    pub(super) fn end_fault(&mut self, fault: usize) {
        let kind = self.plan.faults[fault].kind;
        // Another fault of the same kind may still last; but the replica that a `CrashLeader` hit
        // is its own.
        if kind != FaultKind::CrashLeader && self.plan.has_fault(self.now, kind) {
            return;
        }
        let is_dead = |host: &Host| host.process.is_none();
        match kind {
            FaultKind::Pause(replica) => {
                self.hosts[replica].paused = false;
                for event in mem::take(&mut self.hosts[replica].waiting) {
                    self.at(self.now, event);
                }
            }
            FaultKind::Crash(replica) if is_dead(&self.hosts[replica]) => self.start(replica),
            FaultKind::CrashLeader => {
                if let Some(replica) = self.struck[fault].filter(|replica| is_dead(&self.hosts[*replica])) {
                    self.start(replica);
                }
            }
            FaultKind::Partition(replica) => {
                self.hosts[replica].partitioned = false;
                self.watch(replica);
                self.watch_roster(replica);
            }
            FaultKind::Blind(replica) => {
                self.hosts[replica].blind = false;
                self.watch(replica);
                self.watch_roster(replica);
            }
            FaultKind::Deaf(replica) => self.hosts[replica].deaf = false,
            FaultKind::Slow(replica) => self.hosts[replica].slow = false,
            FaultKind::Brownout => self.brownout = false,
            FaultKind::Restore => self.restore(),
            FaultKind::Leave(replica) if !self.hosts[replica].serves() => {
                self.hosts[replica].crash();
                self.start(replica);
            }
            FaultKind::RosterStale => {
                (0..self.hosts.len()).for_each(|replica| self.stop_roster_watch(replica, false));
            }
            FaultKind::RosterBlind(replica) => self.stop_roster_watch(replica, false),
            FaultKind::Sick(sickness) => self.sick.retain(|sick| *sick != sickness),
            _ => {}
        }
    }

    /// The store is set back to the backup, and all watches list anew.
    fn restore(&mut self) {
        let Some((store, revision, roster)) = self.backup.take() else { return };
        (self.store, self.revision, self.restored) = (store, revision, self.now);
        self.roster = roster;
        self.behind = self.count_behind();
        for replica in 0..self.hosts.len() {
            let host = &self.hosts[replica];
            // A watch that is broken lists anew when it is back.
            if host.process.is_some() && !host.partitioned && !host.blind {
                self.watch(replica);
                self.watch_roster(replica);
            }
        }
    }

    /// Somebody else edits a part of a key that no replica cares for, or deletes the key.
    pub(super) fn edit(&mut self, fault: usize) {
        if self.now >= self.plan.faults[fault].until {
            return;
        }
        let key = self.network.rng.random_range(0..self.store.len());
        let (content, gap) = match self.plan.faults[fault].kind {
            FaultKind::Deletes => (None, DELETE_GAP),
            _ => (self.store[key].content, self.plan.latency.max(EDIT_GAP)),
        };
        if self.store[key].content.is_some() {
            self.store(key, content);
        }
        self.at(self.now + gap, Event::Edit { fault });
    }
}

/// The least time between two edits.
const EDIT_GAP: Duration = Duration::from_millis(20);
/// The time between two deletions.
const DELETE_GAP: Duration = Duration::from_millis(500);
