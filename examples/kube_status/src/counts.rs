//! The events of a replica that the run counts.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The result of a status update, or an inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Succeeded,
    /// Another client has changed the object since.
    Refused,
    Failed,
    /// The replica did the expensive part of a reconcile.
    Inspected,
}

/// A callback for each event.
pub type OnEvent = Arc<dyn Fn(Event) + Send + Sync>;

/// The number of events of each kind. Those in flight in a killed process are not counted.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; Event::ALL.len()]);

impl Event {
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Refused, Self::Failed, Self::Inspected];

    pub fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Inspected => "inspected",
        }
    }
}

impl Counts {
    pub fn add(&self, event: Event) {
        self.0[event as usize].fetch_add(1, Relaxed);
    }

    pub fn of(&self, event: Event) -> u64 {
        self.0[event as usize].load(Relaxed)
    }
}
