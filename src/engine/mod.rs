//! The lease as a pure state machine: events go in, attempts and one deadline come out, `now` is an argument.
//!
//! ```text
//!    handle_try, handle_outcome, handle_extend,            poll_attempt(now) -> the next attempt to run
//!    handle_observe, handle_remove, handle_expire, ... ──> Engine ──> poll_timeout()    -> when to ask again
//!                                                             │
//!          ┌─────────┬──────────┬─────────┬──────────┬────────┴──┬────────┐
//!        role      queue     in_flight    window    patience    outage    echo     each knows only itself
//!
//!                    our write lands                      somebody else's write does our work
//!      Election ──────────────────────> Leader ──────────────────────────────────────────> Follower
//!          │                              ^                                                  │  ^ │
//!          │                              └── our probe lands: the lease ended, or patience ─┘  └─┘ again: longer
//!          └──────────────── somebody else's write does our work ───────────────────────────────^
//! ```
//!
//! Nothing here reads a clock, sleeps, spawns or logs: the driver (`WriterLease`) does under tokio, and a simulator
//! may on virtual time. Randomness comes from the seed in the [`LeaseConfig`]: one seed and one sequence of events is one run.
//!
//! | event | in Election | as Leader | as Follower |
//! |---|---|---|---|
//! | [`handle_try`](Engine::handle_try) | queue; the first starts the election delay, then one probe | queue; runs while in flight < window | queue; runs when the lease or the key's patience ends |
//! | [`Extend`](Outcome::Written) | become Leader: epoch + 1, window 1, lease ends at attempt start + term | lease ends at attempt start + term; window + 1 | a probe: become Leader; an overdue key: role and lease stay, the key is ours |
//! | [`Release`](Outcome::WrittenByOther) | become Follower, losses 0, lease ends at now + backoff(0) | the same | losses + 1, lease ends at now + backoff(losses) |
//! | [`handle_extend`](Engine::handle_extend) | as `Release`, and the key's pending work is cleared | the same, and up to 16 echoes more | as `Release`, and the key's pending work is cleared |
//! | [`handle_observe`](Engine::handle_observe) | as `Release`; the work stands | the same, and up to 16 echoes more | as `Release`; the work stands |
//! | [`Conflict`](Outcome::Conflict) | the key is tried again after a short backoff of its own | the same, and the window halves, once per burst | the same; if it was a suspicion, patience doubles |
//! | [`Failed`](Outcome::Failed) | all attempts pause, then one | the same, and the window falls to 1 | the same |
//! | [`Unchanged`](Outcome::Unchanged) | nothing | nothing | nothing |
//! | [`handle_remove`](Engine::handle_remove) | clear the key's pending work | the same | the same |
//! | [`handle_expire`](Engine::handle_expire) | probe now | not leader until the next success | probe now |
//! | [`handle_elected`](Engine::handle_elected) | become Leader: epoch + 1, window 1, until the time it says | until the time it says | become Leader |
//! | [`handle_not_elected`](Engine::handle_not_elected) | become Follower | become Follower | nothing |
//! | the lease ends | | `is_leader` turns false; the role stays, as incumbent | one probe may run |
//!
//! # The rules behind the table
//!
//! 1. **Probe when competing, fan out when leading.** Without the lease one attempt at a time; with it as many as the window
//!    allows, which grows by one per success and halves per burst of conflicts, as TCP's does (RFC 5681). An attempt past its
//!    deadline no longer counts, but blocks its key until it returns.
//! 2. **A conflict moves nothing, an outage moves nothing.** Anybody's edit refuses a write; a store that is down refuses
//!    everybody's. A panic concerns its key only.
//! 3. **Only evidence counts**: a write that turned a key from wrong to right. Telling it from other edits is the
//!    guard's part.
//! 4. **One loss is one step, old news is no news.** Attempts from before the last change of role move nothing; nor does
//!    evidence from before the write that made us leader, where the store orders its writes. After leadership is lost, further
//!    evidence within the first backoff is the same loss.
//! 5. **Delays are measured in echoes**, the time our own writes take to come back, and drawn so that the first to go silences
//!    the rest (Nonnenmacher and Biersack, "Scalable Feedback for Large Groups", 1999). Two leaders that met both step down;
//!    because they are few, what they wait is drawn evenly over 16 echoes more, or they would meet again.
//! 6. **Patience.** Followers learn how long a leader needs for a key, as TCP learns its retransmission timeout (Jacobson 1988;
//!    RFC 6298; no samples from keys that we attempted ourselves, after Karn, nor from those that waited through an outage).
//!    If the leader shows no sign of life for that long while a key is pending, it is suspected, and probed for the lease. If
//!    it is seen to do what was wanted that much later than a key, it lives and has passed this key over: the key is written
//!    alone, and is ours from then on. That the key is old is not enough: a slow leader that works off a long queue would be
//!    deposed by such a write, a leader that died in the middle of one was last seen just before, and one that is heard again
//!    after an outage needs its time. Who was seen may also be another follower with overdue keys of its own; so that no
//!    group does all its work like that, without a leader, such keys are let go of now and then, ever more rarely.
//! 7. **One timer**, however many keys wait; evidence costs the same whatever is pending.
//! 8. **Never two attempts of one key at once, never a lost key.** Newer work takes the place of older; its age stays that of
//!    the first unfulfilled one.
//! 9. **The lease counts from the start of the attempt**, not from its answer: the pessimistic end.
//! 10. **`backoff(losses)`** is base x factor^losses, each factor jittered, capped at the term; past `steps` it is the term. Up to a
//!     tenth more, so that not even the capped ones come back in step.
//!
//! An engine that follows an election (`handle_elected`, `handle_not_elected`) keeps the queue, the window, the pauses of an
//! outage and all of rule 8; who works when, and until when, is no matter of rules 3 to 6 and 9 then, but of the election.

mod adopted;
mod authority;
mod backoff;
pub(crate) mod config;
mod decide;
mod echo;
mod election;
mod in_flight;
mod outage;
pub(crate) mod outcome;
mod patience;
mod queue;
mod role;
mod step;
#[cfg(any(test, fuzzing))]
pub(crate) mod tests;
mod time;
mod tuning;
mod window;

use std::{hash::Hash, time::Duration};

use self::{
    authority::Authority,
    backoff::{Backoff, Rng, seconds},
    config::LeaseConfig,
    echo::Echo,
    in_flight::{Flight, InFlight, Kind},
    outage::Outage,
    outcome::{Next, Outcome, Verdict},
    patience::Patience,
    queue::{Back, Cleared, Queue},
    role::Contest,
    step::Step,
    window::Window,
};
pub use self::{role::Role, time::Timestamp, tuning::Tuning};

/// A lease-by-work engine for keys `K` and opaque works `W`; the [module](self) draws it.
///
/// Time must not run backwards: a `now` before an earlier one counts as the earlier one.
///
/// ```
/// use std::time::Duration;
/// use writerlease::{LeaseBuilder, Outcome, engine::{Engine, Role, Timestamp}};
///
/// let mut engine = Engine::new(LeaseBuilder::new("demo").seed(1).build().unwrap());
/// engine.handle_try(Timestamp::ZERO, "key", "write it");
///
/// // Nobody knows yet who is about: the first attempt waits for the election delay.
/// assert!(engine.poll_attempt(Timestamp::ZERO).is_none());
/// let start = engine.poll_timeout().unwrap();
/// let attempt = engine.poll_attempt(start).unwrap();
/// assert_eq!((attempt.key, attempt.work), ("key", "write it"));
///
/// let now = start + Duration::from_millis(2);
/// engine.handle_outcome(now, attempt.id, Outcome::Written.into(), attempt.work);
/// assert_eq!(engine.role(), Role::Leader);
/// // The lease counts from the start of the attempt, and nothing needs to be renewed in between.
/// assert_eq!(engine.poll_timeout(), Some(start + Duration::from_secs(60)));
/// ```
#[derive(Debug)]
pub struct Engine<K, W> {
    config: LeaseConfig,
    backoff: Backoff,
    rng: Rng,
    /// The latest `now` that was passed in.
    clock: Timestamp,
    contest: Contest,
    authority: Authority,
    /// When the first probe of the election may start; drawn when the first work comes to an idle replica.
    election: Timestamp,
    /// Some work was finished, by us or by somebody else.
    decided: bool,
    queue: Queue<K, W>,
    in_flight: InFlight,
    window: Window,
    patience: Patience,
    outage: Outage,
    echo: Echo,
    counters: Counters,
}

/// Names one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(u64);

/// An attempt to run now. Its outcome must come back through [`Engine::handle_outcome`] or [`Engine::handle_panic`],
/// with the work.
#[derive(Debug)]
#[must_use]
pub struct Start<K, W> {
    /// Names the attempt.
    pub id: AttemptId,
    /// The key whose work it is.
    pub key: K,
    /// The work.
    pub work: W,
    /// Counts the attempts of this work, from 1.
    pub number: u32,
    /// How many times this process had become leader when the attempt started.
    pub epoch: u64,
    /// When the attempt stops holding its slot.
    pub deadline: Timestamp,
}

/// What has happened so far, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Attempts that started.
    pub attempts: u64,
    /// Attempts whose write landed.
    pub written: u64,
    /// Attempts that were refused as stale.
    pub conflicts: u64,
    /// Attempts that learnt nothing.
    pub failures: u64,
    /// Attempts that found nothing to write.
    pub unchanged: u64,
    /// Attempts that found another writer.
    pub written_by_others: u64,
    /// Attempts that panicked.
    pub panics: u64,
    /// Times that this process became leader.
    pub won: u64,
    /// Times that this process became a follower.
    pub lost: u64,
    /// Writes of others that did our work.
    pub evidence: u64,
    /// Probes that were started because the leader seemed dead.
    pub suspicions: u64,
    /// Attempts of single keys that the leader doesn't do.
    pub overdue: u64,
}

/// No echo counts for more than this part of the term, so that none of these delays comes near it.
const LONGEST_ECHO: u32 = 32;

impl<K: Hash + Eq + Clone, W> Engine<K, W> {
    /// An engine in [`Role::Election`] with nothing to do.
    pub fn new(config: LeaseConfig) -> Self {
        let mut rng = Rng::seeded(config.seed);
        Self {
            backoff: Backoff::new(&config),
            clock: Timestamp::ZERO,
            contest: Contest::default(),
            authority: Authority::default(),
            election: Timestamp::ZERO,
            decided: false,
            queue: Queue::new(),
            in_flight: InFlight::new(config.attempt_timeout),
            window: Window::new(config.concurrency, config.tuning.window_growth),
            patience: Patience::new(&config, &mut rng),
            outage: Outage::default(),
            echo: Echo::hinted(config.echo_hint, config.term / LONGEST_ECHO),
            counters: Counters::default(),
            rng,
            config,
        }
    }

    /// Queues work for a key. Work of the same key that is still pending is replaced and returned; the key keeps its age.
    /// If an attempt of the key is out, the new work runs after it.
    pub fn handle_try(&mut self, now: Timestamp, key: K, work: W) -> Option<W> {
        self.handle_try_at(|| now, key, work)
    }

    /// Like [`handle_try`](Self::handle_try), with a time that is asked for at most once, and not at all if newer work only
    /// takes the place of older: reading the clock would be half of what that costs.
    pub(crate) fn handle_try_at(&mut self, now: impl FnOnce() -> Timestamp, key: K, work: W) -> Option<W> {
        // Idle replicas that get work at the same moment must not all go at once, each time.
        let idle = self.queue.len() == 0 && self.in_flight.out() == 0;
        if self.contest.role() == Role::Election && idle && !self.contest.expired_by_caller() {
            let now = self.advance(now());
            // A delay that still lasts is not drawn anew, or work that comes and goes would put it off for ever.
            if self.election <= now {
                let spread = self.echoes(self.config.tuning.election_echoes).as_secs_f64();
                self.election = now + seconds(spread * self.rng.truncated_exponential());
            }
            return self.queue.push(|| now, key, work);
        }
        let clock = &mut self.clock;
        let now = || {
            *clock = now().max(*clock);
            *clock
        };
        self.queue.push(now, key, work)
    }

    /// Takes in how an attempt ended. Returns the work if it is not needed any more: it was done, or newer work replaced
    /// it, or its key was cleared meanwhile.
    pub fn handle_outcome(&mut self, now: Timestamp, id: AttemptId, verdict: Verdict, work: W) -> Option<W> {
        let now = self.advance(now);
        self.in_flight.expire(now);
        let Some(flight) = self.in_flight.remove(id.0) else { return Some(work) };
        // An attempt from before the last change of role tells of a time that is over.
        let current = flight.role_generation == self.contest.role_generation();
        if verdict.outcome != Outcome::Failed {
            self.outage.answered(now);
        }
        let mut setbacks = 0;
        let mut backoff = self.config.retry_interval;
        match verdict.outcome {
            Outcome::Written => {
                self.counters.written += 1;
                self.write_succeeded(now, &flight, verdict.revision, current);
            }
            Outcome::WrittenByOther => {
                self.counters.written_by_others += 1;
                let key = self.queue.key(flight.slot).clone();
                self.queue.unadopt(&key);
                if current && self.authority.is_by_work() {
                    self.lose(now, false);
                }
            }
            Outcome::Conflict => {
                self.counters.conflicts += 1;
                setbacks = flight.setbacks.saturating_add(1);
                backoff = self.backoff.after_refusal(
                    u32::from(setbacks),
                    self.slowest_news(),
                    self.config.retry_interval,
                    &mut self.rng,
                );
                if current {
                    self.refused(now, id, &flight);
                }
            }
            Outcome::Failed => {
                self.counters.failures += 1;
                setbacks = flight.setbacks.saturating_add(1);
                backoff = self.failed(now, &flight, setbacks, current);
            }
            Outcome::Unchanged => self.counters.unchanged += 1,
        }
        let delay = match verdict.next {
            _ if flight.cleared => None,
            Next::Done => None,
            Next::Retry => Some(backoff),
            Next::RetryAfter(delay) if verdict.outcome == Outcome::Failed => {
                Some(delay.max(self.others_first(now)))
            }
            Next::RetryAfter(delay) => {
                // The work chose to wait, so newer work need not.
                setbacks = 0;
                Some(delay)
            }
        };
        // What was done and is to be done again is a new want.
        let fulfilled = matches!(verdict.outcome, Outcome::Written | Outcome::Unchanged);
        let since = (!fulfilled).then_some(flight.since);
        self.finish(now, &flight, work, delay, Back { since, setbacks, tries: flight.tries })
    }

    /// Takes in that an attempt panicked. That concerns its key only, which is tried again at the retry interval.
    pub fn handle_panic(&mut self, now: Timestamp, id: AttemptId, work: W) -> Option<W> {
        let now = self.advance(now);
        self.in_flight.expire(now);
        let Some(flight) = self.in_flight.remove(id.0) else { return Some(work) };
        self.counters.panics += 1;
        let delay = (!flight.cleared).then_some(self.config.retry_interval);
        let setbacks = flight.setbacks.saturating_add(1);
        let back = Back { since: Some(flight.since), setbacks, tries: flight.tries };
        self.finish(now, &flight, work, delay, back)
    }

    /// Evidence: somebody else's write did what our work for this key would have done. Their lease is extended, and the
    /// work is cleared and returned. `revision` is the write's position in the store's order of writes, if there is one.
    ///
    /// Whoever calls this has looked at the value: an event about an older state must not clear newer work.
    pub fn handle_extend(&mut self, now: Timestamp, key: &K, revision: Option<u64>) -> Option<W> {
        let now = self.advance(now);
        let Cleared { work, since, attempted, .. } = self.clear(key);
        if !self.contest.is_old_news(revision) {
            self.queue.unadopt(key);
            self.counters.evidence += 1;
            // Work of unknown age may be as fresh as can be.
            self.contest.reaches(since.map_or(now, |since| since.min(now)));
            if self.authority.is_by_work() {
                self.lose(now, true);
            }
            // Only now: whether they were silent for too long is a matter of the patience with which we waited. What had to
            // wait for the store says nothing of the leader either.
            if let Some(since) = since.filter(|since| !attempted && !self.outage.was_since(*since)) {
                // Or somebody took over what another let go of.
                if self.patience.is_late(now - since) {
                    self.queue.end_adoptions_early(now);
                }
                self.patience.sample(now - since);
            }
            self.decided = true;
        }
        work
    }

    /// One of our group wrote something else: their lease is extended, and our work stands.
    pub fn handle_observe(&mut self, now: Timestamp, revision: Option<u64>) {
        let now = self.advance(now);
        if self.authority.is_by_work() && !self.contest.is_old_news(revision) {
            self.contest.reaches(now);
            self.lose(now, true);
        }
    }

    /// The key is no longer ours to do: its pending work is cleared and returned. An attempt that is out goes on, but is
    /// not repeated.
    pub fn handle_remove(&mut self, now: Timestamp, key: &K) -> Option<W> {
        self.advance(now);
        self.queue.unadopt(key);
        self.clear(key).work
    }

    /// Ends the lease, whoever holds it: the next attempt is a probe and needs no further delay.
    pub fn handle_expire(&mut self, now: Timestamp) {
        let now = self.advance(now);
        if self.authority.is_by_work() {
            self.election = now;
            self.contest.expire(now);
        }
    }

    /// Our own write came back through the watch this long after it started.
    pub fn handle_echo(&mut self, now: Timestamp, echo: Duration) {
        self.advance(now);
        self.echo.measure(echo);
    }

    /// Until the first echo: a round trip to the store took this long. An echo takes two: a read, and then a write and its
    /// news. Followers have no echoes of their own, and must not think the leader silent while it is at its second write.
    pub fn handle_echo_hint(&mut self, now: Timestamp, round_trip: Duration) {
        self.advance(now);
        self.echo.at_least(round_trip.saturating_mul(2));
    }

    /// The next attempt to run, if one may run now. Call it until it returns `None`, then sleep until
    /// [`poll_timeout`](Self::poll_timeout) or the next event.
    pub fn poll_attempt(&mut self, now: Timestamp) -> Option<Start<K, W>> {
        let now = self.advance(now);
        self.in_flight.expire(now);
        self.queue.release_due(now);
        self.queue.end_adoptions(now);
        let Step::Run(ready, kind) = self.step() else { return None };
        if let Kind::Probe { suspicion } = kind {
            // Slow start again, also after an idle term.
            self.window.close();
            self.counters.suspicions += u64::from(suspicion);
        }
        self.counters.overdue += u64::from(matches!(kind, Kind::Overdue | Kind::Adopted));
        self.counters.attempts += 1;
        let (key, taken) = self.queue.start(ready.slot);
        let (serial, deadline) = self.in_flight.insert(Flight {
            slot: ready.slot,
            started: now,
            role_generation: self.contest.role_generation(),
            kind,
            since: taken.since,
            tries: taken.tries,
            setbacks: taken.setbacks,
            cleared: false,
        });
        Some(Start {
            id: AttemptId(serial),
            key,
            work: taken.work,
            number: taken.tries,
            epoch: self.contest.epoch(),
            deadline,
        })
    }

    /// When something can change without an event: an attempt may start, or our lease ends. It is not later than the last
    /// `now` if an attempt may start at once.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let lease_end = self.contest.leads(self.clock).then(|| self.contest.lease_end());
        let step = match self.step() {
            Step::Run(..) => Some(self.clock),
            Step::Wait(until) => Some(until),
            Step::Idle => None,
        };
        earliest([step, self.queue.next_due(), lease_end])
    }

    /// The keys whose attempts are out.
    pub fn keys_in_flight(&self) -> impl Iterator<Item = &K> {
        self.in_flight.slots().map(|slot| self.queue.key(slot))
    }

    /// Takes everything that is pending, oldest first. Attempts that are out are not among it.
    pub fn drain(&mut self) -> Vec<(K, W)> {
        self.queue.drain()
    }

    /// The role; see [`is_leader`](Self::is_leader) for whether a leader still holds the lease.
    pub fn role(&self) -> Role {
        self.contest.role()
    }

    /// Whether our own work holds the lease at `now`. An idle leader's lease runs out: nobody's work, nobody's lease.
    pub fn is_leader(&self, now: Timestamp) -> bool {
        self.contest.leads(now.max(self.clock))
    }

    /// Counts the times this process became leader.
    pub fn epoch(&self) -> u64 {
        self.contest.epoch()
    }

    /// Counts the changes of role.
    pub fn role_generation(&self) -> u64 {
        self.contest.role_generation()
    }

    /// How many times in a row we backed off.
    pub fn losses(&self) -> u32 {
        self.contest.losses()
    }

    /// When the lease ends, whoever holds it; [`Timestamp::ZERO`] before anybody did.
    pub fn lease_end(&self) -> Timestamp {
        self.contest.lease_end()
    }

    /// Some work was finished: by us, by somebody else, or because there was nothing to write.
    pub fn decided(&self) -> bool {
        self.decided
    }

    /// How many attempts may be in flight while we lead.
    pub fn window(&self) -> usize {
        self.window.size()
    }

    /// How long a pending key waits before we stop trusting the leader to do it.
    pub fn patience(&self) -> Duration {
        self.patience.current()
    }

    /// How long our own writes take to come back.
    pub fn echo(&self) -> Duration {
        self.echo.current()
    }

    /// How many attempts are out, those past their deadline included.
    pub fn in_flight(&self) -> usize {
        self.in_flight.out()
    }

    /// How many keys have work pending that no attempt is out with.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing is pending. Attempts may still be out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The settings.
    pub fn config(&self) -> &LeaseConfig {
        &self.config
    }

    fn advance(&mut self, now: Timestamp) -> Timestamp {
        self.clock = self.clock.max(now);
        self.clock
    }

    fn write_succeeded(&mut self, now: Timestamp, flight: &Flight, revision: Option<u64>, current: bool) {
        if matches!(flight.kind, Kind::Overdue | Kind::Adopted) {
            // The leader lives and doesn't do this key, unless we learnt otherwise meanwhile. That moves neither role nor
            // lease. One that was our own when it started tells nothing new: its adoption may have ended meanwhile.
            if flight.kind == Kind::Overdue && !flight.cleared {
                let key = self.queue.key(flight.slot).clone();
                let adoption = self.patience.current().saturating_mul(self.config.tuning.adoption_patiences);
                self.queue.adopt(now, key, adoption);
            }
            return;
        }
        if !self.authority.is_by_work() {
            self.decided = true;
            if current {
                self.window.grow();
            }
            return;
        }
        let term = self.config.term;
        if !current || flight.started + term <= now {
            return;
        }
        if self.contest.win(flight.started, term, revision) {
            self.window.close();
            self.counters.won += 1;
            self.decided = true;
        } else {
            self.window.grow();
        }
    }

    fn refused(&mut self, now: Timestamp, id: AttemptId, flight: &Flight) {
        match flight.kind {
            Kind::Lead => self.window.halve(id.0, self.in_flight.next_serial()),
            Kind::Probe { suspicion: true } => {
                self.patience.refuted(&mut self.rng);
                self.contest.sign_of_life(now, self.patience.current());
            }
            Kind::Probe { suspicion: false } | Kind::Overdue | Kind::Adopted => {}
        }
    }

    /// Returns when the key may be tried again.
    fn failed(&mut self, now: Timestamp, flight: &Flight, setbacks: u16, current: bool) -> Duration {
        let (floor, cap) = (self.slowest_news(), self.config.retry_interval);
        let (backoff, rng) = (&self.backoff, &mut self.rng);
        let news = current
            && self
                .outage
                .failed(now, flight.started, |streak| backoff.after_failure(streak, floor, cap, rng));
        if news && self.contest.role() == Role::Leader {
            self.window.close();
        }
        let own = self.backoff.after_failure(u32::from(setbacks), floor, cap, &mut self.rng);
        own.max(self.others_first(now))
    }

    /// One key that always fails must not be the one that finds out, again and again, whether the store is back: the
    /// others go first when the pause ends.
    fn others_first(&self, now: Timestamp) -> Duration {
        (self.outage.until() - now).saturating_add(self.config.backoff_base)
    }

    fn lose(&mut self, now: Timestamp, evidence: bool) {
        let floor = self.slowest_news();
        let rival_delay = if evidence && self.contest.role() == Role::Leader {
            seconds(self.echoes(self.config.tuning.rival_echoes).as_secs_f64() * self.rng.uniform())
        } else {
            Duration::ZERO
        };
        let (patience, backoff, rng) = (self.patience.current(), &self.backoff, &mut self.rng);
        if self.contest.lose(now, evidence, rival_delay, patience, |losses| backoff.delay(losses, floor, rng))
        {
            self.counters.lost += 1;
            self.decided = true;
        }
        self.window.close();
    }

    /// The floor of every backoff.
    fn slowest_news(&self) -> Duration {
        self.echoes(self.config.tuning.backoff_echoes)
    }

    fn echoes(&self, count: u32) -> Duration {
        self.echo.current().saturating_mul(count)
    }

    fn finish(
        &mut self,
        now: Timestamp,
        flight: &Flight,
        work: W,
        delay: Option<Duration>,
        back: Back,
    ) -> Option<W> {
        match delay {
            Some(delay) => self.queue.requeue(flight.slot, work, now + delay, back),
            None => {
                self.decided = true;
                self.queue.finish(flight.slot);
                Some(work)
            }
        }
    }

    fn clear(&mut self, key: &K) -> Cleared<W> {
        let cleared = self.queue.clear(key);
        if let Some(slot) = cleared.running
            && let Some(flight) = self.in_flight.of_slot(slot)
        {
            flight.cleared = true;
        }
        cleared
    }
}

fn earliest<const N: usize>(times: [Option<Timestamp>; N]) -> Option<Timestamp> {
    times.into_iter().flatten().min()
}
