//! The events of a kube watcher as those of a store's watch.

use futures_util::{Stream, StreamExt};
use kube::runtime::watcher;
use tokio::sync::mpsc::UnboundedSender;

use super::request::refusal;
use crate::store::{Entry, Event, StoreError, unavailable};

type Told = Result<Event, StoreError>;

/// What to tell of a watcher that repairs itself: it reports errors as often as they come, and does not say when it goes on.
#[derive(Debug, Default)]
pub(super) struct Translation {
    /// The reader was told of an interruption, and nothing came since.
    interrupted: bool,
    /// A listing was announced, which is tried as long as it fails; nothing of it came so far.
    announced: bool,
}

impl Translation {
    /// What an item of a watcher's stream says.
    pub fn tell<K>(
        &mut self,
        item: &watcher::Result<watcher::Event<K>>,
        entry: impl Fn(&K) -> Result<Entry, StoreError>,
        mut tell: impl FnMut(Told),
    ) {
        let event = match item {
            Ok(watcher::Event::Init) => {
                self.announced = true;
                return;
            }
            Ok(event) => event,
            Err(error) => {
                if !std::mem::replace(&mut self.interrupted, true) {
                    tell(Err(interruption(error)));
                }
                return;
            }
        };
        let is_over = std::mem::take(&mut self.interrupted);
        if std::mem::take(&mut self.announced) {
            tell(Ok(Event::Init));
        } else if is_over {
            tell(Ok(Event::Resumed));
        }
        let told = match event {
            watcher::Event::Init | watcher::Event::InitDone => Ok(Event::InitDone),
            watcher::Event::InitApply(object) => entry(object).map(Event::InitEntry),
            watcher::Event::Apply(object) => entry(object).map(Event::Put),
            watcher::Event::Delete(object) => {
                entry(object).map(|Entry { key, version, .. }| Event::Delete { key, version })
            }
        };
        match told {
            Ok(event) => tell(Ok(event)),
            // One object that makes no sense ends no watch; a write of it would be refused as well.
            Err(error) => tracing::warn!(%error, "an event of a watch is left out"),
        }
    }
}

/// What a watcher tells, cut down to the keys of a prefix.
pub(super) fn under(prefix: &str, told: &Told) -> bool {
    match told {
        Ok(event) => event.key().is_none_or(|key| key.starts_with(prefix)),
        Err(_) => true,
    }
}

/// The watch of a store that watches by itself.
pub(super) fn own<K>(
    prefix: String,
    items: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    entry: impl Fn(&K) -> Result<Entry, StoreError> + Send + 'static,
) -> impl Stream<Item = Told> + Send + 'static {
    let mut translation = Translation::default();
    items.flat_map(move |item| {
        let mut all = Vec::with_capacity(2);
        translation.tell(&item, &entry, |told| all.push(told));
        all.retain(|told| under(&prefix, told));
        futures_util::stream::iter(all)
    })
}

/// Those who watch what somebody else's watcher tells.
#[derive(Debug, Default)]
pub(super) struct Taps {
    translation: Translation,
    all: Vec<Tap>,
}

#[derive(Debug)]
struct Tap {
    prefix: String,
    told: UnboundedSender<Told>,
    /// It is told nothing before a listing begins.
    listed: bool,
}

impl Taps {
    pub fn add(&mut self, prefix: &str, told: UnboundedSender<Told>) {
        self.all.push(Tap { prefix: prefix.into(), told, listed: false });
    }

    pub fn tell<K>(
        &mut self,
        item: &watcher::Result<watcher::Event<K>>,
        entry: impl Fn(&K) -> Result<Entry, StoreError>,
    ) {
        let all = &mut self.all;
        self.translation.tell(item, entry, |told| tell_all(all, &told));
    }

    /// There is nothing to observe any more.
    pub fn interrupt(&mut self) {
        if !std::mem::replace(&mut self.translation.interrupted, true) {
            tell_all(&mut self.all, &Err(unavailable("what was observed was dropped")));
        }
    }
}

fn tell_all(all: &mut Vec<Tap>, told: &Told) {
    all.retain_mut(|tap| {
        tap.listed |= matches!(told, Ok(Event::Init) | Err(_));
        if tap.listed && under(&tap.prefix, told) {
            return tap.told.send(copy(told)).is_ok();
        }
        !tap.told.is_closed()
    });
}

/// Errors have sources that cannot be copied.
fn copy(told: &Told) -> Told {
    match told {
        Ok(event) => Ok(event.clone()),
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
