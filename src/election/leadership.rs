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

/// The leadership, as a candidate knows it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Leadership {
    /// Nothing is known: the election has not begun, the connection is lost, or the leader's time
    /// ran out before a renewal was confirmed.
    Unknown,
    /// This candidate leads.
    Leader {
        /// The fence for the leader's writes; it has the token.
        fence: Fence,
        /// The end of the leadership, unless it is renewed. After that time this state has no
        /// meaning: [`is_leader`](Self::is_leader) looks at the clock.
        until: Moment,
    },
    /// Another candidate leads, or none does yet.
    Follower {
        /// The leader's identity, if it is known.
        leader: Option<Arc<str>>,
    },
    /// The elector has ended, closed or broken. This is the last state.
    Failed(Arc<ElectionError>),
}

/// An event of a candidate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// This candidate leads from now on.
    Elected {
        /// The number of this term of leadership.
        token: u64,
    },
    /// This candidate leads no more: it resigned, was deposed, or its time ran out.
    Retired {
        /// The number of the term of leadership that is over.
        token: u64,
    },
    /// Another candidate leads.
    NewLeader {
        /// The leader's identity.
        leader: Arc<str>,
    },
    /// The connection is interrupted, and the elector retries. An interruption has one such event,
    /// and another when an error of another kind takes the place of the first, such as a wrong
    /// password once the server is reachable again.
    Interrupted(Arc<ElectionError>),
    /// The elector has ended. This is the last event.
    Failed(Arc<ElectionError>),
}

/// The events of an elector; see [`Elector::events`](super::Elector::events).
#[derive(Debug)]
pub struct Events(UnboundedReceiver<Event>);

impl Leadership {
    /// Returns whether the candidate leads at this moment, by its own clock.
    pub fn is_leader(&self) -> bool {
        self.fence().is_some()
    }

    /// Returns the fence for a write that is sent now; `None` unless the candidate leads.
    pub fn fence(&self) -> Option<&Fence> {
        match self {
            Self::Leader { fence, until } if !until.has_passed() => Some(fence),
            _ => None,
        }
    }
}

/// The events of a user's own elector.
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
