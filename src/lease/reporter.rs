//! Reports about a watch, and the reservation of a guard's prefix.

use std::{fmt, hash::Hash, sync::Arc};

use crate::{
    driver::Shared,
    status::{SpawnError, WatchState},
};

/// A reporter of the state of one watch, for [`Status::watch`](crate::Status::watch). A
/// [`Guard`](crate::Guard) has its own. Dropping the reporter removes the watch from the status.
pub struct WatchReporter<K: Hash + Eq + Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K>>,
    id: u64,
}

/// The reservation of a prefix for one guard. Dropping it frees the prefix.
pub(crate) struct PrefixClaim<K: Hash + Eq + Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K>>,
    prefix: Box<str>,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> PrefixClaim<K> {
    pub(super) fn new(shared: Arc<Shared<K>>, prefix: &str) -> Result<Self, SpawnError> {
        shared.add_prefix(prefix)?;
        Ok(Self { shared, prefix: prefix.into() })
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Drop for PrefixClaim<K> {
    fn drop(&mut self) {
        self.shared.remove_prefix(&self.prefix);
    }
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
