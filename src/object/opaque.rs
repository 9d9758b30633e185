//! The types that an object handles without looking inside.

/// The types that are opaque to an [`Object`](super::Object), and how a wish evaluates.
pub trait Types {
    /// The value of an object.
    type Value: Clone + PartialEq;
    /// The version of a value.
    type Version: Version;
    /// A request's demand on the value. A copy is evaluated outside of the shell's lock.
    type Wish: Clone;
    /// The caller that waits for a request to end.
    type Waiter;
    /// The shell's reason to give a request up.
    type Reason: Clone;

    /// Evaluates a wish against the current value, `None` if the object does not exist.
    fn evaluate(wish: &Self::Wish, current: Option<&Self::Value>) -> Desired<Self::Value>;
}

/// The version of a write: compared for equality and never used twice.
pub trait Version: Clone + PartialEq {
    /// Returns the position among all writes of the store, if the store has such an order.
    fn revision(&self) -> Option<u64>;
    /// Returns the position among the writes of the same object, if the store has such an order.
    fn key_revision(&self) -> Option<u64>;
}

/// The result of evaluating one wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired<V> {
    /// The value is right as it is.
    Right,
    /// This value is to be written.
    Write(V),
    /// The object must not exist.
    Absent,
    /// The object must exist and does not.
    Gone,
}

impl<V> Desired<V> {
    /// Converts what a user's closure returns: the value to write, or `None` if the current one is
    /// right.
    pub fn of(wanted: Option<impl Into<V>>) -> Self {
        wanted.map_or(Self::Right, |value| Self::Write(value.into()))
    }
}
