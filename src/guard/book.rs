//! What is known of each key, what is wanted of it, and what a change of it means.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};

use super::EnsureOutcome;
#[cfg(feature = "kube")]
use crate::store::StoreError;
use crate::store::{Entry, Version};

/// What a part makes of the current value.
pub(super) type Desire = Arc<dyn Fn(Option<&[u8]>) -> Desired + Send + Sync>;

pub(crate) enum Desired {
    /// It is right.
    Right,
    /// This is to be written.
    Write(Bytes),
    /// The object that is wanted to be so is not there.
    Gone,
}

impl Desired {
    pub fn of<V: Into<Bytes>>(wanted: Option<V>) -> Self {
        wanted.map_or(Self::Right, |value| Self::Write(value.into()))
    }
}

#[derive(Default)]
pub(super) struct Book {
    keys: HashMap<Arc<str>, Page>,
    /// A listing was complete: a key that has no page did not exist then.
    listed: bool,
    /// Counts listings.
    listing: u64,
}

#[derive(Default)]
pub(super) struct Page {
    pub known: Option<Known>,
    /// The last value that was as all parts wanted it; taken when one of them next wants it to be written again.
    pub right: Option<Bytes>,
    /// The listing in which the key was last seen.
    listing: u64,
    pub parts: Vec<Part>,
    /// Whether the last state we saw while work was pending was not as the work wants it.
    pub wrong: bool,
    /// What was wanted when the oldest want that is not fulfilled yet was replaced by a newer one. The age of the work is
    /// that of this want, so it has to be known when somebody fulfils it.
    pub earlier: Option<Wants>,
    /// Our last write, until it comes back through the watch: its version, and when it started.
    pub echo: Option<(Version, Instant)>,
    /// What we wrote without getting an answer: the next version that holds exactly these bytes is ours.
    pub lost: Option<Bytes>,
    /// An attempt is out. Changes wait for its end, because one of them may be its own.
    pub flying: bool,
    pub held: Vec<Change>,
    /// Of which state the store refused the last work for good, and why, until somebody asks or the state is another one.
    #[cfg(feature = "kube")]
    pub refusal: Option<(Option<Version>, Arc<StoreError>)>,
}

/// The last state of a key that we saw.
#[derive(Clone)]
pub(super) struct Known {
    /// `None`: it does not exist.
    pub value: Option<Bytes>,
    pub version: Option<Version>,
    /// We learnt it by asking, and the watch may still tell what came before.
    pub ahead: bool,
}

pub(super) struct Part {
    pub name: Box<str>,
    pub serial: u64,
    pub desire: Desire,
    pub done: oneshot::Sender<EnsureOutcome>,
}

/// What the watch told of a key.
#[derive(Clone)]
pub(super) struct Change {
    pub arrived: Instant,
    pub value: Option<Bytes>,
    /// `None` if a listing did not hold the key.
    pub version: Option<Version>,
    pub listing: bool,
}

/// A copy of what a key's parts want, to be asked outside of the lock: the closures are the user's.
#[derive(Clone)]
pub(super) struct Wants(Vec<(u64, Desire)>);

/// What the parts make of a value.
pub(super) struct Asked {
    /// The value to write, if it is not right as it is.
    pub write: Option<Bytes>,
    /// The parts that changed it.
    pub changed: Vec<u64>,
    /// Parts whose object is not there.
    pub gone: Vec<u64>,
}

/// How a change relates to what we knew.
#[derive(PartialEq)]
pub(super) enum Age {
    Newer,
    Known,
    Older,
    /// We are ahead of the watch, and its versions don't tell where it is.
    Unclear,
}

impl Book {
    pub fn page(&mut self, key: &Arc<str>) -> &mut Page {
        let listed = self.listed;
        self.keys.entry(key.clone()).or_insert_with(|| Page {
            known: listed.then_some(Known { value: None, version: None, ahead: false }),
            ..Page::default()
        })
    }

    pub fn existing(&mut self, key: &str) -> Option<&mut Page> {
        self.keys.get_mut(key)
    }

    /// Forgets a page that says nothing more than that the key does not exist.
    pub fn tidy(&mut self, key: &Arc<str>) {
        if self.keys.get(key).is_some_and(Page::is_blank) {
            self.keys.remove(key);
        }
    }

    /// Ends the parts that `which` picks. Returns their closures, which are the user's: whoever holds no copy of them drops
    /// them outside of the lock.
    pub fn settle(
        &mut self,
        key: &Arc<str>,
        which: impl Fn(&Part) -> bool,
        ending: impl Fn(&Part) -> EnsureOutcome,
    ) -> Vec<Desire> {
        let Some(page) = self.keys.get_mut(key) else { return Vec::new() };
        let ended = page.parts.extract_if(.., |part| which(part)).map(|part| {
            let ending = ending(&part);
            part.end(ending)
        });
        let mut settled: Vec<Desire> = ended.collect();
        if page.parts.is_empty() {
            settled.extend(page.forget_earlier());
        }
        self.tidy(key);
        settled
    }

    /// Ends all that is pending.
    pub fn settle_all(&mut self, ending: impl Fn() -> EnsureOutcome) -> Vec<Desire> {
        let mut settled = Vec::new();
        for page in self.keys.values_mut() {
            settled.extend(page.forget_earlier());
            settled.extend(page.parts.drain(..).map(|part| part.end(ending())));
        }
        settled
    }

    /// Whether anything is pending for a key.
    pub fn is_pending(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(|page| !page.parts.is_empty())
    }

    pub fn begin_listing(&mut self) {
        self.listing += 1;
        for page in self.keys.values_mut() {
            if let Some(known) = &mut page.known {
                known.ahead = false;
            }
        }
    }

    pub fn seen_in_listing(&mut self, key: &Arc<str>) {
        let listing = self.listing;
        self.page(key).listing = listing;
    }

    /// The listing is complete. Returns the keys that were not in it.
    pub fn end_listing(&mut self) -> Vec<Arc<str>> {
        self.listed = true;
        let listing = self.listing;
        self.keys.iter().filter(|(_, page)| page.listing != listing).map(|(key, _)| key.clone()).collect()
    }
}

impl Asked {
    pub fn is_satisfied(&self) -> bool {
        self.write.is_none() && self.gone.is_empty()
    }
}

impl Change {
    pub fn revision(&self) -> Option<u64> {
        self.version.as_ref().and_then(Version::revision)
    }
}

impl Part {
    pub fn end(self, ending: EnsureOutcome) -> Desire {
        // Nobody has to wait for it.
        let _ = self.done.send(ending);
        self.desire
    }
}

impl Page {
    /// The state is another one than that whose echo was awaited, or whose change was refused.
    pub fn moves_on(&mut self) {
        self.echo = None;
        #[cfg(feature = "kube")]
        drop(self.refusal.take());
    }

    pub fn forget_earlier(&mut self) -> impl Iterator<Item = Desire> + use<> {
        self.earlier.take().into_iter().flat_map(|earlier| earlier.0).map(|(_, desire)| desire)
    }

    pub fn wants(&self) -> Wants {
        let wants = self.parts.iter().map(|part| (part.serial, part.desire.clone()));
        Wants(wants.collect())
    }

    /// Takes in what a read returned. What we read is never older than what we knew, whatever the watch tells next.
    pub fn learn(&mut self, entry: Option<&Entry>) {
        // If the key is gone that we knew to exist, the watch has yet to tell its deletion.
        let existed = self.known.as_ref().is_some_and(|known| known.value.is_some());
        let known_version = self.known.as_ref().and_then(|known| known.version.clone());
        self.known = Some(match entry {
            Some(entry) => {
                let version = Some(entry.version.clone());
                let ahead = known_version != version || self.known.as_ref().is_some_and(|known| known.ahead);
                Known { value: Some(entry.value.clone()), version, ahead }
            }
            None => Known { value: None, version: known_version, ahead: existed },
        });
    }

    /// Our write landed.
    pub fn wrote(&mut self, value: Bytes, version: Version, started: Instant) {
        self.moves_on();
        // Its event may be among those that wait for us already; they come next.
        self.echo = Some((version.clone(), started));
        self.right = Some(value.clone());
        self.known = Some(Known { value: Some(value), version: Some(version), ahead: true });
        self.lost = None;
        self.wrong = false;
        self.earlier = None;
    }

    /// The watch told what we knew already.
    pub fn caught_up(&mut self) {
        if let Some(known) = &mut self.known {
            known.ahead = false;
        }
    }

    /// Takes in what the watch told, which is newer than what we knew.
    pub fn record(&mut self, change: &Change) {
        let version = change.version.clone().or_else(|| self.known.take()?.version);
        self.known = Some(Known { value: change.value.clone(), version, ahead: false });
    }

    pub fn age(&self, change: &Change) -> Age {
        let Some(known) = &self.known else { return Age::Newer };
        let (Some(new), Some(old)) = (&change.version, &known.version) else {
            return if known.ahead { Age::Unclear } else { Age::Newer };
        };
        if new == old {
            return if change.value.is_some() == known.value.is_some() { Age::Known } else { Age::Older };
        }
        match (new.key_revision(), old.key_revision()) {
            (Some(new), Some(old)) if new < old => Age::Older,
            // We read that the key is gone, so the watch will tell of a deletion; what comes before it is older.
            (Some(_), Some(_)) if known.ahead && known.value.is_none() && change.value.is_some() => {
                Age::Unclear
            }
            (Some(_), Some(_)) => Age::Newer,
            _ if known.ahead => Age::Unclear,
            _ => Age::Newer,
        }
    }

    fn is_blank(&self) -> bool {
        self.parts.is_empty()
            && !self.flying
            && self.held.is_empty()
            && self.echo.is_none()
            && self.known.as_ref().is_none_or(|known| known.value.is_none() && !known.ahead)
    }
}

impl Wants {
    pub fn includes(&self, serial: u64) -> bool {
        self.0.iter().any(|(wanted, _)| *wanted == serial)
    }

    /// The same parts, none added, none replaced.
    pub fn are_those_of(&self, page: &Page) -> bool {
        self.0.iter().map(|(serial, _)| *serial).eq(page.parts.iter().map(|part| part.serial))
    }

    /// Asks each part in turn, giving it what the one before wants to write.
    pub fn ask(&self, current: Option<&Bytes>) -> Asked {
        let mut value = current.cloned();
        let mut asked = Asked { write: None, changed: Vec::new(), gone: Vec::new() };
        for (serial, desire) in &self.0 {
            match desire(value.as_deref()) {
                Desired::Right => {}
                Desired::Write(new) => {
                    value = Some(new.clone());
                    asked.write = Some(new);
                    asked.changed.push(*serial);
                }
                Desired::Gone => asked.gone.push(*serial),
            }
        }
        // What one part changed another may have changed back.
        if asked.write.as_ref() == current {
            asked.write = None;
        }
        asked
    }

    /// What the parts make of a value; unknown if a closure panics.
    pub fn judge(&self, value: Option<&Bytes>) -> Option<Asked> {
        catch_unwind(AssertUnwindSafe(|| self.ask(value))).ok()
    }

    /// Whether a value is right; unknown if a closure panics.
    pub fn satisfied_by(&self, value: Option<&Bytes>) -> Option<bool> {
        self.judge(value).map(|asked| asked.is_satisfied())
    }
}
