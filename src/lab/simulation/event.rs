//! What happens in the world, and when.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use super::replica::{Begin, Change, Value};
use crate::engine::{nanos, outcome::Outcome};

/// What is to happen. The events of one moment come in the order in which they were caused.
#[derive(Default)]
pub(super) struct Agenda {
    /// When, after how many others, and which; small, because it is moved about a lot.
    due: BinaryHeap<Reverse<(u64, u64, usize)>>,
    serial: u64,
    events: Vec<Event>,
    free: Vec<usize>,
    /// What comes in the order in which it is pushed. Most of it are timeouts of what was answered long before.
    orderly: VecDeque<(u64, u64, Event)>,
}

impl Agenda {
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

    /// Like `push`, of something that is due no earlier than what was pushed so before.
    pub fn push_orderly(&mut self, at: Duration, event: Event) {
        self.serial += 1;
        self.orderly.push_back((nanos(at), self.serial, event));
    }

    pub fn pop(&mut self) -> Option<(Duration, Event)> {
        if let Some(&(at, serial, event)) = self.orderly.front()
            && self.due.peek().is_none_or(|Reverse(next)| (at, serial) < (next.0, next.1))
        {
            self.orderly.pop_front();
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
    /// Somebody learns of it.
    Wants {
        one: usize,
        life: u32,
        round: u64,
    },
    Wake {
        one: usize,
        life: u32,
    },
    /// A read reaches the store.
    Reading {
        one: usize,
        life: u32,
        key: usize,
        request: u64,
    },
    Read {
        one: usize,
        life: u32,
        key: usize,
        request: u64,
        value: Value,
    },
    /// A write reaches the store.
    Writing {
        one: usize,
        life: u32,
        key: usize,
        request: u64,
        value: Value,
        begin: Begin,
    },
    Wrote {
        one: usize,
        life: u32,
        key: usize,
        request: u64,
        landed: Result<Value, Outcome>,
    },
    /// Nobody waits any longer for an answer.
    Timeout {
        one: usize,
        life: u32,
        key: usize,
        request: u64,
        sent: Option<u64>,
    },
    /// The store answers a watch.
    Lists {
        one: usize,
        life: u32,
        since: Duration,
    },
    /// The next letter of these arrives.
    Delivery {
        post: usize,
    },
    Hears {
        one: usize,
        life: u32,
        change: Change,
    },
    Begins {
        fault: usize,
    },
    Ends {
        fault: usize,
    },
    Edit {
        fault: usize,
    },
    /// It stands for election, again and again.
    Stands {
        one: usize,
        life: u32,
    },
    Asks {
        one: usize,
        life: u32,
        asked: Duration,
    },
    Told {
        one: usize,
        life: u32,
        asked: Duration,
        fence: Option<u64>,
    },
    Check,
}

impl Event {
    /// The replica that takes it in, and in which of its lives. What was sent to the store arrives there, whatever became of
    /// the sender.
    pub fn addressee(&self) -> Option<(usize, u32)> {
        match *self {
            Self::Wants { one, life, .. }
            | Self::Wake { one, life }
            | Self::Read { one, life, .. }
            | Self::Wrote { one, life, .. }
            | Self::Timeout { one, life, .. }
            | Self::Hears { one, life, .. }
            | Self::Lists { one, life, .. }
            | Self::Stands { one, life }
            | Self::Told { one, life, .. } => Some((one, life)),
            Self::Round
            | Self::Reading { .. }
            | Self::Writing { .. }
            | Self::Begins { .. }
            | Self::Ends { .. }
            | Self::Edit { .. }
            | Self::Delivery { .. }
            | Self::Asks { .. }
            | Self::Check => None,
        }
    }
}
