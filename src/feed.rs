//! Whether a lease hears of the writes of others.

use std::{fmt, hash::Hash, sync::Arc};

use tokio::time::Instant;

use crate::driver::Shared;

/// Whether foreign writes are observed.
///
/// A lease whose feed is not live goes on working: it is merely blind, and learns of the writes of others when its own are
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feed {
    /// They are observed as they happen.
    Live,
    /// The first listing is not complete yet.
    Starting,
    /// The watch was interrupted at this time and is being resumed.
    Resuming {
        /// When it was interrupted.
        since: Instant,
    },
    /// The watch is over for good.
    Gone {
        /// When it ended.
        since: Instant,
    },
}

/// Tells a lease the state of one feed, for [`Status::feed`](crate::Status::feed); the [`Guard`](crate::Guard) has its own.
/// Dropping it takes the feed back.
pub struct FeedReporter<K: Hash + Eq + Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K>>,
    id: u64,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> FeedReporter<K> {
    pub(crate) fn new(shared: Arc<Shared<K>>) -> Self {
        let id = shared.add_feed();
        Self { shared, id }
    }

    /// The feed is in this state now.
    pub fn set(&self, feed: Feed) {
        self.shared.set_feed(self.id, Some(feed));
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Drop for FeedReporter<K> {
    fn drop(&mut self) {
        self.shared.set_feed(self.id, None);
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> fmt::Debug for FeedReporter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedReporter").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The feeds of one lease.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    next: u64,
    states: Vec<(u64, Feed)>,
}

impl Feeds {
    pub fn add(&mut self) -> u64 {
        self.next += 1;
        self.states.push((self.next, Feed::Starting));
        self.next
    }

    pub fn set(&mut self, id: u64, feed: Option<Feed>) {
        self.states.retain_mut(|(known, state)| {
            if *known != id {
                return true;
            }
            feed.map(|feed| *state = feed).is_some()
        });
    }

    /// The state of the feed that is worst off, for longest.
    pub fn worst(&self) -> Option<Feed> {
        let badness = |feed: &Feed| match *feed {
            Feed::Live => (0, None),
            Feed::Starting => (1, None),
            Feed::Resuming { since } => (2, Some(std::cmp::Reverse(since))),
            Feed::Gone { since } => (3, Some(std::cmp::Reverse(since))),
        };
        self.states.iter().map(|(_, feed)| *feed).max_by_key(badness)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver;

    #[test]
    fn a_lease_is_as_blind_as_its_blindest_feed() {
        let mut feeds = Feeds::default();
        assert_eq!(feeds.worst(), None);
        let (first, second) = (feeds.add(), feeds.add());
        feeds.set(first, Some(Feed::Live));
        assert_eq!(feeds.worst(), Some(Feed::Starting));
        feeds.set(second, Some(Feed::Live));
        assert_eq!(feeds.worst(), Some(Feed::Live));
        let since = driver::now();
        let later = since + std::time::Duration::from_secs(1);
        feeds.set(second, Some(Feed::Resuming { since: later }));
        feeds.set(first, Some(Feed::Resuming { since }));
        assert_eq!(feeds.worst(), Some(Feed::Resuming { since }));
        feeds.set(second, Some(Feed::Gone { since: later }));
        assert_eq!(feeds.worst(), Some(Feed::Gone { since: later }));
        feeds.set(second, None);
        assert_eq!(feeds.worst(), Some(Feed::Resuming { since }));
    }
}
