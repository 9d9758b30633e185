//! The state of a candidate: published to its readers, and ended by the clock.

use std::{
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
use crate::{
    clock::Moment,
    store::{Fence, StoreError, causes::Causes},
};

/// Publishes the state of one candidate. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct LeadershipPublisher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The candidate's name in the log.
    name: String,
    /// Never locked while the channel is waited for: a reader that looks at the channel may ask the
    /// elector meanwhile.
    known: Mutex<Known>,
    /// Locked while the channel and the events take in what is known, so that all have the same
    /// order.
    publishing: Mutex<()>,
    channel: watch::Sender<Leadership>,
}

#[derive(Debug)]
struct Known {
    state: Leadership,
    /// The channel has another state.
    unpublished: bool,
    readers: Vec<UnboundedSender<Event>>,
    /// Events that the channel has to precede.
    unsent: Vec<(UnboundedSender<Event>, Event)>,
    /// The causes of the interruption that the readers know; none once something good happened.
    causes: Causes,
}

impl Known {
    fn send(&mut self, event: &Event) {
        self.readers.retain(|reader| !reader.is_closed());
        self.unsent.extend(self.readers.iter().map(|reader| (reader.clone(), event.clone())));
    }
}

impl LeadershipPublisher {
    /// Must be called within a runtime: a task of its own ends the leadership in time, even if the
    /// candidate hangs.
    pub fn new(name: impl Into<String>) -> Self {
        let inner = Arc::new(Inner {
            name: name.into(),
            known: Mutex::new(Known {
                state: Leadership::Unknown,
                unpublished: false,
                readers: Vec::new(),
                unsent: Vec::new(),
                causes: Causes::default(),
            }),
            publishing: Mutex::default(),
            channel: watch::Sender::new(Leadership::Unknown),
        });
        tokio::spawn(expire(Arc::downgrade(&inner), inner.channel.subscribe()));
        Self(inner)
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.channel.subscribe()
    }

    pub fn state(&self) -> Leadership {
        self.0.known.lock().state.clone()
    }

    pub fn events(&self) -> Events {
        let (sender, events) = mpsc::unbounded_channel();
        let mut known = self.0.known.lock();
        for event in changes(&Leadership::Unknown, &known.state) {
            // The receiver is still here.
            let _ = sender.send(event);
        }
        if !matches!(known.state, Leadership::Failed(_)) {
            known.readers.push(sender);
        }
        events.into()
    }

    /// Publishes that the candidate leads until then; nothing is known if that time has passed.
    pub fn lead(&self, fence: Fence, until: Moment) {
        if until.has_passed() {
            return self.set(Leadership::Unknown);
        }
        self.set(Leadership::Leader { fence, until });
    }

    /// Publishes a state, unless the elector has ended.
    pub fn set(&self, next: Leadership) {
        self.0.update(|_| Some(next));
    }

    /// Publishes an interruption, unless the readers know of its cause. A follower loses sight of the
    /// leader; a leader leads until its time is up.
    pub fn interrupted(&self, error: StoreError) {
        self.0.update(|state| matches!(state, Leadership::Follower { .. }).then_some(Leadership::Unknown));
        let mut known = self.0.known.lock();
        if known.causes.is_news(&error) {
            known.send(&Event::Interrupted(Arc::new(error.into())));
        }
        drop(known);
        self.0.publish();
    }

    /// Publishes an error that leaves the election as it is.
    #[cfg(feature = "etcd")]
    pub fn report(&self, error: ElectionError) {
        self.0.known.lock().send(&Event::Interrupted(Arc::new(error)));
        self.0.publish();
    }

    /// Waits for the elector to end, and returns the reason.
    pub async fn end(&self) -> ElectionError {
        self.ended().await;
        match self.state() {
            Leadership::Failed(error) if matches!(*error, ElectionError::Died) => ElectionError::Died,
            _ => ElectionError::Closed,
        }
    }

    /// Waits for the elector to end.
    pub async fn ended(&self) {
        let mut state = self.leadership();
        // This publisher keeps the sender alive.
        let _ = state.wait_for(|state| matches!(state, Leadership::Failed(_))).await;
    }
}

impl Inner {
    fn update(&self, next: impl FnOnce(&Leadership) -> Option<Leadership>) {
        let mut known = self.known.lock();
        if matches!(known.state, Leadership::Failed(_)) {
            return;
        }
        let Some(next) = next(&known.state) else { return };
        let events = changes(&known.state, &next);
        events.iter().for_each(|event| known.send(event));
        if matches!(next, Leadership::Failed(_)) {
            known.readers.clear();
        }
        if !matches!(next, Leadership::Unknown) {
            known.causes.end();
        }
        known.unpublished = true;
        let before = std::mem::replace(&mut known.state, next);
        drop(known);
        drop(before);
        for event in &events {
            tracing::info!(candidate = self.name, ?event, "the leadership changed");
        }
        self.publish();
    }

    /// Passes on what is known: to the channel, then to the readers of events.
    fn publish(&self) {
        let _order = self.publishing.lock();
        let (state, unsent) = {
            let mut known = self.known.lock();
            let state = std::mem::take(&mut known.unpublished).then(|| known.state.clone());
            (state, std::mem::take(&mut known.unsent))
        };
        if let Some(state) = state {
            self.channel.send_replace(state);
        }
        for (reader, event) in unsent {
            // The reader may have gone.
            let _ = reader.send(event);
        }
    }
}

/// Ends each leadership when its time is up.
async fn expire(publisher: Weak<Inner>, mut state: watch::Receiver<Leadership>) {
    loop {
        // Before the look, so that no change is missed.
        state.mark_unchanged();
        let until = match publisher.upgrade().map(|publisher| publisher.known.lock().state.clone()) {
            Some(Leadership::Leader { until, .. }) => Some(until),
            Some(_) => None,
            None => return,
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
                let Some(publisher) = publisher.upgrade() else { return };
                publisher.update(|state| match state {
                    Leadership::Leader { until, .. } if until.has_passed() => Some(Leadership::Unknown),
                    _ => None,
                });
            }
        }
    }
}

/// The events of a change, in order.
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

/// The end of a leadership that a request sent at `sent` has renewed.
///
/// It is a fiftieth of the TTL early, because two clocks may run apart by two in a hundred.
pub(crate) fn believed_until(sent: Moment, ttl: Duration) -> Moment {
    sent + (ttl - ttl / 50)
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;
    use crate::clock;

    fn fence(token: u64) -> Fence {
        Fence::new("test", "election", token)
    }

    async fn events_until_closed(publisher: &LeadershipPublisher) -> Vec<String> {
        let events = publisher.events();
        publisher.set(Leadership::Failed(Arc::new(ElectionError::Closed)));
        events.map(|event| format!("{event:?}")).collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn leaderships_end_by_the_clock_and_not_before() {
        let publisher = LeadershipPublisher::new("test");
        let mut state = publisher.leadership();
        let started = Moment::now();
        publisher.lead(fence(1), started + Duration::from_secs(10));
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(state.borrow().is_leader());
        publisher.lead(fence(1), started + Duration::from_secs(19));
        let ended = state.wait_for(|state| matches!(state, Leadership::Unknown)).await.map(drop);
        assert!(ended.is_ok());
        assert_eq!((Moment::now() - started).as_secs(), 19);
    }

    #[tokio::test(start_paused = true)]
    async fn states_count_for_nothing_after_their_time() {
        let publisher = LeadershipPublisher::new("test");
        publisher.lead(fence(1), Moment::now() + Duration::from_secs(10));
        let state = publisher.leadership().borrow().clone();
        assert_eq!(state.fence(), Some(&fence(1)));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!state.is_leader());
        // A confirmation that comes too late does not count.
        publisher.lead(fence(1), Moment::now());
        assert!(matches!(*publisher.leadership().borrow(), Leadership::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn each_cause_of_an_interruption_is_told() {
        let publisher = LeadershipPublisher::new("test");
        let events = publisher.events();
        let unavailable = || StoreError::Unavailable { reason: "gone".into(), source: None };
        let denied = || StoreError::Denied { reason: "wrong password".into(), source: None };
        for error in [unavailable(), unavailable(), denied(), unavailable(), denied()] {
            publisher.interrupted(error);
        }
        publisher.set(Leadership::Follower { leader: None });
        publisher.interrupted(denied());
        drop(publisher);
        let told: Vec<_> = events.map(|event| format!("{event:?}").contains("Denied")).collect().await;
        assert_eq!(told, [false, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn leaders_that_slept_through_their_time_are_deposed() {
        let publisher = LeadershipPublisher::new("test");
        let mut state = publisher.leadership();
        let sent = Moment::now();
        let until = believed_until(sent, Duration::from_secs(100));
        publisher.lead(fence(1), until);
        tokio::time::sleep(Duration::from_secs(1)).await;
        clock::tests::suspend(Duration::from_secs(96));
        assert!(state.borrow_and_update().is_leader());
        clock::tests::suspend(Duration::from_secs(1));
        assert_eq!(state.borrow_and_update().fence(), None);
        // The answer to a request from before the suspension does not help.
        publisher.lead(fence(1), until);
        assert!(matches!(*state.borrow_and_update(), Leadership::Unknown));

        publisher.lead(fence(2), Moment::now() + Duration::from_secs(100));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let awake = clock::now();
        clock::tests::suspend(Duration::from_secs(100));
        assert!(state.wait_for(|state| matches!(state, Leadership::Unknown)).await.is_ok());
        assert!(clock::now() - awake <= Duration::from_secs(1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn readers_of_the_channel_may_ask_the_elector() {
        let publisher = LeadershipPublisher::new("test");
        let looked = publisher.leadership();
        let until = Moment::now() + Duration::from_secs(3600);
        publisher.lead(fence(1), until);
        let writer = publisher.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let state = looked.borrow();
            let writing = std::thread::spawn(move || writer.lead(fence(2), until));
            // The writer now waits for the borrow to end, or is about to.
            std::thread::sleep(Duration::from_millis(50));
            drop((publisher.state(), publisher.events(), publisher.leadership()));
            assert!(state.is_leader());
            drop(state);
            writing.join().expect("it publishes");
        });
        let asked = tokio::time::timeout(Duration::from_secs(20), asked).await;
        asked.expect("nobody waits for another").expect("the state is right");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_readers_miss_nothing_and_late_ones_start_now() {
        let publisher = LeadershipPublisher::new("test");
        let events = publisher.events();
        let later = || Moment::now() + Duration::from_secs(10);
        publisher.set(Leadership::Follower { leader: None });
        publisher.set(Leadership::Follower { leader: Some("a".into()) });
        publisher.set(Leadership::Follower { leader: Some("a".into()) });
        publisher.lead(fence(1), later());
        publisher.lead(fence(1), later());
        publisher.lead(fence(2), later());
        assert_eq!(
            events_until_closed(&publisher).await,
            ["Elected { token: 2 }", "Retired { token: 2 }", "Failed(Closed)"]
        );
        publisher.lead(fence(3), later());
        assert_eq!(events_until_closed(&publisher).await, ["Failed(Closed)"]);
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
