//! The store's side of an election: one holder, until its time is over.

use std::time::Duration;

use super::message::ProcessId;

/// The leadership for which processes stand.
#[derive(Default)]
pub(super) struct SimulatedElection {
    holder: Option<Holder>,
    /// The fence of the last holder; each one has another.
    fence: u64,
}

#[derive(Clone, Copy)]
struct Holder {
    process: ProcessId,
    until: Duration,
}

impl SimulatedElection {
    /// A process asks for the leadership, or to keep it. Returns the fence if it has it.
    pub fn ask(&mut self, now: Duration, process: ProcessId, ttl: Duration) -> Option<u64> {
        match &mut self.holder {
            Some(holder) if now < holder.until && holder.process != process => return None,
            Some(holder) if now < holder.until => holder.until = now + ttl,
            _ => {
                self.fence += 1;
                self.holder = Some(Holder { process, until: now + ttl });
            }
        }
        Some(self.fence)
    }

    /// Returns whether a write with this fence may succeed.
    pub fn admits(&self, now: Duration, fence: Option<u64>) -> bool {
        fence == Some(self.fence) && self.holder.is_some_and(|holder| now < holder.until)
    }
}
