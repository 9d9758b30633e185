//! Reports that only a guard makes, and what else the layers above need.

use std::{hash::Hash, sync::Arc, time::Duration};

use super::{WriterLease, reporter::PrefixClaim};
use crate::{
    driver::Shared,
    status::{LeaseClosed, SpawnError},
};

impl<K: Hash + Eq + Clone + Send + Sync + 'static> WriterLease<K> {
    /// Reports that a watch listed the store anew, which may have been restored to smaller revisions.
    pub(crate) fn relisted(&self) {
        self.send(|engine, now| engine.handle_relisting(now));
    }

    /// Reports that a key is as it should be, and was not made so by anybody that we know of.
    pub(crate) fn satisfied(&self, key: &K) {
        self.send(|engine, now| engine.handle_satisfied(now, key));
    }

    /// Reports that another process deleted the object.
    pub(crate) fn deleted(&self, key: &K) {
        self.send(|engine, now| engine.handle_deleted(now, key));
    }

    /// Returns the key that has been pending for longest.
    pub(crate) fn oldest_pending(&self) -> Option<K> {
        self.handle.shared.lock().engine.oldest_pending().map(|(key, _)| key.clone())
    }

    /// Returns the part that does not keep the lease alive.
    pub(crate) fn shared(&self) -> &Arc<Shared<K>> {
        &self.handle.shared
    }

    /// Reserves a prefix for a guard.
    ///
    /// # Errors
    ///
    /// [`SpawnError::OverlappingPrefixes`].
    pub(crate) fn claim_prefix(&self, prefix: &str) -> Result<PrefixClaim<K>, SpawnError> {
        PrefixClaim::new(self.handle.shared.clone(), prefix)
    }

    /// Calls back once the lease is closed; immediately if it is closed already.
    pub(crate) fn when_closed(&self, call: impl FnOnce(LeaseClosed) + Send + 'static) {
        self.handle.shared.when_closed(Box::new(call));
    }

    /// Reports how long a round trip to the store took; ignored after the first echo.
    pub(crate) fn echo_hint(&self, round_trip: Duration) {
        self.send(|engine, now| engine.handle_echo_hint(now, round_trip));
    }
}
