//! The session that a store and its watches share.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::Mutex;
use zookeeper_client::Client;

use super::{access::ZookeeperAccess, name};
use crate::store::{StoreError, resume};

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
    /// `None` before the first call. A caller that connects holds the lock, so that the others wait
    /// for its session.
    client: Mutex<Option<Client>>,
}

impl Session {
    pub fn new(servers: &str, base: &str, access: ZookeeperAccess) -> Self {
        let (servers, base) = (servers.to_owned(), base.to_owned());
        Self {
            shared: Arc::new(Shared { servers, base, access, client: Mutex::default() }),
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
        let mut current = self.shared.client.lock().await;
        if let Some(client) = &*current
            && !client.state().is_terminated()
        {
            return Ok(client.clone());
        }
        let client = self.shared.access.connect(&self.shared.servers, self.session_timeout).await?;
        *current = Some(client.clone());
        Ok(client)
    }

    /// Returns the path of a key's node.
    pub fn path(&self, key: &str) -> String {
        format!("{}/{}", self.shared.base, name::encode(key))
    }

    /// Awaits a call, connecting included, and gives up on it after the request timeout.
    pub async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        resume::bounded(self.request_timeout, call, |error| error).await
    }
}
