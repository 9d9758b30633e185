//! Callbacks, as ethpandaops' `leaderelection` has them; see
//! [`on_leadership_change`](super::RedisElectorBuilder::on_leadership_change).

use std::{cell::Cell, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    clock,
    election::{Event, Events},
};

/// Callbacks in the order in which they were added.
#[derive(Default)]
pub(super) struct Callbacks(Vec<Arc<dyn Fn(bool) + Send + Sync>>);

impl Callbacks {
    pub fn add(&mut self, callback: impl Fn(bool) + Send + Sync + 'static) {
        self.0.push(Arc::new(callback));
    }

    /// Starts the task that calls them until the elector ends. The token is cancelled when the last
    /// call has returned.
    pub fn start(self, events: Events) -> CancellationToken {
        let called_back = CancellationToken::new();
        tokio::spawn(self.run(events, called_back.clone().drop_guard()));
        called_back
    }

    async fn run(self, mut events: Events, _done: DropGuard) {
        while let Some(event) = events.next().await {
            let leads = match event {
                Event::Elected { .. } => true,
                Event::Retired { .. } => false,
                _ => continue,
            };
            for (number, callback) in self.0.iter().enumerate() {
                let callback = callback.clone();
                let started = clock::now();
                let called = tokio::task::spawn_blocking(move || {
                    let _within = Within::enter();
                    callback(leads);
                });
                // A runtime that shuts down cancels a call that has not begun.
                if called.await.is_err_and(|error| error.is_panic()) {
                    tracing::error!(number, leads, "a callback panicked");
                }
                let took = clock::now() - started;
                if took > SLOW {
                    tracing::warn!(number, leads, ?took, "a callback is slow, and later ones are late");
                }
            }
        }
    }
}

/// Returns whether this thread runs a callback.
pub(super) fn is_callback() -> bool {
    WITHIN.get()
}

/// The time in which this thread runs a callback.
struct Within;

impl Within {
    fn enter() -> Self {
        WITHIN.set(true);
        Self
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        WITHIN.set(false);
    }
}

thread_local! {
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// The longest time of a callback that is not logged.
const SLOW: Duration = Duration::from_millis(100);
