use std::time::Duration;

use crate::{engine::config::ConfigError, store::StoreError};

/// An error of an election.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElectionError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The election has no leader at present.
    #[error("the election {election:?} has no leader")]
    NoLeader {
        /// The election's name.
        election: String,
    },
    /// The same thing exists already.
    #[error("{what} exists already")]
    AlreadyExists {
        /// The existing thing.
        what: String,
    },
    /// The thing does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// The missing thing.
        what: String,
    },
    /// A watch could not continue where it was, and started again.
    #[error("the server no longer has the changes that the watch missed, so the watch started again")]
    WatchExpired,
    /// The session has expired, and the elector has ended with it.
    #[error("the session has expired")]
    SessionExpired,
    /// A notification was dropped because nobody took it in time.
    #[error("nobody took a notification within {0:?}, so it was dropped")]
    Blocked(Duration),
    /// The elector was closed.
    #[error("the elector was closed")]
    Closed,
    /// The elector's task is gone: it panicked, or its runtime was shut down.
    #[error("the elector's task died")]
    Died,
    /// The server refused, or did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ElectionError {
    /// Returns whether the same thing exists already.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists { .. })
    }

    /// Returns whether the thing, or a leader, does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::NoLeader { .. })
    }

    /// Returns whether a watch could not continue because the server no longer has the changes that
    /// it missed (etcd compacts them). The elector has started the watch again.
    pub fn is_watch_expired(&self) -> bool {
        matches!(self, Self::WatchExpired)
    }

    /// Returns whether the elector was closed on purpose.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Closed)
    }
}
