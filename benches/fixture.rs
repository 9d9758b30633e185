//! The leases and floors of the benchmarks.

use std::{
    collections::{HashMap, VecDeque},
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::AcqRel},
    },
};

use parking_lot::Mutex;
use tokio::{
    runtime::Runtime,
    sync::{Notify, oneshot},
};
use writerlease::{Outcome, WriterLease};

pub(crate) type Key = Arc<str>;

pub(crate) fn keys(n: usize) -> Vec<Key> {
    (0..n).map(|i| Key::from(format!("default/route-{i}"))).collect()
}

pub(crate) fn current_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Returns a lease that leads and whose window is open.
pub(crate) async fn leader() -> WriterLease<Key> {
    let lease = WriterLease::builder("bench").seed(1).spawn().unwrap();
    lease.expire(); // no election delay
    while lease.snapshot().window < 16 {
        done(&lease, "grow".into()).await;
    }
    lease
}

/// Returns a lease whose jobs wait, because another replica leads. Its driver does not run while it
/// is measured.
pub(crate) async fn follower() -> WriterLease<Key> {
    let lease = WriterLease::builder("bench").seed(1).spawn().unwrap();
    for _ in 0..10 {
        lease.extend(&"elsewhere".into());
    }
    lease
}

pub(crate) async fn done(lease: &WriterLease<Key>, key: Key) {
    let (tell, told) = oneshot::channel();
    let mut tell = Some(tell);
    lease
        .try_work(key, move |_| {
            if let Some(tell) = tell.take() {
                let _ = tell.send(());
            }
            async { Outcome::Written }
        })
        .unwrap();
    told.await.unwrap();
}

/// Hands in a job for each key that decrements the countdown; the last one notifies.
pub(crate) fn hand_in(lease: &WriterLease<Key>, keys: &[Key], countdown: &Arc<Countdown>) {
    for key in keys {
        let countdown = countdown.clone();
        lease
            .try_work(key.clone(), move |_| {
                countdown.tick();
                async { Outcome::Written }
            })
            .unwrap();
    }
}

pub(crate) struct Countdown {
    left: AtomicUsize,
    pub(crate) done: Notify,
}

impl Countdown {
    pub(crate) fn from(n: usize) -> Arc<Self> {
        Arc::new(Self { left: n.into(), done: Notify::new() })
    }

    pub(crate) fn tick(&self) {
        if self.left.fetch_sub(1, AcqRel) == 1 {
            self.done.notify_one();
        }
    }
}

type Work = Box<dyn FnMut() -> Outcome + Send>;

/// The map and the queue of a keyed work queue, behind the lock that handles on several threads
/// need, without a clock, a task or a future.
#[derive(Default)]
pub(crate) struct Bare(Mutex<(HashMap<Key, Work>, VecDeque<Key>)>);

impl Bare {
    pub(crate) fn push(&self, key: Key, work: Work) {
        let (works, queue) = &mut *self.0.lock();
        if works.insert(key.clone(), work).is_none() {
            queue.push_back(key);
        }
    }

    fn take(&self) -> Option<Work> {
        let (works, queue) = &mut *self.0.lock();
        works.remove(&queue.pop_front()?)
    }

    pub(crate) fn run_all(&self) {
        while let Some(mut work) = self.take() {
            let _ = black_box(work());
        }
    }

    pub(crate) fn insert(&self, key: Key, work: Work) {
        self.0.lock().0.insert(key, work);
    }

    pub(crate) fn remove(&self, key: &Key) -> Option<Work> {
        self.0.lock().0.remove(key)
    }
}
