//! Translates the events of a kube watcher into those of a store's watch.

use futures_util::{Stream, StreamExt};
use kube::runtime::watcher;
use tokio::sync::mpsc::UnboundedSender;

use super::request::refusal;
use crate::store::{Entry, Event, StoreError, causes::Causes, unavailable};

/// An item of a store's watch.
pub(super) type WatchItem = Result<Event, StoreError>;

/// Translates the items of one watcher.
///
/// A watcher repairs itself: it reports every failed try, and it does not report that it continues.
#[derive(Debug, Default)]
pub(super) struct Translation {
    /// The causes of the interruption that were emitted; none once something came.
    causes: Causes,
    /// The watcher has begun a listing, of which nothing has come yet. It repeats a listing until
    /// one succeeds.
    announced: bool,
}

impl Translation {
    /// Emits the watch items that follow from an item of the watcher: none, one or two.
    pub fn translate<K>(
        &mut self,
        item: &watcher::Result<watcher::Event<K>>,
        entry_of: impl Fn(&K) -> Result<Entry, StoreError>,
        mut emit: impl FnMut(WatchItem),
    ) {
        let event = match item {
            Ok(watcher::Event::Init) => {
                self.announced = true;
                return;
            }
            Ok(event) => event,
            Err(error) => {
                let error = interruption(error);
                if self.causes.is_news(&error) {
                    emit(Err(error));
                }
                return;
            }
        };
        let was_interrupted = self.causes.end();
        if std::mem::take(&mut self.announced) {
            emit(Ok(Event::Init));
        } else if was_interrupted {
            emit(Ok(Event::Resumed));
        }
        let translated = match event {
            watcher::Event::Init | watcher::Event::InitDone => Ok(Event::InitDone),
            watcher::Event::InitApply(object) => entry_of(object).map(Event::InitEntry),
            watcher::Event::Apply(object) => entry_of(object).map(Event::Put),
            watcher::Event::Delete(object) => {
                entry_of(object).map(|Entry { key, version, .. }| Event::Delete { key, version })
            }
        };
        match translated {
            Ok(event) => emit(Ok(event)),
            // One malformed object must not end the watch of all others. A write to it would fail
            // the same way.
            Err(error) => tracing::warn!(%error, "skipping a watch event that cannot be encoded"),
        }
    }
}

/// The watch of a store that runs a watcher of its own.
pub(super) fn translated<K>(
    prefix: String,
    items: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    entry_of: impl Fn(&K) -> Result<Entry, StoreError> + Send + 'static,
) -> impl Stream<Item = WatchItem> + Send + 'static {
    let mut translation = Translation::default();
    items.flat_map(move |item| {
        let mut emitted = Vec::with_capacity(2);
        translation.translate(&item, &entry_of, |item| emitted.push(item));
        emitted.retain(|item| concerns(&prefix, item));
        futures_util::stream::iter(emitted)
    })
}

/// The watches that are fed by a tapped watcher.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    translation: Translation,
    all: Vec<Subscriber>,
}

#[derive(Debug)]
struct Subscriber {
    prefix: String,
    items: UnboundedSender<WatchItem>,
    /// A listing or an interruption has come. Events before the first listing are withheld.
    started: bool,
}

impl Subscribers {
    pub fn add(&mut self, prefix: &str, items: UnboundedSender<WatchItem>) {
        self.all.push(Subscriber { prefix: prefix.into(), items, started: false });
    }

    /// Passes an item of the tapped watcher to all subscribers.
    pub fn emit<K>(
        &mut self,
        item: &watcher::Result<watcher::Event<K>>,
        entry_of: impl Fn(&K) -> Result<Entry, StoreError>,
    ) {
        let all = &mut self.all;
        self.translation.translate(item, entry_of, |item| emit_to(all, &item));
    }

    /// Reports that the tapped stream was dropped.
    pub fn interrupt(&mut self) {
        let error = unavailable("the tapped stream was dropped");
        if self.translation.causes.is_news(&error) {
            emit_to(&mut self.all, &Err(error));
        }
    }
}

/// Sends an item to the subscribers that it concerns, and removes those that have gone.
fn emit_to(subscribers: &mut Vec<Subscriber>, item: &WatchItem) {
    subscribers.retain_mut(|subscriber| {
        subscriber.started |= matches!(item, Ok(Event::Init) | Err(_));
        if subscriber.started && concerns(&subscriber.prefix, item) {
            return subscriber.items.send(copy(item)).is_ok();
        }
        !subscriber.items.is_closed()
    });
}

/// Returns whether an item belongs into a watch of a prefix.
fn concerns(prefix: &str, item: &WatchItem) -> bool {
    match item {
        Ok(event) => event.key().is_none_or(|key| key.starts_with(prefix)),
        Err(_) => true,
    }
}

/// Copies an item. The copy of an error keeps only its text, because the source of an error cannot
/// be cloned.
fn copy(item: &WatchItem) -> WatchItem {
    match item {
        Ok(event) => Ok(event.clone()),
        Err(StoreError::Denied { reason, .. }) => {
            Err(StoreError::Denied { reason: reason.clone(), source: None })
        }
        Err(error) => Err(unavailable(error.to_string())),
    }
}

fn interruption(error: &watcher::Error) -> StoreError {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    let status = match error {
        WatchError(status) => Some(status),
        InitialListFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status)) => Some(status),
        _ => None,
    };
    match status.map(|status| refusal(kube::Error::Api(status.clone()))) {
        Some(error @ StoreError::Denied { .. }) => error,
        _ => unavailable(error.to_string()),
    }
}
