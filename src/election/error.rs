use std::time::Duration;

use crate::{engine::config::ConfigError, store::StoreError};

/// What can go wrong with an election.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElectionError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nobody leads at present.
    #[error("the election {election:?} has no leader")]
    NoLeader {
        /// The election.
        election: String,
    },
    /// There is another one already.
    #[error("{what} exists already")]
    AlreadyExists {
        /// What does.
        what: String,
    },
    /// There is none.
    #[error("{what} does not exist")]
    NotFound {
        /// What does not.
        what: String,
    },
    /// A watch could not go on where it was.
    #[error("what the watch missed is gone from the engine, so it was started anew")]
    WatchExpired,
    /// The session has ended, and with it this elector.
    #[error("the session has expired")]
    SessionExpired,
    /// Nobody took a notification in time, so it was left out.
    #[error("a notification was not taken within {0:?}")]
    Blocked(Duration),
    /// The elector was closed.
    #[error("the elector was closed")]
    Closed,
    /// The elector's task is gone, with its runtime or by a panic.
    #[error("the elector's task died")]
    Died,
    /// The engine.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ElectionError {
    /// Whether there is another one already.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists { .. })
    }

    /// Whether there is none.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::NoLeader { .. })
    }

    /// Whether a watch cannot go on where it was, because what it missed is gone from the engine (etcd's compaction). The
    /// elector has started it anew by itself.
    pub fn is_watch_expired(&self) -> bool {
        matches!(self, Self::WatchExpired)
    }

    /// Whether the call or the elector was ended on purpose.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Closed)
    }
}
