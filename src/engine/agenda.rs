//! Which shard may do something first, and when the next one may.
//!
//! Each shard is looked at when an event touched it, or when its time has come. What it may do then
//! stands in trees over all shards, so the work per event does not grow with their number.

use super::{
    queue::{Class, Ready},
    time::Timestamp,
    tournament::Tournament,
};

#[derive(Debug)]
pub(super) struct Agenda {
    /// The keys that may be attempted, all other shards left aside, by class and by shard.
    runs: [Tournament<Run>; 2],
    /// When to look at a shard without an event.
    waits: Tournament<Wait>,
    is_led: Box<[bool]>,
    /// How many shards we lead.
    led: u16,
    touched: Vec<u16>,
    is_touched: Box<[bool]>,
}

/// A key that may be attempted, or none, which is greater than all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Run {
    Some(Ready),
    None,
}

/// A time to look at a shard, or none, which is greater than all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wait {
    Until(Timestamp),
    None,
}

/// The result of a look at a shard.
pub(super) struct Look {
    /// By class.
    pub(super) runs: [Run; 2],
    /// When something can change without an event.
    pub(super) until: Option<Timestamp>,
    pub(super) is_led: bool,
}

impl Agenda {
    #[cfg(test)]
    pub(super) const SIZE_PER_SHARD: usize =
        2 * (size_of::<Run>() + 2) + size_of::<Wait>() + 2 + 2 * size_of::<bool>();

    pub(super) fn new(shards: u16) -> Self {
        let none = || Tournament::new(shards, Run::None);
        let no = || vec![false; shards.into()].into();
        Self {
            runs: [none(), none()],
            waits: Tournament::new(shards, Wait::None),
            is_led: no(),
            led: 0,
            touched: Vec::new(),
            is_touched: no(),
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
        match self.waits.first() {
            // The end of time never comes.
            (shard, Wait::Until(at)) if at <= now && at < Timestamp::MAX => Some(shard),
            _ => None,
        }
    }

    /// Takes in the result of a look at a shard.
    pub(super) fn note(&mut self, shard: u16, look: Look) {
        for (runs, run) in self.runs.iter_mut().zip(look.runs) {
            runs.set(shard, run);
        }
        self.waits.set(shard, look.until.map_or(Wait::None, Wait::Until));
        let was_led = std::mem::replace(&mut self.is_led[usize::from(shard)], look.is_led);
        self.led = self.led + u16::from(look.is_led) - u16::from(was_led);
    }

    /// Returns the shard whose oldest key of a class goes first, if any may start.
    pub(super) fn first(&self, class: Class) -> Option<u16> {
        let (shard, run) = self.runs[class as usize].first();
        (run != Run::None).then_some(shard)
    }

    /// Returns the shard whose oldest key of a class goes last, in O(shards).
    pub(super) fn last(&self, class: Class) -> Option<u16> {
        let runs = (0..).zip(self.runs[class as usize].values()).filter(|(_, run)| **run != Run::None);
        runs.max_by_key(|(_, run)| **run).map(|(shard, _)| shard)
    }

    /// Returns when to look at a shard without an event.
    pub(super) fn next_time(&self) -> Option<Timestamp> {
        match self.waits.first() {
            (_, Wait::Until(at)) => Some(at),
            (_, Wait::None) => None,
        }
    }

    /// Returns how many shards we lead, as of the last looks.
    pub(super) fn led(&self) -> u16 {
        self.led
    }
}
