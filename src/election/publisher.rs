//! What is known of the leadership, told to whoever wants to know, and ended by the clock.

use std::{
    ops::RangeInclusive,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{
    mpsc::{self, UnboundedSender},
    watch,
};

use super::{
    error::ElectionError,
    leadership::{Event, Events, Leadership},
};
use crate::{clock::Moment, engine::config::ConfigError, store::Fence};
#[cfg(any(feature = "etcd", feature = "zookeeper"))]
use crate::{reconnect::Reconnect, store::StoreError};

/// The state of one candidate. Clones are handles to the same.
#[derive(Clone, Debug)]
pub(crate) struct Office(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Names the candidate in the log.
    what: String,
    state: watch::Sender<Leadership>,
    /// Locked while the state changes, so that the events are in the order of the states.
    readers: Mutex<Readers>,
}

#[derive(Debug, Default)]
struct Readers {
    senders: Vec<UnboundedSender<Event>>,
    /// They were told of the interruption, and nothing good has happened since.
    interrupted: bool,
}

impl Readers {
    fn tell(&mut self, events: &[Event]) {
        self.senders.retain(|reader| events.iter().all(|event| reader.send(event.clone()).is_ok()));
    }
}

impl Office {
    /// Must be called within a runtime: a task sees to it that the leadership ends in time, whatever else hangs.
    pub fn new(what: impl Into<String>) -> Self {
        let inner = Arc::new(Inner {
            what: what.into(),
            state: watch::Sender::new(Leadership::Unknown),
            readers: Mutex::default(),
        });
        tokio::spawn(watch_over(Arc::downgrade(&inner), inner.state.subscribe()));
        Self(inner)
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.state.subscribe()
    }

    pub fn events(&self) -> Events {
        let (sender, events) = mpsc::unbounded_channel();
        let mut readers = self.0.readers.lock();
        let state = self.0.state.borrow().clone();
        for event in changes(&Leadership::Unknown, &state) {
            // The other end is in our hands.
            let _ = sender.send(event);
        }
        if !matches!(state, Leadership::Failed(_)) {
            readers.senders.push(sender);
        }
        events.into()
    }

    /// We lead, or go on leading, until then; if that has passed meanwhile, nothing is known.
    pub fn lead(&self, fence: Fence, until: Moment) {
        if until.has_passed() {
            return self.set(Leadership::Unknown);
        }
        self.set(Leadership::Leader { fence, until });
    }

    /// After the elector has ended this does nothing.
    pub fn set(&self, next: Leadership) {
        self.0.update(|_| Some(next));
    }

    /// Something went wrong. A follower knows nothing more; a leader leads until its time is up.
    pub fn interrupted(&self, error: impl Into<ElectionError>) {
        self.0.update(|state| matches!(state, Leadership::Follower { .. }).then_some(Leadership::Unknown));
        let mut readers = self.0.readers.lock();
        if !std::mem::replace(&mut readers.interrupted, true) {
            readers.tell(&[Event::Interrupted(Arc::new(error.into()))]);
        }
    }

    /// Repeats a request until it is answered, with growing pauses.
    #[cfg(any(feature = "etcd", feature = "zookeeper"))]
    pub async fn insist<T, F: std::future::Future<Output = Result<T, StoreError>>>(
        &self,
        reconnect: &mut Reconnect,
        mut request: impl FnMut() -> F,
    ) -> T {
        loop {
            match request().await {
                Ok(answer) => {
                    reconnect.connected();
                    return answer;
                }
                Err(error) => {
                    let pause = reconnect.next_delay(&error);
                    self.interrupted(error);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Something went wrong that has nothing to do with the election.
    #[cfg(feature = "etcd")]
    pub fn report(&self, error: ElectionError) {
        self.0.readers.lock().tell(&[Event::Interrupted(Arc::new(error))]);
    }

    /// Why calls are of no use any more, when the elector has ended.
    pub async fn end(&self) -> ElectionError {
        self.ended().await;
        match &*self.0.state.borrow() {
            Leadership::Failed(error) if matches!(**error, ElectionError::Died) => ElectionError::Died,
            _ => ElectionError::Closed,
        }
    }

    /// Returns when the elector has ended.
    pub async fn ended(&self) {
        let mut state = self.leadership();
        // The sender lives as long as we do.
        let _ = state.wait_for(|state| matches!(state, Leadership::Failed(_))).await;
    }
}

impl Inner {
    fn update(&self, next: impl FnOnce(&Leadership) -> Option<Leadership>) {
        let mut readers = self.readers.lock();
        let before = self.state.borrow().clone();
        if matches!(before, Leadership::Failed(_)) {
            return;
        }
        let Some(next) = next(&before) else { return };
        let events = changes(&before, &next);
        for event in &events {
            tracing::info!(candidate = %self.what, ?event, "the leadership changed");
        }
        let failed = matches!(next, Leadership::Failed(_));
        readers.interrupted &= matches!(next, Leadership::Unknown);
        self.state.send_replace(next);
        readers.tell(&events);
        if failed {
            readers.senders.clear();
        }
    }
}

/// Ends each leadership when its time is up.
async fn watch_over(office: Weak<Inner>, mut state: watch::Receiver<Leadership>) {
    loop {
        let until = match &*state.borrow_and_update() {
            Leadership::Leader { until, .. } => Some(*until),
            _ => None,
        };
        let time_is_up = async {
            match until {
                Some(until) => until.passed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = time_is_up => {
                let Some(office) = office.upgrade() else { return };
                office.update(|state| match state {
                    Leadership::Leader { until, .. } if until.has_passed() => Some(Leadership::Unknown),
                    _ => None,
                });
            }
        }
    }
}

/// What readers of events are told.
fn changes(before: &Leadership, next: &Leadership) -> Vec<Event> {
    let token = |state: &Leadership| match state {
        Leadership::Leader { fence, .. } => Some(fence.token()),
        _ => None,
    };
    let mut events = Vec::new();
    if let Some(token) = token(before).filter(|old| token(next) != Some(*old)) {
        events.push(Event::Retired { token });
    }
    match next {
        Leadership::Leader { fence, .. } if token(before) != token(next) => {
            events.push(Event::Elected { token: fence.token() });
        }
        Leadership::Follower { leader: Some(leader) } if !matches!(before, Leadership::Follower { leader: Some(known) } if known == leader) =>
        {
            events.push(Event::NewLeader { leader: leader.clone() });
        }
        Leadership::Failed(error) => events.push(Event::Failed(error.clone())),
        _ => {}
    }
    events
}

/// Until when we may believe what the engine confirmed to a request that was sent at `sent`: clocks may differ by two in a
/// hundred.
pub(crate) fn deadline(sent: Moment, ttl: Duration) -> Moment {
    sent + (ttl - ttl / 50)
}

/// Whether a time is one that the engine can wait for.
pub(crate) fn check_time(
    field: &'static str,
    time: Duration,
    limits: RangeInclusive<Duration>,
) -> Result<(), ConfigError> {
    let rule = match time {
        short if short < *limits.start() => format!("at least {:?}", limits.start()),
        long if long > *limits.end() => format!("at most {:?}", limits.end()),
        _ => return Ok(()),
    };
    Err(ConfigError::new(field, time, rule))
}

/// Of a request, or of connecting.
pub(crate) fn check_timeout(field: &'static str, timeout: Duration) -> Result<(), ConfigError> {
    if timeout.is_zero() { Err(ConfigError::new(field, timeout, "longer than zero")) } else { Ok(()) }
}

/// A year. Engines refuse more sooner or later, and clocks can't show all of it.
#[cfg(any(feature = "etcd", feature = "redis"))]
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;
    use crate::clock;

    fn fence(token: u64) -> Fence {
        Fence::new("test", "election", token)
    }

    async fn told(office: &Office) -> Vec<String> {
        let events = office.events();
        office.set(Leadership::Failed(Arc::new(ElectionError::Closed)));
        events.map(|event| format!("{event:?}")).collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_leadership_ends_by_the_clock_and_not_before() {
        let office = Office::new("test");
        let mut state = office.leadership();
        let started = Moment::now();
        office.lead(fence(1), started + Duration::from_secs(10));
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(state.borrow().is_leader());
        office.lead(fence(1), started + Duration::from_secs(19));
        let ended = state.wait_for(|state| matches!(state, Leadership::Unknown)).await.map(drop);
        assert!(ended.is_ok());
        assert_eq!((Moment::now() - started).as_secs(), 19);
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_that_was_read_before_its_time_was_up_counts_for_nothing_afterwards() {
        let office = Office::new("test");
        office.lead(fence(1), Moment::now() + Duration::from_secs(10));
        let state = office.leadership().borrow().clone();
        assert_eq!(state.fence(), Some(&fence(1)));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!state.is_leader());
        // A confirmation that comes too late is none.
        office.lead(fence(1), Moment::now());
        assert!(matches!(*office.leadership().borrow(), Leadership::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_slept_through_its_time_is_none_at_once_and_is_told_so_within_a_second() {
        let office = Office::new("test");
        let mut state = office.leadership();
        let sent = Moment::now();
        let until = deadline(sent, Duration::from_secs(100));
        office.lead(fence(1), until);
        tokio::time::sleep(Duration::from_secs(1)).await;
        clock::tests::suspend(Duration::from_secs(96));
        assert!(state.borrow_and_update().is_leader());
        clock::tests::suspend(Duration::from_secs(1));
        assert_eq!(state.borrow_and_update().fence(), None);
        // Nor does the answer to a request from before help.
        office.lead(fence(1), until);
        assert!(matches!(*state.borrow_and_update(), Leadership::Unknown));

        office.lead(fence(2), Moment::now() + Duration::from_secs(100));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let awake = clock::now();
        clock::tests::suspend(Duration::from_secs(100));
        assert!(state.wait_for(|state| matches!(state, Leadership::Unknown)).await.is_ok());
        assert!(clock::now() - awake <= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_told_everything_in_order_and_a_late_one_the_state_of_now() {
        let office = Office::new("test");
        let events = office.events();
        let later = || Moment::now() + Duration::from_secs(10);
        office.set(Leadership::Follower { leader: None });
        office.set(Leadership::Follower { leader: Some("a".into()) });
        office.set(Leadership::Follower { leader: Some("a".into()) });
        office.lead(fence(1), later());
        office.lead(fence(1), later());
        office.lead(fence(2), later());
        assert_eq!(told(&office).await, ["Elected { token: 2 }", "Retired { token: 2 }", "Failed(Closed)"]);
        office.lead(fence(3), later());
        assert_eq!(told(&office).await, ["Failed(Closed)"]);
        let events: Vec<_> = events.map(|event| format!("{event:?}")).collect().await;
        let expected = [
            "NewLeader { leader: \"a\" }",
            "Elected { token: 1 }",
            "Retired { token: 1 }",
            "Elected { token: 2 }",
            "Retired { token: 2 }",
            "Failed(Closed)",
        ];
        assert_eq!(events, expected);
    }
}
