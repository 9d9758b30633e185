//! The events of the world, in order of time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use super::{
    keeper::{RosterAnswer, RosterChange, RosterWrite},
    message::{Call, News, ProcessId, Stored, Write, WriteResult},
};
use crate::engine::nanos;

/// The events that are still to happen. Those of one moment happen in the order in which they were
/// caused.
#[derive(Default)]
pub(super) struct EventQueue {
    /// The time, the serial and the place of each event; small, because the heap moves its entries
    /// about a lot.
    due: BinaryHeap<Reverse<(u64, u64, usize)>>,
    serial: u64,
    events: Vec<Event>,
    free: Vec<usize>,
    /// Events that are pushed in the order in which they happen. Most of them are timeouts of calls
    /// that were answered long before.
    in_order: VecDeque<(u64, u64, Event)>,
}

impl EventQueue {
    pub fn push(&mut self, at: Duration, event: Event) {
        self.serial += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.events[place] = event;
                place
            }
            None => {
                self.events.push(event);
                self.events.len() - 1
            }
        };
        self.due.push(Reverse((nanos(at), self.serial, place)));
    }

    /// Like `push`, for an event that is due no earlier than the one that was pushed so before.
    pub fn push_in_order(&mut self, at: Duration, event: Event) {
        self.serial += 1;
        self.in_order.push_back((nanos(at), self.serial, event));
    }

    pub fn pop(&mut self) -> Option<(Duration, Event)> {
        if let Some(&(at, serial, event)) = self.in_order.front()
            && self.due.peek().is_none_or(|Reverse(next)| (at, serial) < (next.0, next.1))
        {
            self.in_order.pop_front();
            return Some((Duration::from_nanos(at), event));
        }
        let Reverse((at, _, place)) = self.due.pop()?;
        self.free.push(place);
        Some((Duration::from_nanos(at), self.events[place]))
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// Everybody wants the next round.
    Round,
    /// A process learns of a round.
    Request {
        process: ProcessId,
        round: u64,
    },
    /// A process asked to be polled at this time.
    Wake {
        process: ProcessId,
    },
    /// A read reaches the store.
    ReadArrives {
        call: Call,
    },
    ReadAnswered {
        call: Call,
        stored: Stored,
    },
    /// A write reaches the store.
    WriteArrives {
        call: Call,
        write: Write,
    },
    WriteAnswered {
        call: Call,
        result: WriteResult,
    },
    /// The process waits no longer for an answer.
    Timeout {
        call: Call,
    },
    /// The store answers a watch with a listing.
    WatchOpens {
        process: ProcessId,
        watch: u32,
        since: Duration,
    },
    /// The listing is complete.
    ListingEnds {
        process: ProcessId,
        watch: u32,
    },
    /// The next delivery of this broadcast arrives.
    Delivery {
        broadcast: usize,
    },
    News {
        process: ProcessId,
        news: News,
    },
    FaultBegins {
        fault: usize,
    },
    FaultEnds {
        fault: usize,
    },
    /// Somebody else edits or deletes a key.
    Edit {
        fault: usize,
    },
    /// A process stands for election, again and again.
    Campaign {
        process: ProcessId,
    },
    /// Its candidacy reaches the store.
    VoteArrives {
        process: ProcessId,
        asked: Duration,
    },
    /// The fence of the leadership that it won, `None` if it did not.
    VoteAnswered {
        process: ProcessId,
        asked: Duration,
        fence: Option<u64>,
    },
    /// A process watches the roster anew.
    RosterWatch {
        process: ProcessId,
    },
    /// A watch of the roster shows a change.
    RosterChanged {
        process: ProcessId,
        watch: u32,
        change: RosterChange,
    },
    /// A write to the roster reaches the store.
    RosterArrives {
        process: ProcessId,
        write: RosterWrite,
    },
    RosterAnswered {
        process: ProcessId,
        write: RosterWrite,
        answer: RosterAnswer,
    },
    /// A process that leaves has nothing in flight any more.
    Departs {
        process: ProcessId,
        tries: usize,
    },
    /// The promises are checked.
    Check,
}

impl Event {
    /// The process that takes the event in. A message to the store arrives there, whatever became
    /// of its sender.
    pub fn recipient(&self) -> Option<ProcessId> {
        match *self {
            Self::Request { process, .. }
            | Self::Wake { process }
            | Self::WatchOpens { process, .. }
            | Self::ListingEnds { process, .. }
            | Self::News { process, .. }
            | Self::Campaign { process }
            | Self::RosterWatch { process }
            | Self::RosterChanged { process, .. }
            | Self::RosterAnswered { process, .. }
            | Self::Departs { process, .. }
            | Self::VoteAnswered { process, .. } => Some(process),
            Self::ReadAnswered { call, .. } | Self::WriteAnswered { call, .. } | Self::Timeout { call } => {
                Some(call.process)
            }
            Self::Round
            | Self::ReadArrives { .. }
            | Self::WriteArrives { .. }
            | Self::FaultBegins { .. }
            | Self::FaultEnds { .. }
            | Self::Edit { .. }
            | Self::Delivery { .. }
            | Self::VoteArrives { .. }
            | Self::RosterArrives { .. }
            | Self::Check => None,
        }
    }
}
