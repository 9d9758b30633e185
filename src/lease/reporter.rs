//! Reports about a watch that is not a guard's.

use std::{fmt, hash::Hash, sync::Arc};

use crate::{driver::Shared, status::WatchState};

/// A reporter of the state of one watch, for [`Status::watch`](crate::Status::watch). A
/// [`Guard`](crate::Guard) has its own. Dropping the reporter removes the watch from the status.
pub struct WatchReporter<K: Hash + Eq + Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K>>,
    id: u64,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> WatchReporter<K> {
    pub(super) fn new(shared: Arc<Shared<K>>) -> Self {
        let id = shared.add_watch();
        Self { shared, id }
    }

    /// Reports the present state of the watch.
    pub fn set(&self, watch: WatchState) {
        self.shared.set_watch(self.id, Some(watch));
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Drop for WatchReporter<K> {
    fn drop(&mut self) {
        self.shared.set_watch(self.id, None);
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> fmt::Debug for WatchReporter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchReporter").field("id", &self.id).finish_non_exhaustive()
    }
}
