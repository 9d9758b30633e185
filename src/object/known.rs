//! The last state of an object that we saw, and how a change relates to it.

use super::{
    effect::Change,
    opaque::{Types, Version},
};

pub(super) struct Known<T: Types> {
    /// `None` if nothing is known.
    state: Option<State<T>>,
    /// The last version that the watch reported while versions did not tell how far we were ahead of it.
    unclear: Option<T::Version>,
}

struct State<T: Types> {
    /// `None` if the object does not exist.
    value: Option<T::Value>,
    /// The last version that was seen, also of an object that is gone.
    version: Option<T::Version>,
    /// We learnt it from the store, and the watch may still report what came before.
    ahead_of_watch: bool,
}

/// The age of a change, beside what is known.
#[derive(Debug, PartialEq)]
pub(super) enum Age {
    Newer,
    Known,
    Older,
    /// An entry of a listing with a smaller revision. Only a restored store and a listing that lags
    /// have these, and nothing tells which of them it is.
    Restored,
    /// We are ahead of the watch, and versions do not tell how far.
    Unclear,
}

impl<T: Types> Known<T> {
    /// Returns no knowledge, or with `absent` the knowledge that the object does not exist.
    pub fn new(absent: bool) -> Self {
        let state = absent.then_some(State { value: None, version: None, ahead_of_watch: false });
        Self { state, unclear: None }
    }

    pub fn is_nothing(&self) -> bool {
        self.state.is_none()
    }

    /// Returns whether nothing is known but that the object does not exist.
    pub fn is_blank(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.value.is_none() && !state.ahead_of_watch)
    }

    /// Returns whether the watch has reported what is known.
    pub fn is_reported(&self) -> bool {
        self.state.as_ref().is_some_and(|state| !state.ahead_of_watch)
    }

    pub fn value(&self) -> Option<&T::Value> {
        self.state.as_ref()?.value.as_ref()
    }

    pub fn version(&self) -> Option<&T::Version> {
        self.state.as_ref()?.version.as_ref()
    }

    /// Returns whether we learnt it from the store, and the watch may still report what came
    /// before.
    pub fn is_ahead_of_watch(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.ahead_of_watch)
    }

    /// Returns whether a value with this version was replaced before what we know.
    pub fn is_past(&self, version: &T::Version) -> bool {
        let Some(State { value, version: Some(known), .. }) = &self.state else { return false };
        let revisions = version.key_revision().zip(known.key_revision());
        // What is gone keeps the version of what was deleted.
        revisions.is_some_and(|(revision, known)| revision < known || revision == known && value.is_none())
    }

    /// Takes in what a read returned. That is never older than what we knew, whatever the watch
    /// reports next. Once the watch has reported this very version we are no longer ahead, though it was
    /// unclear then: the write that we waited for may be lost, in a store that was set back.
    pub fn learn(&mut self, read: Option<(T::Value, T::Version)>) {
        let was_ahead = self.is_ahead_of_watch();
        self.state = Some(match read {
            Some((value, version)) => {
                let is_reported = self.unclear.as_ref() == Some(&version);
                let ahead_of_watch = !is_reported && (was_ahead || self.version() != Some(&version));
                State { value: Some(value), version: Some(version), ahead_of_watch }
            }
            // The watch has yet to report the deletion of what we knew to exist.
            None => State {
                ahead_of_watch: was_ahead || self.value().is_some(),
                version: self.state.take().and_then(|state| state.version),
                value: None,
            },
        });
    }

    /// Takes in our own write, or with `None` our deletion.
    pub fn learn_own(&mut self, written: Option<(T::Value, T::Version)>) {
        self.learn(written);
        if let Some(state) = &mut self.state {
            state.ahead_of_watch = true;
        }
    }

    /// The watch reported a version that may be older or newer than what we know.
    pub fn note_unclear(&mut self, version: Option<T::Version>) {
        self.unclear = version;
    }

    /// Takes in what the watch reported, which replaces what we knew.
    pub fn record(&mut self, value: Option<T::Value>, version: Option<T::Version>) {
        self.state = Some(State { value, version, ahead_of_watch: false });
        self.unclear = None;
    }

    /// The watch has reported all that we know.
    pub fn caught_up(&mut self) {
        if let Some(state) = &mut self.state {
            state.ahead_of_watch = false;
        }
    }

    pub fn age(&self, change: &Change<T>) -> Age {
        let Some(known) = &self.state else { return Age::Newer };
        let (Some(new), Some(old)) = (&change.version, &known.version) else {
            return if known.ahead_of_watch { Age::Unclear } else { Age::Newer };
        };
        if new == old {
            // A read that found no object keeps the version of what was deleted.
            return if change.value.is_some() == known.value.is_some() { Age::Known } else { Age::Older };
        }
        match (new.key_revision(), old.key_revision()) {
            (Some(new), Some(old)) if new < old && change.listing && !known.ahead_of_watch => Age::Restored,
            (Some(new), Some(old)) if new < old => Age::Older,
            // We read that the object is gone, so the watch will report a deletion. What comes
            // before that is older.
            (Some(_), Some(_)) if known.ahead_of_watch && known.value.is_none() && change.value.is_some() => {
                Age::Unclear
            }
            (Some(_), Some(_)) => Age::Newer,
            _ if known.ahead_of_watch => Age::Unclear,
            _ => Age::Newer,
        }
    }
}
