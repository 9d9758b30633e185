//! The listings of a watch, as one object sees them.

use super::{effect::Change, opaque::Types};

#[derive(Default)]
pub(super) struct Listing {
    /// Counts listings.
    pub number: u64,
    /// The current listing contains the object, or ended without it.
    pub is_complete: bool,
}

impl Listing {
    pub fn begin(&mut self) {
        self.number += 1;
        self.is_complete = false;
    }

    pub fn note<T: Types>(&mut self, change: &Change<T>) {
        self.is_complete |= change.listing && change.deferred.is_none();
    }

    /// Returns whether a listing began after an attempt deferred the change, which is older.
    pub fn has_replaced<T: Types>(&self, change: &Change<T>) -> bool {
        change.deferred.is_some_and(|number| number < self.number)
    }
}
