//! The store's side of an election: one holder, until its time is over.

use std::time::Duration;

/// Who was elected last.
#[derive(Default)]
pub(super) struct Election {
    holder: Option<Holder>,
    /// Of the last one; each has another.
    fence: u64,
}

#[derive(Clone, Copy)]
struct Holder {
    replica: (usize, u32),
    until: Duration,
}

impl Election {
    /// A replica, in one of its lives, asks for the office, or to keep it. Returns its fence, if it has it.
    pub fn asks(&mut self, now: Duration, replica: (usize, u32), ttl: Duration) -> Option<u64> {
        match &mut self.holder {
            Some(holder) if now < holder.until && holder.replica != replica => return None,
            Some(holder) if now < holder.until => holder.until = now + ttl,
            _ => {
                self.fence += 1;
                self.holder = Some(Holder { replica, until: now + ttl });
            }
        }
        Some(self.fence)
    }

    /// Whether a write with this fence may land.
    pub fn admits(&self, now: Duration, fence: Option<u64>) -> bool {
        fence == Some(self.fence) && self.holder.is_some_and(|holder| now < holder.until)
    }
}
