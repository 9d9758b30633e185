//! Which shard may do something first, and when the next one may.
//!
//! Each shard is looked at when an event touched it, or when its time has come. What it may do then
//! stands in trees over all shards, so the work per event does not grow with their number.

use super::{
    in_flight::Kind,
    queue::{Class, Ready},
    time::Timestamp,
    tournament::Tournament,
};

#[derive(Debug)]
pub(super) struct Agenda {
    /// The next step of the ready keys, by class and by shard.
    steps: [Tournament<Look>; 2],
    /// Whether we do not lead, and when our lease ends if we do, by shard.
    lease_ends: Tournament<(bool, Timestamp)>,
    /// How many shards we lead.
    led: u16,
    touched: Vec<u16>,
    is_touched: Box<[bool]>,
}

/// The result of a look at the ready keys of a shard, all other shards left aside. What goes first
/// is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Look {
    Run(Ready, Kind),
    Wait(Timestamp),
    Idle,
}

const NOT_LED: (bool, Timestamp) = (true, Timestamp::MAX);

impl Agenda {
    pub(super) fn new(shards: u16) -> Self {
        let idle = || Tournament::new(shards, Look::Idle);
        Self {
            steps: [idle(), idle()],
            lease_ends: Tournament::new(shards, NOT_LED),
            led: 0,
            touched: Vec::new(),
            is_touched: vec![false; shards.into()].into(),
        }
    }

    /// Notes that a shard must be looked at again.
    pub(super) fn touch(&mut self, shard: u16) {
        if !std::mem::replace(&mut self.is_touched[usize::from(shard)], true) {
            self.touched.push(shard);
        }
    }

    pub(super) fn touch_all(&mut self) {
        for shard in 0..self.is_touched.len() as u16 {
            self.touch(shard);
        }
    }

    /// Returns a shard that must be looked at by now.
    pub(super) fn next_look(&mut self, now: Timestamp) -> Option<u16> {
        if let Some(shard) = self.touched.pop() {
            self.is_touched[usize::from(shard)] = false;
            return Some(shard);
        }
        // The end of time never comes.
        let is_due = |at: Timestamp| at <= now && at < Timestamp::MAX;
        let due = self.steps.each_ref().map(|steps| match steps.first() {
            (shard, Look::Wait(at)) if is_due(at) => Some(shard),
            _ => None,
        });
        let (shard, (_, lease_end)) = self.lease_ends.first();
        due.into_iter().flatten().next().or(is_due(lease_end).then_some(shard))
    }

    /// Takes in the result of a look at a shard, by class, and when our lease of it ends.
    pub(super) fn note(&mut self, shard: u16, looks: [Look; 2], led_until: Option<Timestamp>) {
        for (steps, look) in self.steps.iter_mut().zip(looks) {
            steps.set(shard, look);
        }
        let lease_end = led_until.map_or(NOT_LED, |until| (false, until));
        let (was_not_led, _) = self.lease_ends.values()[usize::from(shard)];
        self.led = self.led + u16::from(was_not_led) - u16::from(lease_end.0);
        self.lease_ends.set(shard, lease_end);
    }

    /// Returns what goes first among the ready keys of a class, and in which shard.
    pub(super) fn first(&self, class: Class) -> (u16, Look) {
        self.steps[class as usize].first()
    }

    /// Returns the shard with the youngest key of a class that may be attempted, in O(shards).
    pub(super) fn youngest(&self, class: Class) -> Option<u16> {
        let runs = (0..).zip(self.steps[class as usize].values());
        runs.filter(|(_, look)| matches!(look, Look::Run(..)))
            .max_by_key(|(_, look)| **look)
            .map(|(shard, _)| shard)
    }

    /// Returns when the first of our leases ends.
    pub(super) fn lease_end(&self) -> Option<Timestamp> {
        let (_, (is_not_led, at)) = self.lease_ends.first();
        (!is_not_led).then_some(at)
    }

    /// Returns how many shards we lead, as of the last looks.
    pub(super) fn led(&self) -> u16 {
        self.led
    }
}
