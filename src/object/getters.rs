//! A look at an object, without an event.

use super::{Object, opaque::Types, wish::Request};

impl<T: Types> Object<T> {
    /// Returns the pending requests, in order of their parts' first requests.
    pub fn requests(&self) -> &[Request<T::Version, T::Wish, T::Waiter>] {
        self.requests.all()
    }

    /// Returns the last value that we saw, `None` if it did not exist or none was seen.
    pub fn value(&self) -> Option<&T::Value> {
        self.known.value()
    }

    /// Returns whether nothing is known of the object.
    pub fn is_unknown(&self) -> bool {
        self.known.is_nothing()
    }

    /// Returns whether the current listing has shown the object, or its absence.
    pub fn is_listed(&self) -> bool {
        self.listing.is_complete
    }

    /// Returns whether the object says no more than a new one does after a listing without it.
    pub fn is_blank(&self) -> bool {
        let is_idle = self.requests.is_empty() && self.in_flight.is_none();
        // Before the first listing every object is unknown, also one that a caller has.
        let is_refused = self.refusal.is_some() && self.known.is_nothing();
        is_idle && !is_refused && !self.own_write.is_pending() && self.known.is_blank()
    }
}
