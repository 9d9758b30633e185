//! The news of one change, for all processes that watch. Of thousands of deliveries only the next
//! one is in the event queue.

use std::{cmp::Reverse, time::Duration};

use super::{
    event_queue::Event,
    message::{News, ProcessId},
};

/// The broadcasts that are on their way.
#[derive(Default)]
pub(super) struct Broadcasts {
    all: Vec<Broadcast>,
    /// The places of broadcasts that are over.
    free: Vec<usize>,
}

struct Broadcast {
    news: News,
    /// The next one last.
    deliveries: Vec<Delivery>,
}

#[derive(Clone, Copy)]
pub(super) struct Delivery {
    pub arrives: Duration,
    pub process: ProcessId,
    pub watch: u32,
}

impl Broadcasts {
    /// Sends news. Returns the number of the broadcast and when its first delivery arrives, `None`
    /// if there is none.
    pub fn send(&mut self, news: News, mut deliveries: Vec<Delivery>) -> Option<(usize, Duration)> {
        deliveries.sort_unstable_by_key(|delivery| Reverse((delivery.arrives, delivery.process.replica)));
        let arrives = deliveries.last()?.arrives;
        let broadcast = Broadcast { news, deliveries };
        let number = self.free.pop().unwrap_or(self.all.len());
        if number == self.all.len() {
            self.all.push(broadcast);
        } else {
            self.all[number] = broadcast;
        }
        Some((number, arrives))
    }

    /// Takes the next delivery of a broadcast, as an event. Returns when the one after it arrives,
    /// too.
    pub fn deliver(&mut self, number: usize) -> (Event, Option<Duration>) {
        let Broadcast { news, deliveries } = &mut self.all[number];
        let Delivery { process, watch, .. } =
            deliveries.pop().expect("a broadcast ends with its last delivery");
        let event = Event::News { process, news: News { watch, ..*news } };
        let next = deliveries.last().map(|delivery| delivery.arrives);
        if next.is_none() {
            self.free.push(number);
        }
        (event, next)
    }
}
