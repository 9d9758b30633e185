//! News of one change, for all who watch. Of thousands of letters only the next one is on the agenda.

use std::{cmp::Reverse, time::Duration};

use super::{event::Event, replica::Change};

pub(super) struct Post {
    change: Change,
    /// The next one last.
    letters: Vec<Letter>,
}

#[derive(Clone, Copy)]
pub(super) struct Letter {
    pub arrives: Duration,
    pub one: usize,
    pub life: u32,
    /// When the write began, if it is the reader's own.
    pub ours_since: Option<Duration>,
}

impl Post {
    pub fn new(change: Change, mut letters: Vec<Letter>) -> Self {
        letters.sort_unstable_by_key(|letter| Reverse((letter.arrives, letter.one)));
        Self { change, letters }
    }

    /// When the next one arrives.
    pub fn next(&self) -> Option<Duration> {
        self.letters.last().map(|letter| letter.arrives)
    }

    pub fn take(&mut self) -> Option<Event> {
        let Letter { one, life, ours_since, .. } = self.letters.pop()?;
        Some(Event::Hears { one, life, change: Change { ours_since, ..self.change } })
    }
}
