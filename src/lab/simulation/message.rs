//! Messages between processes and the store, and the types of the simulated objects.

use super::plan::Versions;
use crate::{
    engine::Timestamp,
    object::{Change, Desired, Types, Version},
};

/// One life of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessId {
    /// The replica's index in the plan.
    pub replica: usize,
    /// Counts the starts and ends of the replica.
    pub incarnation: u32,
}

/// The value of a key: the round that its last writer wanted, for that writer's group. Edits of
/// others leave it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub round: u64,
    pub group: u8,
}

/// The version of a write: its position among all writes of the store. Processes may not see that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Revision {
    pub position: u64,
    pub versions: Versions,
}

/// A key as the store has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// `None` if the key does not exist.
    pub content: Option<Content>,
    /// The revision of the last write or deletion; zero if there was none.
    pub revision: Revision,
}

/// The types of simulated objects.
#[derive(Debug, PartialEq)]
pub(super) enum Simulated {}

/// A request to the store that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub process: ProcessId,
    pub key: usize,
    /// Names the call.
    pub serial: u64,
}

/// A write on its way to the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub content: Content,
    /// `None` if the key must not exist.
    pub expected: Option<Revision>,
    /// The fence of the leadership in which the attempt began, if elections are held.
    pub fence: Option<u64>,
}

/// The store's answer to a write: the revision, or why it did nothing.
pub(super) type WriteResult = Result<Revision, Refusal>;

#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    /// The key has another version.
    Conflict,
    /// Another replica is elected.
    Fenced,
    /// The store gives no answer.
    Unavailable,
    /// The store denies the write for good.
    Denied,
}

/// The wish of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wish {
    pub content: Content,
    /// It is not content with that either, only with what is newer.
    pub restless: bool,
}

/// A change on its way from the store to one process.
#[derive(Clone, Copy, Debug)]
pub(super) struct News {
    pub key: usize,
    pub stored: Stored,
    pub listing: bool,
    /// The watch that carries it. A process takes in news of its current watch only.
    pub watch: u32,
}

impl Content {
    /// Returns whether this fulfils a request of a group for a round.
    pub fn reaches(self, group: u8, round: u64) -> bool {
        self.group == group && self.round >= round
    }
}

impl Stored {
    /// The round that the key is at; zero if it does not exist.
    pub fn round(self) -> u64 {
        self.content.map_or(0, |content| content.round)
    }

    pub fn entry(self) -> Option<(Content, Revision)> {
        self.content.map(|content| (content, self.revision))
    }
}

impl News {
    pub fn change(self, arrived: Timestamp) -> Change<Simulated> {
        match self.listing {
            true => Change::listed(self.stored.entry(), arrived),
            false => Change::new(self.stored.content, self.stored.revision, arrived),
        }
    }
}

impl Types for Simulated {
    type Value = Content;
    type Version = Revision;
    type Wish = Wish;
    type Waiter = ();
    type Reason = ();

    fn evaluate(wish: &Wish, current: Option<&Content>) -> Desired<Content> {
        let Wish { content, restless } = *wish;
        let round = content.round + u64::from(restless);
        match current {
            Some(current) if current.reaches(content.group, round) => Desired::Right,
            _ => Desired::Write(content),
        }
    }
}

impl Version for Revision {
    fn revision(&self) -> Option<u64> {
        (self.versions == Versions::Ordered).then_some(self.position)
    }

    fn key_revision(&self) -> Option<u64> {
        (self.versions != Versions::Unordered).then_some(self.position)
    }
}
