//! Looks at pending keys: their age, their setbacks, and the obstacle that each waits for.

use std::{fmt, hash::Hash, sync::Arc, time::Duration};

use super::{
    Engine,
    incumbent::Incumbent,
    queue::{Class, Position},
    step::{Obstacle, Step},
    time::Timestamp,
};

/// The state of a pending key, and what it waits for.
///
/// [`Engine::explain`] returns it, and [`WriterLease::explain`](crate::WriterLease::explain) for a
/// lease. All times are durations before or after that call. Its text is one line for people:
///
/// ```
/// use std::time::Duration;
/// use writerlease::{LeaseBuilder, Outcome, engine::{Engine, Obstacle, Setback, Timestamp}};
///
/// let mut engine = Engine::new(LeaseBuilder::new("demo").seed(1).build().unwrap());
/// let at = |ms: u64| Timestamp::from_nanos(ms * 1_000_000);
/// engine.handle_try(at(0), "key", "write it");
/// assert_eq!(engine.explain(at(0), &"key").unwrap().obstacle, Some(Obstacle::ElectionDelay));
/// assert!(engine.explain(at(0), &"other").is_none(), "nobody wants it");
///
/// let attempt = engine.poll_attempt(at(100)).unwrap();
/// assert_eq!(engine.explain(at(103), &"key").unwrap().running_for, Some(Duration::from_millis(3)));
///
/// engine.handle_outcome(at(105), attempt.id, Outcome::Failed.into(), attempt.job);
/// let explanation = engine.explain(at(105), &"key").unwrap();
/// assert_eq!(explanation.obstacle, Some(Obstacle::Backoff));
/// assert_eq!(explanation.last_setback, Some(Setback::Failed));
/// assert!(explanation.to_string().starts_with(
///     "pending for 105.0ms; attempted once, and the store did not answer; waits for its own next try, for "
/// ));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explanation {
    /// The time for which the key has been wanted; zero if it is to be tried again later on
    /// purpose.
    pub pending_for: Duration,
    /// How many attempts of the job have started. A newer job of the key counts from zero.
    pub attempts: u32,
    /// How many refusals and failures in a row the key has had.
    pub setbacks: u32,
    /// Why the last attempt did not do the job, as far as the key still waits for that.
    pub last_setback: Option<Setback>,
    /// The writer of the last value of the key, as far as this replica knows.
    pub incumbent: Incumbent,
    /// The number of the key's shard, from 0.
    pub shard: u16,
    /// The member of the roster whose turn that shard is, if there is a roster.
    pub member: Option<Arc<str>>,
    /// The obstacle in the way of the next attempt. `None` if the attempt may start now.
    pub obstacle: Option<Obstacle>,
    /// The time for which the obstacle lasts at most. `None` if only an event removes it.
    pub time_left: Option<Duration>,
    /// The time for which an attempt of the key has been in flight, if one is.
    pub running_for: Option<Duration>,
}

/// The reason for which an attempt did not do its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Setback {
    /// The write was refused as stale.
    Conflict,
    /// The store did not answer, or the job panicked.
    Failed,
    /// The store denied the request.
    Denied,
}

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Returns what a key waits for, or `None` if it is not pending: nobody asked for it, or it was
    /// done or removed.
    ///
    /// The rules that decide about attempts answer this, too. They look at the situation of the
    /// last event; `now` only measures times from there.
    pub fn explain(&self, now: Timestamp, key: &K) -> Option<Explanation> {
        let look = self.queue.look(key)?;
        let (mut since, mut attempts) = (look.since, look.tries);
        let mut last_setback = None;
        let mut running_for = None;
        let (obstacle, until) = match look.position {
            Position::Ready(class, ready) => match self.step_of_key(look.shard, look.incumbent, class, ready)
            {
                _ if self.authority.blocks(self.clock) => (Some(Obstacle::NotElected), None),
                Step::Run(..) => (None, Some(now)),
                Step::Wait(until, obstacle) => (Some(obstacle), Some(until)),
                Step::Idle => (Some(Obstacle::Slot), None),
            },
            Position::Waiting { until, denied } => {
                let has_failed = look.class == Class::Failed;
                last_setback = match (denied, has_failed, look.setbacks) {
                    (true, ..) => Some(Setback::Denied),
                    (_, true, _) => Some(Setback::Failed),
                    (.., 0) => None,
                    _ => Some(Setback::Conflict),
                };
                if has_failed && self.outage.lasts() {
                    (Some(Obstacle::Outage), Some(until.max(self.outage.until(look.class))))
                } else {
                    (Some(Obstacle::Backoff), Some(until))
                }
            }
            Position::InFlight { slot, since: first, tries, newer } => {
                let flight = self.in_flight.all().find(|flight| flight.slot == slot)?;
                match (flight.cleared, newer) {
                    (true, false) => return None,
                    (true, true) => {}
                    (false, _) => (since, attempts) = (first, tries),
                }
                running_for = Some(now - flight.started);
                (Some(Obstacle::Attempt), None)
            }
        };
        Some(Explanation {
            pending_for: now - since,
            attempts,
            setbacks: u32::from(look.setbacks),
            last_setback,
            incumbent: look.incumbent,
            shard: look.shard,
            member: self.roster.as_ref().and_then(|roster| roster.member_of(look.shard)).cloned(),
            obstacle,
            time_left: until.map(|until| until - now),
            running_for,
        })
    }

    /// Returns the key that has been pending for longest, and since when. A key that is to be tried
    /// again later on purpose counts from that time. Takes O(keys that wait for their next try +
    /// attempts in flight).
    pub fn oldest_pending(&self) -> Option<(&K, Timestamp)> {
        let in_flight = self
            .in_flight
            .all()
            .filter_map(|flight| Some((self.queue.pending_since(flight.slot, flight.cleared)?, flight.slot)));
        let (since, slot) = self.queue.oldest().into_iter().chain(in_flight).min()?;
        Some((self.queue.key(slot), since))
    }

    /// Returns how many keys' last attempts failed: the store did not answer, or the job panicked.
    pub fn failing(&self) -> usize {
        self.queue.failing()
    }

    /// Returns when a job of ours was last done, by us or by another replica, or found done already.
    pub fn last_success(&self) -> Timestamp {
        self.last_success
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pending for {:.1?}; ", self.pending_for)?;
        match self.attempts {
            0 => write!(f, "not attempted yet")?,
            1 => write!(f, "attempted once")?,
            attempts => write!(f, "attempted {attempts} times")?,
        }
        match self.last_setback {
            Some(setback) if self.setbacks > 1 => {
                write!(f, ", {} in a row without success, and {setback} last", self.setbacks)?;
            }
            Some(setback) => write!(f, ", and {setback}")?,
            None => {}
        }
        match (self.obstacle, self.running_for) {
            (None, _) => f.write_str("; may be attempted now")?,
            (Some(obstacle), None) => write!(f, "; waits for {obstacle}")?,
            (Some(obstacle), Some(running_for)) => {
                write!(f, "; waits for {obstacle}, since {running_for:.1?}")?;
            }
        }
        if let Some(left) = self.time_left {
            write!(f, ", for {left:.1?} at most")?;
        }
        match &self.member {
            Some(member) => write!(f, "; in shard {}, the turn of {member}", self.shard),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attempt => "the attempt in flight",
            Self::Backoff => "its own next try",
            Self::Outage => "the store, which is down",
            Self::ElectionDelay => "the election delay",
            Self::Leader => "the replica that holds the lease",
            Self::Incumbent => "the replica that wrote it last",
            Self::Slot => "a slot, which other attempts hold",
            Self::NotElected => "an election that this replica has not won",
        })
    }
}

impl fmt::Display for Setback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Conflict => "the write was refused as stale",
            Self::Failed => "the store did not answer",
            Self::Denied => "the store denied it",
        })
    }
}
