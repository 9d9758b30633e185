//! Callbacks, as ethpandaops' `leaderelection` has them; see
//! [`on_leadership_change`](super::RedisElectorBuilder::on_leadership_change).

use std::{sync::Arc, time::Duration};

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
                if tokio::task::spawn_blocking(move || callback(leads)).await.is_err() {
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

/// The longest time of a callback that is not logged.
const SLOW: Duration = Duration::from_millis(100);
