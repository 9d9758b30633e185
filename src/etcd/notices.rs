//! Events for readers that may be slow, for a bounded time.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::sync::mpsc::{Sender, error::SendTimeoutError};

use super::{
    candidate::LeaderInfo,
    session::{Etcd, Holder},
};
use crate::election::{ElectionError, Event, publisher::Office};

/// How the leadership changed; see [`EtcdElector::leader_notices`](super::EtcdElector::leader_notices).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaderNotice {
    /// We became leader.
    BecameLeader,
    /// We are the leader no more.
    Retired,
    /// Somebody else became leader.
    NewLeader(LeaderInfo),
}

pub(super) async fn tell_leaders(
    office: Office,
    etcd: Etcd,
    prefix: String,
    block_time: Duration,
    notices: Sender<LeaderNotice>,
) {
    let mut events = office.events();
    while let Some(event) = next(&mut events, &notices).await {
        let notice = match event {
            Event::Elected { .. } => LeaderNotice::BecameLeader,
            Event::Retired { .. } => LeaderNotice::Retired,
            Event::NewLeader { leader } => {
                let candidates = etcd.list(&prefix).await.unwrap_or_default();
                let known = candidates.iter().map(Holder::info).find(|candidate| *candidate.id == *leader);
                // Gone since; the event still tells who it was.
                let gone =
                    || LeaderInfo { key: String::new(), id: leader.to_string(), address: String::new() };
                LeaderNotice::NewLeader(known.unwrap_or_else(gone))
            }
            Event::Interrupted(_) | Event::Failed(_) => continue,
        };
        if let Err(SendTimeoutError::Timeout(_)) = notices.send_timeout(notice, block_time).await {
            office.report(ElectionError::Blocked(block_time));
        }
    }
}

pub(super) async fn tell_errors(office: Office, block_time: Duration, notices: Sender<Arc<ElectionError>>) {
    let mut events = office.events();
    while let Some(event) = next(&mut events, &notices).await {
        if let Event::Interrupted(error) | Event::Failed(error) = event {
            // One that is not wanted must not hold up the others.
            let _ = notices.send_timeout(error, block_time).await;
        }
    }
}

/// The next event, or `None` if nobody listens any more.
async fn next<T>(
    events: &mut (impl futures_util::Stream<Item = Event> + Unpin),
    notices: &Sender<T>,
) -> Option<Event> {
    tokio::select! {
        () = notices.closed() => None,
        event = events.next() => event,
    }
}
