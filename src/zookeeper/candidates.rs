//! The candidates' nodes in ZooKeeper.

use std::{future::Future, sync::Arc, time::Duration};

use zookeeper_client::{Client, CreateMode, Error};

use super::access::{ZookeeperAccess, create_base, store_error};
use crate::store::{StoreError, resume};

/// An election, whatever the session.
#[derive(Clone)]
pub(super) struct Election {
    /// The parent of the candidates' nodes.
    pub base: String,
    /// The texts before the number in a candidate's name.
    pub patterns: Arc<[String]>,
    /// The longest time of each request.
    pub limit: Duration,
}

/// The candidates of one election, as one session sees them.
#[derive(Clone)]
pub(super) struct Candidates {
    pub client: Client,
    /// The path that the client sees as the root; empty unless it is confined to a part of the
    /// tree.
    pub root: String,
    election: Election,
}

/// A candidate's node.
#[derive(Clone)]
pub(super) struct Node {
    pub name: String,
    pub czxid: i64,
}

impl Election {
    pub fn on(&self, client: Client) -> Candidates {
        let root = client.path().trim_end_matches('/').to_owned();
        Candidates { client, root, election: self.clone() }
    }
}

impl Candidates {
    /// Returns the parent of the candidates' nodes.
    pub fn base(&self) -> &str {
        &self.election.base
    }

    /// Returns the longest time of each request.
    pub fn limit(&self) -> Duration {
        self.election.limit
    }

    /// Lists the candidates' names, the leader first.
    pub async fn list(&self) -> Result<Vec<String>, StoreError> {
        let names = match self.client.list_children(self.base()).await {
            Ok(names) => names,
            // The first candidate creates the base.
            Err(Error::NoNode) => Vec::new(),
            Err(error) => return Err(store_error(error)),
        };
        let numbered =
            names.into_iter().filter_map(|name| Some((number(&self.election.patterns, &name)?, name)));
        let mut candidates: Vec<_> = numbered.collect();
        candidates.sort_unstable();
        Ok(candidates.into_iter().map(|(_, name)| name).collect())
    }

    /// Reads a candidate's identity; `None` if its node is gone.
    pub async fn identity_of(&self, name: &str) -> Result<Option<String>, StoreError> {
        match self.client.get_data(&self.path(name)).await {
            Ok((identity, _)) => Ok(Some(String::from_utf8_lossy(&identity).into_owned())),
            Err(Error::NoNode) => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Reads the identity of the leader; `None` if there is no candidate.
    pub async fn leader(&self) -> Result<Option<String>, StoreError> {
        self.client.sync(self.base()).await.map_err(store_error)?;
        loop {
            let candidates = self.list().await?;
            let Some(first) = candidates.first() else { return Ok(None) };
            if let Some(identity) = self.identity_of(first).await? {
                return Ok(Some(identity));
            }
        }
    }

    /// Returns whether two candidates are still there.
    pub async fn have_both(&self, one: &str, other: &str) -> Result<bool, StoreError> {
        let (one, other) = (self.path(one), self.path(other));
        let (one, other) = (self.client.check_stat(&one), self.client.check_stat(&other));
        Ok(one.await.map_err(store_error)?.is_some() && other.await.map_err(store_error)?.is_some())
    }

    /// Creates a candidate's node, and the base if it is missing.
    pub async fn create(
        &self,
        prefix: &str,
        identity: &[u8],
        access: &ZookeeperAccess,
    ) -> Result<Node, StoreError> {
        let path = self.path(prefix);
        let options = access.options(CreateMode::EphemeralSequential);
        loop {
            match self.client.create(&path, identity, &options).await {
                Ok((stat, number)) => {
                    return Ok(Node { name: format!("{prefix}{number}"), czxid: stat.czxid });
                }
                Err(Error::NoNode) => {
                    let options = access.options(CreateMode::Persistent);
                    create_base(&self.client, self.base(), &options).await?;
                }
                Err(error) => return Err(store_error(error)),
            }
        }
    }

    /// Finds the node with this prefix that belongs to the client's session.
    pub async fn find(&self, prefix: &str) -> Result<Option<Node>, StoreError> {
        // The client may be connected to another server by now, which may lag behind.
        self.client.sync(self.base()).await.map_err(store_error)?;
        let session = self.client.session_id().0;
        for name in self.list().await?.into_iter().filter(|name| name.starts_with(prefix)) {
            let stat = self.client.check_stat(&self.path(&name)).await.map_err(store_error)?;
            // Other clients can read the prefix, and could name a node like that.
            if let Some(stat) = stat.filter(|stat| stat.ephemeral_owner == session) {
                return Ok(Some(Node { name, czxid: stat.czxid }));
            }
        }
        Ok(None)
    }

    /// Deletes a node, which may be gone already.
    pub async fn delete(&self, node: &Node) -> Result<(), StoreError> {
        match self.client.delete(&self.path(&node.name), None).await {
            Ok(()) | Err(Error::NoNode) => Ok(()),
            Err(error) => Err(store_error(error)),
        }
    }

    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.base())
    }

    /// Gives up on a request after the limit.
    pub async fn bounded<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        resume::bounded(self.limit(), request, |error| error).await
    }
}

/// Reads a candidate's number, which follows one of the patterns in its name; `None` for other
/// nodes.
pub(crate) fn number(patterns: &[String], name: &str) -> Option<i32> {
    let after = |pattern: &String| name.rsplit_once(pattern.as_str()).map(|(_, number)| number);
    // After the greatest number ZooKeeper continues with the least, which has a sign.
    let mut numbers = patterns.iter().filter_map(after).filter(|number| !number.starts_with('+'));
    numbers.find_map(|number| number.parse().ok())
}
