//! A place where a replica runs, dies and starts again.

use std::{collections::BTreeMap, time::Duration};

use super::{
    event_queue::Event,
    message::{Call, ProcessId},
    process::Process,
};

#[derive(Default)]
pub(super) struct Host {
    /// `None` if the replica is dead.
    pub process: Option<Process>,
    /// Counts the starts and ends of the replica.
    pub incarnation: u32,
    pub paused: bool,
    pub partitioned: bool,
    pub blind: bool,
    pub deaf: bool,
    pub slow: bool,
    /// It receives no news of the roster.
    pub roster_blind: bool,
    /// Events that came in while the process was paused.
    pub waiting: Vec<Event>,
    /// When the process will be polled again.
    pub wake_at: Option<Duration>,
    /// Counts the watches.
    pub watch: u32,
    /// The number of the process's first watch.
    pub first_watch: u32,
    /// When the listing of the current watch arrives.
    pub listing_at: Duration,
    /// When the last news arrives that is on its way, in order.
    pub news_until: Duration,
    /// Counts the watches of the roster.
    pub roster_watch: u32,
    /// When the last news of the roster arrive that are on their way.
    pub roster_until: Duration,
    /// When the last vote was asked for that was answered.
    pub asked: Duration,
    /// The call of each key that waits for an answer.
    calls: BTreeMap<usize, u64>,
}

impl Host {
    /// Starts the replica, or starts it anew.
    pub fn start(&mut self, process: Process) {
        self.incarnation += 1;
        self.calls.clear();
        self.waiting.clear();
        self.wake_at = None;
        self.asked = Duration::ZERO;
        self.first_watch = self.watch + 1;
        self.process = Some(process);
    }

    /// Kills the replica.
    pub fn crash(&mut self) {
        self.incarnation += 1;
        self.waiting.clear();
        self.process = None;
    }

    pub fn runs(&self, process: ProcessId) -> bool {
        self.incarnation == process.incarnation && self.process.is_some()
    }

    pub fn leads(&self, now: Duration) -> bool {
        self.process.as_ref().is_some_and(|process| process.is_leader(now))
    }

    pub fn leads_key(&self, now: Duration, key: usize) -> bool {
        self.process.as_ref().is_some_and(|process| process.leads_key(now, key))
    }

    /// Returns whether news of this watch reach the process.
    pub fn sees(&self, watch: u32) -> bool {
        !self.partitioned && !self.blind && self.watch == watch
    }

    /// Returns whether news of this watch of the roster reach the process.
    pub fn sees_roster(&self, watch: u32) -> bool {
        !self.partitioned && !self.blind && !self.roster_blind && self.roster_watch == watch
    }

    /// Returns whether the replica does work: it is alive, and does not leave.
    pub fn serves(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.leaving)
    }

    pub fn is_first_watch(&self) -> bool {
        self.watch == self.first_watch
    }

    pub fn expect_answer(&mut self, call: Call) {
        self.calls.insert(call.key, call.serial);
    }

    /// Returns whether the process waits for an answer to this call. From then on it does not.
    pub fn take_answer(&mut self, call: Call) -> bool {
        let waits = self.calls.get(&call.key) == Some(&call.serial);
        if waits {
            self.calls.remove(&call.key);
        }
        waits
    }
}
