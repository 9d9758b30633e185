//! The session that a store and its watches share.

use std::{
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{sync::Mutex, time::Instant};
use zookeeper_client::{Client, SessionState, StateWatcher};

use super::{
    access::{self, ZookeeperAccess},
    breaks::Breaks,
    name,
};
use crate::{
    clock,
    store::{StoreError, resume, unavailable},
};

/// A session that begins with the first call, and anew with the first call after it expired. Clones
/// share it.
#[derive(Clone)]
pub(super) struct Session {
    shared: Arc<Shared>,
    pub session_timeout: Duration,
    pub request_timeout: Duration,
}

struct Shared {
    servers: String,
    base: String,
    access: ZookeeperAccess,
    /// A caller that connects holds the lock, so that the others wait for its session.
    current: Mutex<Current>,
}

struct Current {
    /// `None` before the first call.
    client: Option<(Client, StateWatcher)>,
    interruptions: u64,
    breaks: Breaks,
    /// No session begins before this time.
    pause: Option<Instant>,
}

impl Session {
    pub fn new(servers: &str, base: &str, access: ZookeeperAccess) -> Self {
        let (servers, base) = (servers.to_owned(), base.to_owned());
        let current = Current { client: None, interruptions: 0, breaks: Breaks::new(), pause: None };
        Self {
            shared: Arc::new(Shared { servers, base, access, current: Mutex::new(current) }),
            session_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(5),
        }
    }

    pub fn servers(&self) -> &str {
        &self.shared.servers
    }

    pub fn base(&self) -> &str {
        &self.shared.base
    }

    pub fn access(&self) -> &ZookeeperAccess {
        &self.shared.access
    }

    /// Returns the client of the current session, or of a new one if there is none.
    pub async fn client(&self) -> Result<Client, StoreError> {
        self.client_and_interruptions().await.map(|(client, _)| client)
    }

    /// Also returns how often the connection was interrupted before. The data may have been replaced
    /// during each interruption.
    pub async fn client_and_interruptions(&self) -> Result<(Client, u64), StoreError> {
        let mut current = self.shared.current.lock().await;
        let Current { client, interruptions, pause, .. } = &mut *current;
        if let Some((_, states)) = client
            && states.changed().now_or_never().is_some()
        {
            *interruptions += 1;
        }
        if let Some((client, _)) = client
            && !client.state().is_terminated()
        {
            return Ok((client.clone(), *interruptions));
        }
        if pause.is_some_and(|pause| clock::now() < pause) {
            return Err(unavailable("the connection was lost again and again, and is not made for a while"));
        }
        let new = self.shared.access.connect(&self.shared.servers, self.session_timeout).await?;
        *client = Some((new.clone(), new.state_watcher()));
        tokio::spawn(watch_over(Arc::downgrade(&self.shared), new.state_watcher()));
        Ok((new, *interruptions))
    }

    /// Returns the path of a key's node.
    pub fn path(&self, key: &str) -> String {
        format!("{}/{}", self.shared.base, name::encode(key))
    }

    /// Checks that a request with paths and values of this size is not too large. The servers'
    /// addresses may end with a path, which the client puts before each other one.
    pub fn fits(&self, size: usize) -> Result<(), String> {
        access::fits(size + 3 * self.shared.servers.len() + self.shared.access.size())
    }

    /// Awaits a call, connecting included, and gives up on it after the request timeout.
    pub async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        resume::bounded(self.request_timeout, call, |error| error).await
    }
}

/// Gives up a session whose connection breaks again and again.
async fn watch_over(shared: Weak<Shared>, mut states: StateWatcher) {
    let mut state = SessionState::SyncConnected;
    while !state.is_terminated() {
        let broken = state == SessionState::SyncConnected;
        state = states.changed().await;
        let Some(shared) = shared.upgrade() else { return };
        let mut current = shared.current.lock().await;
        if broken && let Some(pause) = current.breaks.next_pause() {
            current.client = None;
            current.interruptions += 1;
            current.pause = Some(clock::now() + pause);
            return;
        }
    }
}
