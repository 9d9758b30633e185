//! The node that counts deletions. As long as its data version lasts, no key was deleted.
//!
//! Its name is random and its first data version is 1, so that a state of it never comes back: a
//! node that somebody creates in its place has another name, and a copy has the data version 0.

use std::{cmp::Reverse, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use zookeeper_client::{Client, CreateMode, Error, MultiWriteError, Stat};

use super::{
    access::{create_base, random_name, store_error},
    session::Session,
};
use crate::store::StoreError;

/// A state of the node.
#[derive(Clone)]
pub(super) struct Deletions {
    pub path: Arc<str>,
    pub version: i32,
    /// In this state no key was deleted since this zxid.
    pub since: i64,
}

/// The knowledge that a store has of the node.
#[derive(Default)]
pub(super) struct Known {
    /// A caller that looks for the node holds the lock, so that the others wait for its result.
    path: AsyncMutex<Option<Arc<str>>>,
    state: Mutex<Option<(u64, Deletions)>>,
}

impl Known {
    /// Returns the node's path.
    pub async fn path(&self, session: &Session, client: &Client) -> Result<Arc<str>, StoreError> {
        let mut known = self.path.lock().await;
        if let Some(path) = &*known {
            return Ok(path.clone());
        }
        let path = find(session, client).await?;
        *known = Some(path.clone());
        Ok(path)
    }

    /// Forgets a path at which the node no longer is.
    pub async fn lost(&self, path: &str) {
        let mut known = self.path.lock().await;
        if known.as_deref() == Some(path) {
            *known = None;
        }
    }

    /// Returns the newest state that was seen since the last of these interruptions.
    pub fn state(&self, interruptions: u64) -> Option<Deletions> {
        self.state.lock().clone().filter(|(seen, _)| *seen == interruptions).map(|(_, state)| state)
    }

    /// Remembers a state, unless a newer one is known.
    pub fn saw(&self, interruptions: u64, seen: Deletions) {
        let mut known = self.state.lock();
        let order =
            |interruptions: u64, state: &Deletions| (interruptions, state.version, Reverse(state.since));
        let is_newer = known.as_ref().is_none_or(|(before, known)| {
            known.path != seen.path || order(interruptions, &seen) > order(*before, known)
        });
        if is_newer {
            *known = Some((interruptions, seen));
        }
    }

    /// Forgets a state that does not hold any more.
    pub fn forget(&self) {
        *self.state.lock() = None;
    }
}

/// Finds the node, and creates it if there is none.
async fn find(session: &Session, client: &Client) -> Result<Arc<str>, StoreError> {
    loop {
        // The server of this connection may lag behind those of other stores.
        client.sync(session.base()).await.map_err(store_error)?;
        let names = match client.list_children(session.base()).await {
            Ok(names) => names,
            Err(Error::NoNode) => Vec::new(),
            Err(error) => return Err(store_error(error)),
        };
        let mut oldest = None;
        for name in names.iter().filter(|name| name.starts_with(PREFIX)) {
            let path = format!("{}/{name}", session.base());
            let stat = client.check_stat(&path).await.map_err(store_error)?.filter(is_original);
            // Two stores may have created one each. All choose the first.
            if let Some(stat) = stat
                && oldest.as_ref().is_none_or(|(czxid, _)| stat.czxid < *czxid)
            {
                oldest = Some((stat.czxid, path));
            }
        }
        match oldest {
            Some((_, path)) => return Ok(path.into()),
            None => create(session, client).await?,
        }
    }
}

/// Returns whether the node is no copy that another program made.
pub(super) fn is_original(stat: &Stat) -> bool {
    stat.version > 0
}

/// Creates the node, and the base path if it is missing. It begins with the node, because a user
/// may lack the right to create below the parent of the base.
async fn create(session: &Session, client: &Client) -> Result<(), StoreError> {
    let options = session.access().options(CreateMode::Persistent);
    let path = format!("{}/{PREFIX}{}", session.base(), random_name());
    let mut writer = client.new_multi_writer();
    let added =
        writer.add_create(&path, b"", &options).and_then(|()| writer.add_set_data(&path, b"", Some(0)));
    added.map_err(store_error)?;
    match writer.commit().await {
        Ok(_) => Ok(()),
        Err(MultiWriteError::OperationFailed { source: Error::NoNode, .. }) => {
            create_base(client, session.base(), &options).await
        }
        Err(error) => Err(store_error(error.into())),
    }
}

/// The begin of the node's name. No key is encoded to such a name.
const PREFIX: &str = "%deletions-";
/// The length of the node's name.
pub(super) const NAME_LENGTH: usize = PREFIX.len() + 32;
