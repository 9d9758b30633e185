//! Elections: replicas ask the store for the leadership.

use std::time::Duration;

use super::World;
use crate::lab::simulation::{event_queue::Event, message::ProcessId, observation::Observation};

impl World<'_> {
    pub(super) fn campaign(&mut self, process: ProcessId) {
        let Some(ttl) = self.plan.election else { return };
        self.send(process.replica, Event::VoteArrives { process, asked: self.now });
        self.at(self.now + ttl / 3, Event::Campaign { process });
    }

    pub(super) fn handle_vote(&mut self, process: ProcessId, asked: Duration) {
        if self.is_connected(process.replica)
            && !self.hosts[process.replica].deaf
            && let Some(ttl) = self.plan.election
        {
            let fence = self.leadership.ask(self.now, process, ttl);
            self.send(process.replica, Event::VoteAnswered { process, asked, fence });
        }
    }

    pub(super) fn handle_vote_answer(&mut self, process: ProcessId, asked: Duration, fence: Option<u64>) {
        let (now, replica) = (self.now, process.replica);
        // Answers may overtake each other.
        if !self.is_connected(replica) || self.hosts[replica].asked >= asked {
            return;
        }
        let Some(ttl) = self.plan.election else { return };
        self.hosts[replica].asked = asked;
        match fence {
            // Clocks differ by as much.
            Some(fence) => self.process(replica).elected(now, asked, ttl.mul_f64(0.95), fence),
            None => self.process(replica).not_elected(now),
        }
        self.observations.push_back(Observation::Elected);
        self.poll(replica);
    }
}
