//! What goes wrong: replicas that die and start anew, and strangers.

use std::{mem, time::Duration};

use rand::RngExt;

use super::{
    FaultKind,
    contender::Contender,
    event::Event,
    replica::{Replica, Value},
    world::World,
};
use crate::engine::config::LeaseBuilder;

impl World<'_> {
    pub fn starts(&mut self, one: usize) {
        let slot = &mut self.slots[one];
        slot.life += 1;
        slot.requests.clear();
        slot.waiting.clear();
        slot.wakes = None;
        let life = slot.life;
        slot.asked = Duration::ZERO;
        let seed = self.plan.seed.wrapping_mul(1_000_003).wrapping_add((one as u64) << 16 | u64::from(life));
        let config = LeaseBuilder::new(format!("replica-{one}")).term(self.plan.term).seed(seed).build();
        let mut config = config.expect("plans are valid");
        config.tuning = self.plan.tuning;
        let contender = Contender::new(self.plan.algorithm, config);
        slot.replica = Some(Replica::new(self.plan.members[one], contender, self.now));
        self.lists(one);
        if self.plan.election.is_some() {
            // Nothing runs before it is elected.
            let now = self.now;
            self.replica(one).not_elected(now);
            self.at(self.now + self.plan.latency, Event::Stands { one, life });
        }
        if self.round > 0 {
            self.at(self.now, Event::Wants { one, life, round: self.round });
        }
    }

    pub fn begins(&mut self, fault: usize) {
        match self.plan.faults[fault].kind {
            FaultKind::Pause(one) => self.slots[one].paused = true,
            FaultKind::Crash(one) => self.crashes(one),
            FaultKind::CrashLeader => {
                let now = self.now;
                self.struck[fault] = self.slots.iter().position(|slot| slot.leads(now));
                if let Some(leader) = self.struck[fault] {
                    self.crashes(leader);
                }
            }
            FaultKind::Partition(one) => self.slots[one].cut = true,
            FaultKind::Blind(one) => self.slots[one].blind = true,
            FaultKind::Edits | FaultKind::Deletes => self.at(self.now, Event::Edit { fault }),
            FaultKind::Outage | FaultKind::LostAnswers | FaultKind::Burst => {}
        }
    }

    fn crashes(&mut self, one: usize) {
        self.slots[one].life += 1;
        self.slots[one].replica = None;
        self.slots[one].waiting.clear();
    }

    pub fn ends(&mut self, fault: usize) {
        let kind = self.plan.faults[fault].kind;
        // Another one of the same kind may still last; but whom it struck is its own.
        if kind != FaultKind::CrashLeader && self.lasts(kind) {
            return;
        }
        match kind {
            FaultKind::Pause(one) => {
                self.slots[one].paused = false;
                for event in mem::take(&mut self.slots[one].waiting) {
                    self.at(self.now, event);
                }
            }
            FaultKind::Crash(one) if self.slots[one].replica.is_none() => self.starts(one),
            FaultKind::CrashLeader => {
                if let Some(one) = self.struck[fault]
                    && self.slots[one].replica.is_none()
                {
                    self.starts(one);
                }
            }
            FaultKind::Partition(one) => {
                self.slots[one].cut = false;
                self.lists(one);
            }
            FaultKind::Blind(one) => {
                self.slots[one].blind = false;
                self.lists(one);
            }
            _ => {}
        }
    }

    /// Somebody else changes something that is nobody's want, or deletes it.
    pub fn edits(&mut self, fault: usize) {
        if self.now >= self.plan.faults[fault].until {
            return;
        }
        let key = self.dice.random_range(0..self.store.len());
        let (value, gap) = match self.plan.faults[fault].kind {
            FaultKind::Deletes => (Value::default(), DELETE),
            _ => (self.store[key], self.plan.latency.max(EDIT)),
        };
        let value = self.writes(key, value);
        self.tell(key, value, None);
        self.at(self.now + gap, Event::Edit { fault });
    }
}

/// Edits are at least so far apart.
const EDIT: Duration = Duration::from_millis(20);
/// Deletions are so far apart.
const DELETE: Duration = Duration::from_millis(500);
