//! Reconnecting, in one place.
