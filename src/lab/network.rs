//! A store behind a network that can be slow, lossy or cut.

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

/// One replica's connection to a store, which adds latency and faults to each request and counts
/// it.
///
/// Clones share the connection. The seed determines all delays. Each delay is half of its mean plus
/// an exponentially distributed part, so that a few delays are much longer than the mean.
///
/// # Errors
///
/// Requests return the store's errors. The [fault](NetworkFault) that is set adds
/// [`StoreError::Unavailable`] and [`StoreError::Denied`].
///
/// ```
/// use std::time::Duration;
/// use writerlease::{lab::{Network, RemoteStore}, store::{MemoryStore, Store}};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let (write, watch) = (Duration::from_millis(2), Duration::from_millis(4));
/// let network = Network { write, watch, ..Network::default() };
/// let remote = RemoteStore::new(MemoryStore::new(), network, 1);
/// remote.put("key", "value".into(), writerlease::store::Expected::Absent, None).await.unwrap();
/// assert_eq!(remote.counts().succeeded, 1);
/// # }
/// ```
pub struct RemoteStore<S> {
    link: Arc<Link<S>>,
}

/// The latencies of a connection: means of random delays. The default adds no delay.
///
/// ```
/// use std::time::Duration;
/// use writerlease::lab::Network;
///
/// let ms = Duration::from_millis(1);
/// // A write takes 2 ms on average and a watch event 4 ms; one event in 100 takes 50 ms more.
/// let network = Network { read: ms, write: 2 * ms, watch: 4 * ms, late: 0.01, late_by: 50 * ms, in_order: true };
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    /// Time from the call of a `get` to its answer.
    pub read: Duration,
    /// Time from the call of a `put` or `delete` to its answer. The write takes effect after half
    /// of it.
    pub write: Duration,
    /// Time from a write to its watch event.
    pub watch: Duration,
    /// Share of the events, from 0 to 1, that [`late_by`](Self::late_by) delays further. At 0,
    /// events arrive in order.
    pub late: f64,
    /// Mean of the additional delay of a late event.
    pub late_by: Duration,
    /// A late event holds up all that come after it, as in the watch of a real store, which is one
    /// stream. Otherwise newer events overtake it: milder, because one late event then delays
    /// nothing else.
    pub in_order: bool,
}

/// A fault of a connection. The default is none.
///
/// ```
/// use writerlease::lab::{Network, NetworkFault, RemoteStore};
/// use writerlease::store::{MemoryStore, Store};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let remote = RemoteStore::new(MemoryStore::new(), Network::default(), 1);
/// remote.set_fault(NetworkFault::Down);
/// assert!(remote.get("key").await.is_err());
/// remote.set_fault(NetworkFault::None);
/// assert!(remote.get("key").await.is_ok());
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkFault {
    /// Calls pass.
    #[default]
    None,
    /// Calls fail immediately with [`StoreError::Unavailable`] and never reach the store. Watches
    /// continue.
    Down,
    /// Writes take effect, but their answers are lost: the caller gets
    /// [`StoreError::Unavailable`].
    AnswersLost,
    /// Calls hang, those in flight included, and watches deliver no events: this is how a killed
    /// process looks to its peers.
    Dead,
    /// Writes fail with [`StoreError::Denied`].
    Denied,
}

/// The number of requests that a connection has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// Reads sent.
    pub reads: u64,
    /// Writes sent.
    pub attempted: u64,
    /// Writes that took effect and whose answer reached the caller.
    pub succeeded: u64,
    /// Writes that the store refused because of a conflict.
    pub refused: u64,
}

struct Link<S> {
    store: S,
    network: Mutex<Network>,
    fault: watch::Sender<NetworkFault>,
    rng: Mutex<Xoshiro256PlusPlus>,
    reads: AtomicU64,
    attempted: AtomicU64,
    succeeded: AtomicU64,
    refused: AtomicU64,
}

impl<S: Store> RemoteStore<S> {
    /// Connects to `store` through `network`. Equal seeds give equal delays.
    pub fn new(store: S, network: Network, seed: u64) -> Self {
        Self {
            link: Arc::new(Link {
                store,
                network: Mutex::new(network),
                fault: watch::Sender::new(NetworkFault::None),
                rng: Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed)),
                reads: AtomicU64::new(0),
                attempted: AtomicU64::new(0),
                succeeded: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            }),
        }
    }

    /// Sets the fault of the connection, also for calls in flight.
    pub fn set_fault(&self, fault: NetworkFault) {
        self.link.fault.send_replace(fault);
    }

    /// Sets the latencies of requests and events from now on.
    pub fn set_network(&self, network: Network) {
        *self.link.network.lock() = network;
    }

    /// Returns the number of requests so far.
    pub fn counts(&self) -> RequestCounts {
        let link = &self.link;
        RequestCounts {
            reads: link.reads.load(Relaxed),
            attempted: link.attempted.load(Relaxed),
            succeeded: link.succeeded.load(Relaxed),
            refused: link.refused.load(Relaxed),
        }
    }

    fn draw(&self, mean: impl Fn(&Network) -> Duration) -> Duration {
        let mean = mean(&self.link.network.lock());
        // Without latency nothing is drawn, so that such a run is independent of the seed.
        if mean.is_zero() { mean } else { mean.mul_f64(0.5 - 0.5 * (1.0 - self.uniform()).ln()) }
    }

    fn uniform(&self) -> f64 {
        self.link.rng.lock().random()
    }

    /// Draws the delivery time of an event that the store sends at `now`.
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

    /// Waits for `delay`, then passes, fails or hangs the call, as the fault demands.
    async fn pass(&self, delay: Duration) -> Result<(), StoreError> {
        if self.fault() == NetworkFault::Down {
            return Err(unavailable("connection refused"));
        }
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let mut fault = self.link.fault.subscribe();
        // The sender lives as long as `self`.
        let _ = fault.wait_for(|fault| *fault != NetworkFault::Dead).await;
        if self.fault() == NetworkFault::Down { Err(unavailable("connection reset")) } else { Ok(()) }
    }

    fn fault(&self) -> NetworkFault {
        *self.link.fault.borrow()
    }

    async fn read<T>(&self, read: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.link.reads.fetch_add(1, Relaxed);
        self.pass(self.draw(|network| network.read / 2)).await?;
        let answer = read.await;
        self.pass(self.draw(|network| network.read / 2)).await?;
        answer
    }

    async fn write<T>(&self, write: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.link.attempted.fetch_add(1, Relaxed);
        self.pass(self.draw(|network| network.write / 2)).await?;
        if self.fault() == NetworkFault::Denied {
            return Err(StoreError::Denied { reason: "read only".into(), source: None });
        }
        let result = write.await;
        self.pass(self.draw(|network| network.write / 2)).await?;
        if self.fault() == NetworkFault::AnswersLost {
            return Err(unavailable("answer lost"));
        }
        match &result {
            Ok(_) => self.link.succeeded.fetch_add(1, Relaxed),
            Err(StoreError::Conflict { .. }) => self.link.refused.fetch_add(1, Relaxed),
            Err(_) => 0,
        };
        result
    }
}

impl<S: Store> Store for RemoteStore<S> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.read(self.link.store.get(key)).await
    }

    async fn get_uncached(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.read(self.link.store.get_uncached(key)).await
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

/// A watch that delays its events.
struct Delayed<S> {
    remote: RemoteStore<S>,
    events: stream::BoxStream<'static, Result<Event, StoreError>>,
    queue: BinaryHeap<Reverse<PendingEvent>>,
    arrived: u64,
    /// The latest delivery time so far; events in order arrive no earlier.
    last: Option<Instant>,
}

struct PendingEvent {
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
                    // A sleep would last at least a millisecond.
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
                    let network = self.remote.link.network.lock().clone();
                    let in_order = network.in_order || network.late == 0.0 || is_listing(&event);
                    let due = if is_listing(&event) { now } else { self.remote.delivery(now) };
                    let due = if in_order { self.last.map_or(due, |last| due.max(last)) } else { due };
                    self.last = Some(self.last.map_or(due, |last| last.max(due)));
                    self.arrived += 1;
                    self.queue.push(Reverse(PendingEvent { due, arrived: self.arrived, event }));
                }
                () = wait.as_mut() => {
                    let mut fault = self.remote.link.fault.subscribe();
                    let _ = fault.wait_for(|fault| *fault != NetworkFault::Dead).await;
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

impl Ord for PendingEvent {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.arrived).cmp(&(other.due, other.arrived))
    }
}

impl PartialOrd for PendingEvent {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PendingEvent {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PendingEvent {}

impl<S> Clone for RemoteStore<S> {
    fn clone(&self) -> Self {
        Self { link: self.link.clone() }
    }
}

impl<S> fmt::Debug for RemoteStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStore")
            .field("network", &*self.link.network.lock())
            .field("fault", &*self.link.fault.borrow())
            .finish_non_exhaustive()
    }
}
