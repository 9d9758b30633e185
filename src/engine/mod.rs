//! The lease as a pure state machine: events go in; attempts and one deadline come out.
//!
//! ```text
//!   handle_try, handle_outcome, handle_extend,        ──> Engine ──┬──> poll_attempt(now): the next attempt
//!   handle_observe, handle_remove, handle_expire, ...        │     └──> poll_timeout(): when to poll again
//!      ┌────────┬─────────┬──────────┬─────────┬─────────┬───┴───┐
//!   contest   queue   in_flight   window   patience   outage   echo     each knows only itself
//!
//!             our probe succeeds               evidence of another writer
//!  Election ─────────────────────> Leader ───────────────────────────────> Follower ──┐
//!     │                              ^                                     │ ^  ^     │ evidence:
//!     │                              └─────────── our probe succeeds ──────┘ │  └─────┘ a longer lease
//!     └──────────────────────── evidence of another writer ──────────────────┘
//! ```
//!
//! A follower probes for the lease when the lease has ended, or when its patience has. Beside the lease,
//! each key has an [`Incumbent`]: whoever wrote it last writes it again, whatever its role.
//!
//! The engine reads no clock, never sleeps, spawns nothing and logs nothing; `now` is an argument.
//! The driver of a `WriterLease` does these things under tokio, and a simulator does them on
//! virtual time. Randomness comes from the seed in the [`LeaseConfig`], so one seed and one
//! sequence of events make one run.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | *job* | a payload that tries to make one write; the engine never looks inside |
//! | *attempt* | one run of a job |
//! | *probe* | a single attempt of a replica that competes for the lease; its success wins the lease |
//! | *evidence* | another replica's write that did our job |
//! | *losses* | how many times in a row this replica backed off behind another writer |
//! | *echo* | the time from the start of our own write to its return through the watch |
//! | *incumbent* | of a key: whoever wrote it last; *ours*, *another's* or *nobody's* |
//! | *patience* | how long a pending key waits before this replica stops trusting its incumbent, or the leader, to write it |
//! | *takeover* | an attempt of another's key that was left pending for our patience, although others live |
//! | *suspicion* | a probe while another replica still holds the lease |
//! | *outage* | different keys failed, and the store answered no attempt in between |
//! | *shard* | a part of the keys, by a stable hash, with a contest for a lease of its own |
//! | *roster* | the names of the replicas that are about, its *members*; it says whose *turn* each shard is |
//! | *hand-over* | a change of the roster gives the turn of a shard to another member |
//!
//! # The table
//!
//! | event | in Election | as Leader | as Follower |
//! |---|---|---|---|
//! | [`handle_try`](Engine::handle_try) | queue; the first job starts the election delay, then one probe runs | queue; our key runs; nobody's runs while in flight < window; another's when our patience ends | queue; our key runs; nobody's when the lease or our patience ends; another's when our patience ends |
//! | [`Written`](crate::Outcome::Written) | become Leader: epoch + 1, window 1, lease ends at attempt start + term | lease ends at attempt start + term; window + 1 | a probe: become Leader; otherwise role and lease stay. In each role: the key is ours |
//! | [`WrittenByOther`](crate::Outcome::WrittenByOther) | become Follower, losses 0, lease ends at now + backoff(0); the key is another's | the same | losses + 1, lease ends at now + backoff(losses); the key is another's |
//! | [`handle_extend`](Engine::handle_extend) | as `WrittenByOther`, and the key's pending job is cleared | the same, and up to 16 echoes more, if the key was ours or nobody's | as `WrittenByOther`, and the key's pending job is cleared |
//! | [`handle_observe`](Engine::handle_observe) | as `WrittenByOther`; pending jobs stay | the same, and up to 16 echoes more | as `WrittenByOther`; pending jobs stay |
//! | [`Conflict`](crate::Outcome::Conflict) | the key is tried again after a short backoff of its own | the same, and the window halves, once per burst | the same; if the attempt was a suspicion, patience doubles |
//! | [`Failed`](crate::Outcome::Failed) | the key is tried again after a backoff of its own; if different keys fail, all attempts pause, then one runs | the same; if different keys fail, the window falls to 1 | the same as in Election |
//! | [`Unchanged`](crate::Outcome::Unchanged) | nothing | nothing | nothing |
//! | [`Denied`](crate::Outcome::Denied) | the key is tried again after a minute | the same | the same |
//! | [`handle_satisfied`](Engine::handle_satisfied) | clear the key's pending job | the same | the same |
//! | [`handle_deleted`](Engine::handle_deleted) | the key is nobody's | the same | the same |
//! | [`handle_remove`](Engine::handle_remove) | clear the key's pending job | the same | the same |
//! | [`handle_relisting`](Engine::handle_relisting) | nothing | evidence counts whatever its revision | nothing |
//! | the roster gives us the turn | no election delay; others' keys are nobody's | stay; the same | become Election; the same |
//! | the roster gives another the turn | become Follower for a term; our keys are another's | the same | the same |
//! | [`handle_expire`](Engine::handle_expire) | probe now; what was another's is nobody's | not leader until the next success; the same | the same as in Election |
//! | [`handle_elected`](Engine::handle_elected) | become Leader: epoch + 1, window 1, lease ends at the given time | lease ends at the given time | become Leader |
//! | [`handle_not_elected`](Engine::handle_not_elected) | become Follower | become Follower | nothing |
//! | the lease ends | | `is_leader` turns false; the role stays, as incumbent | one probe may run |
//!
//! # The rules behind the table
//!
//! 1. **Probe when competing, fan out when leading.** Without the lease, one attempt of nobody's
//!    keys is in flight at a time. With the lease, as many are in flight as the window allows. The window starts at
//!    one, grows by one with each success and halves with each burst of conflicts, as TCP's
//!    congestion window does (RFC 5681). An attempt past its deadline frees its slot, but blocks
//!    its key until it returns.
//! 2. **A conflict changes no role, neither does an outage, and one key's failure is no outage.**
//!    Anybody's edit of the same object refuses a write; a store that is down refuses everybody's.
//!
//!    A failure concerns its key. The key backs off by itself, up to the retry interval. Ready keys
//!    that failed last stand behind all others, however old they are: those with the fewest
//!    failures in a row first. They hold up to a quarter of the slots (at least one), and leave all
//!    slots to the others: the window and the one probe of a replica that competes count only keys
//!    that had not failed.
//!
//!    The store is down when different keys fail for the first time and it answered no attempt in
//!    between. A key that had failed before says nothing new. Attempts then pause, and each probe
//!    takes another key; the first answer ends the outage. The probe takes the youngest key after
//!    each failure of the oldest, and the other way round, because keys that always fail tend to
//!    arrive together. The end of the queue that answered goes first for one more retry interval.
//!    A key that had failed before lengthens only the pause of keys like it.
//!
//!    A panic concerns its key only. That key counts as one that failed.
//! 3. **Only evidence counts**: a write that turned a key from wrong to right. Other edits say
//!    nothing about a competitor. The guard distinguishes the two.
//! 4. **One loss is one step, and old news changes nothing.** An attempt that started before the
//!    last change of role is old news. So is evidence from before the write that made us leader,
//!    where the store orders its writes. After we lose leadership, further evidence within the
//!    first backoff counts as the same loss.
//! 5. **Delays are measured in echoes**, because an echo is how long news takes to arrive. They are
//!    drawn so that the first replica to write silences the rest (Nonnenmacher and Biersack,
//!    "Scalable Feedback for Large Groups", 1999). Two leaders that see each other's writes both
//!    step down. As they are few, each draws its wait evenly over 16 echoes more; otherwise they
//!    would meet again.
//! 6. **A key belongs to whoever wrote it last**, and patience says for how long.
//!
//!    *Ours* runs at once, whatever our role. *Nobody's* is a matter of the lease. *Another's* waits
//!    for our patience, whether we lead or not: its incumbent may be dead, too slow, or not want it
//!    any more. So replicas whose wishes overlap in part settle on a writer for each key, and a
//!    replica that is too slow shares its keys with others.
//!
//!    Silence and skipping are told apart. If another's key is pending and we heard of nobody for
//!    our patience, we *suspect* the leader, and probe for the lease. Whoever wins it by silence
//!    counts the keys of all others as nobody's: they need no patience each. If others were heard
//!    of lately, we *take over* that key alone: one at a time, then one more with each success, half
//!    with each conflict. A replica with ready keys of its own waits twice as long, and leaves them
//!    to replicas without. After a silence everybody waits for a whole patience more (once), because
//!    another replica may have begun to do the work of one that died.
//!
//!    Nobody's key is skipped if the leader served a request that is younger by a whole patience.
//!    Age alone says nothing, because a slow leader may be working through a long queue. Then we
//!    probe: replicas of which each wants other keys have a leader each, and that is right. One write
//!    shows a skip to all, so each leaves the others up to 16 echoes to be first (rule 5), and again
//!    with each such key that another then writes, for two patiences more at most.
//!
//!    Evidence on another's key deposes no leader, because it says nothing new. Nor does evidence on a
//!    key that a leader who is at work left pending for so long that another may have lost patience.
//!
//!    Followers learn patience as TCP learns its retransmission timeout (Jacobson 1988; RFC 6298). A
//!    key that we attempted ourselves gives no sample (after Karn), and neither does one that waited
//!    through an outage, or for so long that an impatient replica may have written it: a group that
//!    takes over keys one by one would otherwise learn from that to wait ever longer.
//!
//!    Incumbents are remembered for two terms after the key was last written or wanted.
//! 7. **One timer** serves all keys, however many wait. Evidence costs the same however many are
//!    pending.
//! 8. **Never two attempts of one key at the same time, never a lost key.** A newer job replaces an
//!    older one. The key's age stays that of its first unfulfilled job. A denial answers those before
//!    it: a newer job has its own age, or denied keys that are wanted often would starve all others.
//! 9. **The lease counts from the start of the attempt**, because the answer may have taken long.
//!    This is the pessimistic end.
//! 10. **`backoff(losses)`** is base x factor^losses, with each factor jittered. It is capped at
//!     the term, and past `steps` losses it is the term. Up to a tenth is added, so that replicas
//!     whose backoff is capped do not return in step.
//!
//! 11. **Every member leads its shards.** With several shards, each has a contest of its own: roles,
//!     lease, windows and patience. The queue's memory, the slots, the outage and the echo are common.
//!     Each shard is looked at only when an event concerns it or its time has come, so the work per event
//!     does not grow with their number.
//!
//!     The roster says whose turn each shard is. It is advice, never a lock. Without one, shards are led by
//!     whoever writes first. A change is a hand-over:
//!
//!     - The member that gives a shard up becomes its follower for a term, and counts its keys as another's;
//!       also those that it has in flight.
//!     - The member that gets it needs no election delay, and counts the keys of others in it as nobody's.
//!       If the one before is still on the roster, it waits for two echoes, in which attempts in flight end.
//!     - For 20 echoes, writes of others in that shard are ones that they had begun before.
//!     - While it is our turn, evidence deposes us no more: the other replica may only have wanted that key.
//!     - If a member left, it writes no more: others' keys in all shards of ours are nobody's.
//!
//!     A death costs a patience, as without a roster, but few races: each shard has an *heir*, the member
//!     with the next strongest claim, which loses patience before the others. A replica that won a shard by
//!     silence asks its member whether it lives, unless the member seems to have written anything since that
//!     key was requested: it may want other keys. So does one that has led another's shard for a term, because
//!     what was written in the member's other shards may be the work of others that took them over. A member
//!     that does not answer is struck off. One that does is not asked again for a while, ever longer; if others
//!     did work that it wanted to do, its answer claims it back, which is a hand-over, too.
//!
//! An engine that follows an election ([`handle_elected`](Engine::handle_elected),
//! [`handle_not_elected`](Engine::handle_not_elected)) keeps the queue, the window, the pauses of
//! an outage and all of rule 8. The election replaces rules 3 to 6 and 9: it alone decides who
//! writes, and until when.

mod agenda;
mod attempt;
mod authority;
mod backoff;
mod books;
pub(crate) mod config;
mod contest;
mod counters;
mod decide;
mod echo;
mod election;
mod explain;
mod finish;
mod getters;
mod hand_over;
mod in_flight;
mod incumbent;
mod outage;
pub(crate) mod outcome;
mod patience;
mod queue;
mod rivals;
mod roster;
mod shard;
mod step;
#[cfg(any(test, fuzzing))]
pub(crate) mod tests;
mod time;
mod tournament;
mod tuning;
mod window;

use std::{hash::Hash, time::Duration};

#[cfg(feature = "tokio")]
pub(crate) use self::time::nanos;
use self::{
    agenda::Agenda,
    authority::Authority,
    backoff::{Backoff, Rng, seconds},
    config::LeaseConfig,
    echo::Echo,
    in_flight::{Flight, InFlight, Kind},
    outage::Outage,
    queue::{Class, Queue},
    roster::Roster,
    shard::Shard,
};
pub use self::{
    attempt::{AttemptId, Start},
    contest::Role,
    counters::Counters,
    explain::{Explanation, Setback},
    getters::ShardView,
    incumbent::Incumbent,
    roster::{Member, MemberView, RosterChange, RosterRequest, Turn},
    step::Obstacle,
    time::Timestamp,
    tuning::Tuning,
};

/// A lease-by-work engine for keys `K` and opaque jobs `J`; the [module](self) draws it.
///
/// Each `handle_*` method takes in an event. The two `poll_*` methods return what may happen next.
/// [`drain`](Self::drain) empties the queue. All other methods only look.
///
/// Time never runs backwards: a `now` before an earlier one counts as the earlier one.
///
/// ```
/// use std::time::Duration;
/// use writerlease::{LeaseBuilder, Outcome, engine::{Engine, Role, Timestamp}};
///
/// let mut engine = Engine::new(LeaseBuilder::new("demo").seed(1).build().unwrap());
/// engine.handle_try(Timestamp::ZERO, "key", "write it");
///
/// // This replica knows of no other yet: the first attempt waits for the election delay.
/// assert!(engine.poll_attempt(Timestamp::ZERO).is_none());
/// let start = engine.poll_timeout().unwrap();
/// let attempt = engine.poll_attempt(start).unwrap();
/// assert_eq!((attempt.key, attempt.job), ("key", "write it"));
///
/// let now = start + Duration::from_millis(2);
/// engine.handle_outcome(now, attempt.id, Outcome::Written.into(), attempt.job);
/// assert_eq!(engine.role(), Role::Leader);
/// // The lease counts from the start of the attempt, and nothing needs to be renewed in between.
/// assert_eq!(engine.poll_timeout(), Some(start + Duration::from_secs(60)));
/// ```
#[derive(Debug)]
pub struct Engine<K, J> {
    config: LeaseConfig,
    backoff: Backoff,
    rng: Rng,
    /// The latest `now` that was passed in.
    clock: Timestamp,
    shards: Box<[Shard]>,
    agenda: Agenda,
    authority: Authority,
    /// Some job was finished, by us or by another replica.
    decided: bool,
    queue: Queue<K, J>,
    in_flight: InFlight,
    outage: Outage,
    echo: Echo,
    counters: Counters,
    /// Counts the changes of role in all shards.
    role_generation: u64,
    /// When the last of our leases ends.
    led_until: Timestamp,
    /// When a job of ours was last done, by whomever.
    last_success: Timestamp,
    /// The roster, once we were told that there is one.
    roster: Option<Roster>,
}

/// An echo counts for at most the term divided by this, so that every delay that is measured in
/// echoes stays well below the term.
const LONGEST_ECHO: u32 = 32;

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Creates an engine in [`Role::Election`] with nothing to do.
    pub fn new(config: LeaseConfig) -> Self {
        let mut rng = Rng::seeded(config.seed);
        Self {
            backoff: Backoff::new(&config),
            clock: Timestamp::ZERO,
            shards: (0..config.shards).map(|_| Shard::new(&config, &mut rng)).collect(),
            agenda: Agenda::new(config.shards),
            authority: Authority::default(),
            decided: false,
            queue: Queue::new(config.shards),
            in_flight: InFlight::new(config.attempt_timeout),
            outage: Outage::default(),
            echo: Echo::hinted(config.echo_hint, config.tuning.longest_echo.min(config.term / LONGEST_ECHO)),
            counters: Counters::default(),
            role_generation: 0,
            led_until: Timestamp::ZERO,
            last_success: Timestamp::ZERO,
            roster: None,
            rng,
            config,
        }
    }

    /// Queues a job for a key. A job of the same key that is still pending is replaced and
    /// returned; the key keeps its age. If an attempt of the key is in flight, the new job runs
    /// after it.
    pub fn handle_try(&mut self, now: Timestamp, key: K, job: J) -> Option<J> {
        let now = self.advance(now);
        let number = self.touch(&key);
        if let Some(roster) = &mut self.roster {
            roster.wants_to_join(now);
        }
        // Replicas that are idle and get a job at the same moment must not all probe immediately. A
        // delay that still lasts is kept: jobs that come and go would otherwise postpone the probe
        // forever. A replica whose turn it is needs none.
        let shard = &self.shards[usize::from(number)];
        let idle = self.queue.pending_in(number) == 0 && shard.out == 0;
        if shard.contest.role() == Role::Election
            && idle
            && !shard.contest.expired_by_caller()
            && shard.election <= now
            && shard.turn == Turn::Open
        {
            let blocked_until = |roster: &Roster| roster.blocked_until(now, self.echo.current());
            let starts = self.roster.as_ref().and_then(blocked_until).unwrap_or(now);
            let spread = self.echoes(self.config.tuning.election_echoes).as_secs_f64();
            let drawn = seconds(spread * self.rng.truncated_exponential());
            self.shards[usize::from(number)].election = starts + drawn;
        }
        self.forget_idle(now);
        self.queue.push(now, number, key, job)
    }

    /// The caller knows that the key is as it should be, whoever made it so: clears and returns its
    /// pending job. Says nothing about any replica.
    pub fn handle_satisfied(&mut self, now: Timestamp, key: &K) -> Option<J> {
        self.last_success = self.advance(now);
        self.decided = true;
        self.touch(key);
        self.clear(key).job
    }

    /// Gives a key up: clears and returns its pending job. An attempt in flight continues, but is
    /// not repeated.
    pub fn handle_remove(&mut self, now: Timestamp, key: &K) -> Option<J> {
        self.advance(now);
        self.touch(key);
        self.clear(key).job
    }

    /// Ends the lease, whoever holds it. The next attempt is a probe and needs no further delay. An
    /// engine that follows an election ignores this.
    pub fn handle_expire(&mut self, now: Timestamp) {
        let now = self.advance(now);
        if self.authority.is_by_work() {
            for shard in &mut self.shards {
                shard.election = now;
                shard.contest.expire(now);
            }
            self.queue.change_incumbents(now, |_, incumbent| match incumbent {
                Incumbent::Other => Incumbent::Nobody,
                incumbent => incumbent,
            });
            self.all_changed();
        }
    }

    /// Takes in how long our own write took to come back through the watch, from its start.
    pub fn handle_echo(&mut self, now: Timestamp, echo: Duration) {
        self.advance(now);
        let before = self.echo.current();
        self.echo.measure(echo);
        if self.echo.current() < before {
            // With several shards, what waits for some of the longer echoes goes on doing so: to look at
            // all shards takes too long.
            self.agenda.touch(0);
        }
    }

    /// Takes in how long a round trip to the store took; ignored after the first echo.
    ///
    /// An echo takes two round trips: a read, and then a write with its news. Followers measure no
    /// echoes of their own, and must not think that the leader is silent during its second write.
    pub fn handle_echo_hint(&mut self, now: Timestamp, round_trip: Duration) {
        self.advance(now);
        self.echo.at_least(round_trip.saturating_mul(2));
    }

    /// Returns the next attempt, if one may start now. Call it until it returns `None`, then sleep
    /// until [`poll_timeout`](Self::poll_timeout) or the next event.
    pub fn poll_attempt(&mut self, now: Timestamp) -> Option<Start<K, J>> {
        let now = self.advance(now);
        let agenda = &mut self.agenda;
        self.queue.release_due(now, |shard| agenda.touch(shard));
        let (ready, kind) = self.next_attempt()?;
        let number = self.queue.shard(ready.slot);
        let shard = &mut self.shards[usize::from(number)];
        match kind {
            Kind::Probe { suspicion, .. } => {
                // Slow start begins anew with each probe, also after an idle term.
                shard.window.close();
                self.counters.suspicions += u64::from(suspicion);
            }
            Kind::Takeover => {
                // The load that moved last is no measure of what can be moved now.
                if shard.last_takeover + shard.patience.current() < now {
                    shard.takeovers.close();
                }
                shard.last_takeover = now;
                self.counters.takeovers += 1;
            }
            Kind::Lead | Kind::Own => {}
        }
        self.counters.attempts += 1;
        let flight = Flight {
            slot: ready.slot,
            shard: number,
            started: now,
            role_generation: shard.contest.role_generation(),
            kind,
            failed_before: self.queue.class(ready.slot) == Class::Failed,
            cleared: false,
            late: false,
        };
        shard.out += 1;
        *shard.counted.of(&flight) += 1;
        let epoch = shard.contest.epoch();
        let (key, job, attempt) = self.queue.start(ready.slot);
        let (serial, deadline) = self.in_flight.insert(flight);
        self.agenda.touch(number);
        Some(Start { id: AttemptId(serial), key, job, number: attempt, shard: number, epoch, deadline })
    }

    /// Returns when something can change without an event: an attempt may start, a lease of ours
    /// ends, or a write to the roster is due. Returns a time at or before the last `now` if an attempt can start immediately.
    pub fn poll_timeout(&mut self) -> Option<Timestamp> {
        self.look_at_due();
        let roster = self.roster.as_ref().and_then(Roster::timeout);
        earliest([self.next_step(), self.queue.next_due(), roster])
    }

    /// Takes all pending jobs, oldest first. Attempts in flight are not among them.
    pub fn drain(&mut self) -> Vec<(K, J)> {
        self.agenda.touch_all();
        self.queue.drain(self.clock)
    }
}

fn earliest<const N: usize>(times: [Option<Timestamp>; N]) -> Option<Timestamp> {
    times.into_iter().flatten().min()
}
