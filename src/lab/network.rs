//! A store behind a network that can be slow, lossy, cut or dead.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    clock,
    store::{Entry, Event, Expected, Fence, Store, StoreError, Version},
};

/// One replica's connection to a store: adds latency and faults to what passes, and counts it.
///
/// Clones are the same connection. Delays are drawn from the seed: half of the given one for certain, the rest
/// exponentially, so that their mean is the given one and a few are much longer.
///
/// ```
/// use std::time::Duration;
/// use writerlease::{lab::{Network, Remote}, store::{MemoryStore, Store}};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let network = Network { write: Duration::from_millis(2), watch: Duration::from_millis(4), ..Network::default() };
/// let remote = Remote::new(MemoryStore::new(), network, 1);
/// remote.put("key", "value".into(), writerlease::store::Expected::Absent, None).await.unwrap();
/// assert_eq!(remote.tally().landed, 1);
/// # }
/// ```
pub struct Remote<S> {
    link: Arc<Link<S>>,
}

/// How slow a connection is. The default is not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    /// From the call of a `get` to its answer.
    pub read: Duration,
    /// From the call of a `put` or `delete` to its answer; half of it passes before the write takes effect.
    pub write: Duration,
    /// From a write to its event.
    pub watch: Duration,
    /// The share of events that come [`late_by`](Self::late_by) later, after others that were written later. If it is 0,
    /// events come in order.
    pub late: f64,
    /// The mean of what late events are late by.
    pub late_by: Duration,
}

/// What a connection does to the calls that pass it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Calls fail at once, and nothing reaches the store.
    Down,
    /// Writes land, but their answers are lost: they fail as if they had not.
    AnswersLost,
    /// Calls don't end, nor do those under way; events don't come. What a killed process is to its peers.
    Dead,
    /// Writes are denied.
    Denied,
}

/// What passed a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Reads sent.
    pub reads: u64,
    /// Writes sent.
    pub attempted: u64,
    /// Writes that took effect and were acknowledged.
    pub landed: u64,
    /// Writes that were refused as stale.
    pub refused: u64,
}

struct Link<S> {
    store: S,
    network: Mutex<Network>,
    fault: watch::Sender<Fault>,
    dice: Mutex<Xoshiro256PlusPlus>,
    reads: AtomicU64,
    attempted: AtomicU64,
    landed: AtomicU64,
    refused: AtomicU64,
}

impl<S: Store> Remote<S> {
    /// Connects to `store` through a network.
    pub fn new(store: S, network: Network, seed: u64) -> Self {
        Self {
            link: Arc::new(Link {
                store,
                network: Mutex::new(network),
                fault: watch::Sender::new(Fault::None),
                dice: Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed)),
                reads: AtomicU64::new(0),
                attempted: AtomicU64::new(0),
                landed: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            }),
        }
    }

    /// From now on the connection behaves like this.
    pub fn fail(&self, fault: Fault) {
        self.link.fault.send_replace(fault);
    }

    /// From now on the network is this slow.
    pub fn slow(&self, network: Network) {
        *self.link.network.lock() = network;
    }

    /// What passed so far.
    pub fn tally(&self) -> Tally {
        let link = &self.link;
        Tally {
            reads: link.reads.load(Relaxed),
            attempted: link.attempted.load(Relaxed),
            landed: link.landed.load(Relaxed),
            refused: link.refused.load(Relaxed),
        }
    }

    fn draw(&self, mean: impl Fn(&Network) -> Duration) -> Duration {
        let mean = mean(&self.link.network.lock());
        // The dice are not thrown for nothing, so that a run without latency doesn't depend on them.
        if mean.is_zero() { mean } else { mean.mul_f64(0.5 - 0.5 * (1.0 - self.uniform()).ln()) }
    }

    fn uniform(&self) -> f64 {
        self.link.dice.lock().random()
    }

    /// When an event that arrives now is delivered.
    fn delivery(&self, now: Instant) -> Instant {
        let mut at = now + self.draw(|network| network.watch);
        let (late, late_by) = {
            let network = self.link.network.lock();
            (network.late, network.late_by)
        };
        if late > 0.0 && self.uniform() < late {
            at += late_by.mul_f64(-(1.0 - self.uniform()).ln());
        }
        at
    }

    /// Waits a while, then lets the call pass, fail, or hang.
    async fn pass(&self, delay: Duration) -> Result<(), StoreError> {
        if self.fault() == Fault::Down {
            return Err(unavailable("connection refused"));
        }
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let mut fault = self.link.fault.subscribe();
        // The sender lives as long as `self`.
        let _ = fault.wait_for(|fault| *fault != Fault::Dead).await;
        if self.fault() == Fault::Down { Err(unavailable("connection reset")) } else { Ok(()) }
    }

    fn fault(&self) -> Fault {
        *self.link.fault.borrow()
    }

    async fn write<T>(&self, write: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.link.attempted.fetch_add(1, Relaxed);
        self.pass(self.draw(|network| network.write / 2)).await?;
        if self.fault() == Fault::Denied {
            return Err(StoreError::Denied { reason: "read only".into(), source: None });
        }
        let result = write.await;
        self.pass(self.draw(|network| network.write / 2)).await?;
        if self.fault() == Fault::AnswersLost {
            return Err(unavailable("the answer was lost"));
        }
        match &result {
            Ok(_) => self.link.landed.fetch_add(1, Relaxed),
            Err(StoreError::Conflict { .. }) => self.link.refused.fetch_add(1, Relaxed),
            Err(_) => 0,
        };
        result
    }
}

impl<S: Store> Store for Remote<S> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.link.reads.fetch_add(1, Relaxed);
        self.pass(self.draw(|network| network.read / 2)).await?;
        let answer = self.link.store.get(key).await;
        self.pass(self.draw(|network| network.read / 2)).await?;
        answer
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        self.write(self.link.store.put(key, value, expected, fence)).await
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.write(self.link.store.delete(key, expected, fence)).await
    }

    fn competes(&self, before: Option<&[u8]>, after: &[u8], version: &Version) -> bool {
        self.link.store.competes(before, after, version)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        let delayed = Delayed {
            remote: self.clone(),
            events: Box::pin(self.link.store.watch(prefix)),
            queue: BinaryHeap::new(),
            arrived: 0,
            last: None,
        };
        stream::unfold(delayed, |mut delayed| async move { Some((delayed.next().await?, delayed)) })
    }
}

/// A watch whose events are on their way for a while.
struct Delayed<S> {
    remote: Remote<S>,
    events: stream::BoxStream<'static, Result<Event, StoreError>>,
    queue: BinaryHeap<Reverse<Underway>>,
    arrived: u64,
    /// When the last event was or will be delivered, if they come in order.
    last: Option<Instant>,
}

struct Underway {
    due: Instant,
    arrived: u64,
    event: Result<Event, StoreError>,
}

impl<S: Store> Delayed<S> {
    async fn next(&mut self) -> Option<Result<Event, StoreError>> {
        loop {
            let due = self.queue.peek().map(|Reverse(first)| first.due);
            let wait = async {
                match due {
                    // The shortest sleep is a millisecond.
                    Some(due) if due <= clock::now() => {}
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let mut wait = pin!(wait);
            tokio::select! {
                biased;
                event = self.events.next() => {
                    let event = event?;
                    let now = clock::now();
                    let in_order = self.remote.link.network.lock().late == 0.0 || is_listing(&event);
                    let due = if is_listing(&event) { now } else { self.remote.delivery(now) };
                    let due = if in_order { self.last.map_or(due, |last| due.max(last)) } else { due };
                    self.last = Some(self.last.map_or(due, |last| last.max(due)));
                    self.arrived += 1;
                    self.queue.push(Reverse(Underway { due, arrived: self.arrived, event }));
                }
                () = wait.as_mut() => {
                    let mut fault = self.remote.link.fault.subscribe();
                    let _ = fault.wait_for(|fault| *fault != Fault::Dead).await;
                    return self.queue.pop().map(|Reverse(first)| first.event);
                }
            }
        }
    }
}

fn is_listing(event: &Result<Event, StoreError>) -> bool {
    matches!(event, Ok(Event::Init | Event::InitEntry(_) | Event::InitDone))
}

fn unavailable(reason: &str) -> StoreError {
    StoreError::Unavailable { reason: reason.into(), source: None }
}

impl Ord for Underway {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.arrived).cmp(&(other.due, other.arrived))
    }
}

impl PartialOrd for Underway {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Underway {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Underway {}

impl<S> Clone for Remote<S> {
    fn clone(&self) -> Self {
        Self { link: self.link.clone() }
    }
}

impl<S> fmt::Debug for Remote<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("network", &*self.link.network.lock())
            .field("fault", &*self.link.fault.borrow())
            .finish_non_exhaustive()
    }
}
