//! Leadership and its changes, as a candidate knows them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use tokio::sync::mpsc::UnboundedReceiver;

use super::error::ElectionError;
use crate::{clock::Moment, store::Fence};

/// What a candidate knows of the leadership.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Leadership {
    /// Nothing is known: the election has not begun, the connection is lost, or our time ran out before a renewal was
    /// confirmed.
    Unknown,
    /// We lead.
    Leader {
        /// What our writes should carry; it has the token.
        fence: Fence,
        /// Until when, unless it is renewed. A state with a time that has passed counts for nothing:
        /// [`is_leader`](Self::is_leader) looks at the clock.
        until: Moment,
    },
    /// Somebody else leads, or nobody does yet.
    Follower {
        /// Who, if that is known.
        leader: Option<Arc<str>>,
    },
    /// The elector has ended, closed or broken, and nothing more will come.
    Failed(Arc<ElectionError>),
}

/// What happens to a candidate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// We lead from now on.
    Elected {
        /// The number of this reign.
        token: u64,
    },
    /// We lead no more: we resigned, were deposed, or our time ran out.
    Retired {
        /// The number of the reign that is over.
        token: u64,
    },
    /// Somebody else leads.
    NewLeader {
        /// Who.
        leader: Arc<str>,
    },
    /// Something went wrong; the elector goes on trying. It is told once per interruption.
    Interrupted(Arc<ElectionError>),
    /// The elector has ended. Nothing comes after this.
    Failed(Arc<ElectionError>),
}

/// The events of an elector; see [`Elector::events`](super::Elector::events).
#[derive(Debug)]
pub struct Events(UnboundedReceiver<Event>);

impl Leadership {
    /// Whether we lead at this moment, by our own clock.
    pub fn is_leader(&self) -> bool {
        self.fence().is_some()
    }

    /// The fence for a write that is to be sent now; `None` unless we lead.
    pub fn fence(&self) -> Option<&Fence> {
        match self {
            Self::Leader { fence, until } if !until.has_passed() => Some(fence),
            _ => None,
        }
    }
}

/// For electors of one's own.
impl From<UnboundedReceiver<Event>> for Events {
    fn from(events: UnboundedReceiver<Event>) -> Self {
        Self(events)
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_recv(context)
    }
}
