//! The news of one change, for all processes that watch. Of thousands of deliveries only the next one is in the event queue.

use std::{cmp::Reverse, time::Duration};

use super::{
    event_queue::Event,
    message::{News, ProcessId},
};

pub(super) struct Broadcast {
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

impl Broadcast {
    pub fn new(news: News, mut deliveries: Vec<Delivery>) -> Self {
        deliveries.sort_unstable_by_key(|delivery| Reverse((delivery.arrives, delivery.process.replica)));
        Self { news, deliveries }
    }

    /// When the next delivery arrives.
    pub fn next(&self) -> Option<Duration> {
        self.deliveries.last().map(|delivery| delivery.arrives)
    }

    /// Takes the next delivery, as an event.
    pub fn take(&mut self) -> Option<Event> {
        let Delivery { process, watch, .. } = self.deliveries.pop()?;
        Some(Event::News { process, news: News { watch, ..self.news } })
    }
}
