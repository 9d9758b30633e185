//! The task of a candidate: it keeps a session, takes part, and does what it is told.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{sync::oneshot, time::sleep};

use super::{
    candidate::prefix,
    session::{Etcd, Lost, Session},
};
use crate::{
    clock::Moment,
    election::{
        ElectionError, Leadership,
        candidate::{Order, Orders},
        publisher::Office,
    },
    reconnect::Reconnect,
    store::{Event, Store, unavailable},
};

pub(super) struct Campaign {
    pub etcd: Etcd,
    pub office: Office,
    pub election: String,
    pub contest: Contest,
    pub value: Vec<u8>,
    pub ttl: Duration,
    pub session: Option<Session>,
    /// Told to keep out.
    pub evicted: bool,
    /// Resigned where the fastest wins, and therefore keeps out until then.
    pub rest: Option<Moment>,
}

/// What decides who leads.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Contest {
    /// The oldest of all keys under the election's prefix.
    Queue,
    /// Who creates the key of the election's name.
    Key,
}

pub(super) enum Command {
    Resign(oneshot::Sender<Result<(), ElectionError>>),
    Evict(bool, oneshot::Sender<Result<(), ElectionError>>),
}

impl Campaign {
    pub async fn run(mut self, mut orders: Orders<Command>) {
        loop {
            let order = tokio::select! {
                biased;
                order = orders.next() => Some(order),
                lost = self.serve() => {
                    if let Lost::Lease = lost {
                        self.session = None;
                    }
                    None
                }
            };
            // Before anything is told to etcd.
            self.office.set(Leadership::Unknown);
            match order {
                // What can't be told ends with the session.
                None => drop(self.withdraw().await),
                Some(Order::Command(Command::Resign(answer))) => {
                    if self.contest == Contest::Key {
                        self.rest = Some(Moment::now() + 2 * self.ttl);
                    }
                    // Nobody has to wait for it.
                    let _ = answer.send(self.withdraw().await);
                }
                Some(Order::Command(Command::Evict(evicted, answer))) => {
                    self.evicted = evicted;
                    let _ = answer.send(if evicted { self.withdraw().await } else { Ok(()) });
                }
                Some(Order::Stop) => break,
            }
        }
        if let Some(session) = self.session.take()
            && let Err(error) = session.end().await
        {
            tracing::warn!(election = %self.election, %error, "the session is left to end by itself");
        }
        self.office.set(Leadership::Failed(Arc::new(ElectionError::Closed)));
    }

    /// Gives up what we hold. If that cannot be told, the session is given up with it.
    async fn withdraw(&mut self) -> Result<(), ElectionError> {
        let Some(session) = self.session.take() else { return Ok(()) };
        self.session = session.withdraw().await?;
        Ok(())
    }

    /// Takes part until the key or the session is lost.
    async fn serve(&mut self) -> Lost {
        let mut reconnect = Reconnect::new(format!("etcd election {}", self.election));
        if self.session.is_none() {
            let begin = || Session::begin(self.etcd.clone(), self.office.clone(), &self.election, self.ttl);
            self.session = Some(self.office.insist(&mut reconnect, begin).await);
        }
        let Some(session) = &self.session else { return Lost::Lease };
        tokio::select! {
            lost = session.keep() => lost,
            lost = self.campaign(session, &mut reconnect) => lost,
        }
    }

    /// Looks who leads, after each change.
    async fn campaign(&self, session: &Session, reconnect: &mut Reconnect) -> Lost {
        let office = &self.office;
        let watched = match self.contest {
            Contest::Queue => prefix(&self.election),
            Contest::Key => self.election.clone(),
        };
        let queues = self.contest == Contest::Queue && !self.evicted;
        let key = format!("{watched}{:x}", session.lease).into_bytes();
        if queues {
            office.insist(reconnect, || session.create(&key, &self.value)).await;
        }
        let mut changes = pin!(self.etcd.store.watch(&watched));
        let mut rested = pin!(self.rest.unwrap_or_else(Moment::now).passed());
        let mut rests = self.rest.is_some();
        let mut refused = unavailable("the watch ended");
        let mut listed = false;
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                () = &mut rested, if rests => {
                    rests = false;
                    Some(Ok(Event::Resumed))
                }
                // Of a candidate whose key is not text the watch tells nothing.
                () = sleep(self.ttl), if self.contest == Contest::Queue => Some(Ok(Event::Resumed)),
            };
            match change {
                Some(Ok(Event::Delete { key, version })) if session.is_gone(&key, version.revision()) => {
                    return Lost::Key;
                }
                Some(Ok(Event::Init)) => {
                    if std::mem::replace(&mut listed, true) {
                        office.report(ElectionError::WatchExpired);
                    }
                    continue;
                }
                Some(Ok(Event::InitEntry(_))) => continue,
                Some(Ok(event)) if self.contest == Contest::Queue || concerns(&event, &watched) => {}
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    refused = error;
                    continue;
                }
                None => break,
            }
            if queues && session.holds_nothing() {
                // Somebody else had written our key.
                office.insist(reconnect, || session.create(&key, &self.value)).await;
            }
            let leader = match self.contest {
                Contest::Queue => office.insist(reconnect, || self.etcd.first(&watched)).await,
                Contest::Key if rests || self.evicted => {
                    office.insist(reconnect, || self.etcd.read(watched.as_bytes())).await
                }
                Contest::Key => {
                    let create = || session.create(watched.as_bytes(), &self.value);
                    Some(office.insist(reconnect, create).await)
                }
            };
            match leader {
                Some(leader) if session.is_held(&leader) => session.leads(),
                leader => {
                    let leader = leader.map(|leader| match self.contest {
                        Contest::Queue => leader.info().id.into(),
                        Contest::Key => String::from_utf8_lossy(&leader.value).into(),
                    });
                    office.set(Leadership::Follower { leader });
                }
            }
        }
        // Denied: what was allowed when we started may be allowed again.
        let pause = reconnect.next_delay(&refused);
        office.interrupted(refused);
        sleep(pause).await;
        Lost::Key
    }
}

/// Whether it may change who has the key. A watch of a key tells also of those that it is a prefix of.
fn concerns(event: &Event, key: &str) -> bool {
    event.key().is_none_or(|changed| **changed == *key)
}
