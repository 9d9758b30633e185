//! The end of an attempt: its effect on the role and the lease, and the future of its job.

use std::{hash::Hash, time::Duration};

use super::{
    Engine,
    attempt::AttemptId,
    backoff::seconds,
    contest::Role,
    in_flight::{Flight, Kind},
    incumbent::Incumbent,
    outage::Failed,
    outcome::{Next, Outcome, Verdict},
    queue::{Class, Requeue},
    roster::Turn,
    time::Timestamp,
};

/// How long a denied request waits for its next attempt: no event reports new rights.
const DENIED_RETRY: Duration = Duration::from_secs(60);

/// How many setbacks in a row are worth a warning: one may be an accident, and two the end of an
/// outage.
const KEEPS_FAILING: u8 = 3;

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Takes in how an attempt ended. Returns the job if it is no longer needed: it was done, a
    /// newer one replaced it, or its key was cleared meanwhile.
    pub fn handle_outcome(&mut self, now: Timestamp, id: AttemptId, verdict: Verdict, job: J) -> Option<J> {
        let now = self.advance(now);
        let Some(flight) = self.land(id) else { return Some(job) };
        // An attempt from before the last change of role reports a situation that is over (rule 4).
        let contest = &self.shards[usize::from(flight.shard)].contest;
        let current = flight.role_generation == contest.role_generation();
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
                self.queue.set_incumbent_of(now, flight.slot, Incumbent::Other);
                if current && self.authority.is_by_work() {
                    self.lose(now, flight.shard, false);
                }
            }
            Outcome::Conflict => {
                self.counters.conflicts += 1;
                setbacks = self.queue.setbacks(flight.slot).saturating_add(1);
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
                setbacks = self.queue.setbacks(flight.slot).saturating_add(1);
                self.counters.kept_failing += u64::from(setbacks == KEEPS_FAILING);
                backoff = self.failed(now, &flight, setbacks, current);
            }
            Outcome::Unchanged => {
                self.counters.unchanged += 1;
                self.decided = true;
            }
            Outcome::Denied => {
                self.counters.denied += 1;
                self.decided = true;
                backoff = DENIED_RETRY;
            }
        }
        let delay = match verdict.next {
            _ if flight.cleared => None,
            Next::Done => None,
            Next::Retry => Some(backoff),
            // The job cannot know how often its key failed, nor how long an outage pauses.
            Next::RetryAfter(delay) if verdict.outcome == Outcome::Failed => Some(delay.max(backoff)),
            Next::RetryAfter(delay) => {
                // The job chose to wait, so a newer one need not.
                setbacks = 0;
                Some(delay)
            }
        };
        // A request that was fulfilled, by whomever, and is repeated is a new one, with a new age.
        let (failed, denied) = (verdict.outcome == Outcome::Failed, verdict.outcome == Outcome::Denied);
        let fulfilled =
            matches!(verdict.outcome, Outcome::Written | Outcome::Unchanged | Outcome::WrittenByOther);
        if fulfilled {
            self.last_success = now;
        }
        let again = delay.map(|delay| Requeue { at: now + delay, fulfilled, setbacks, failed, denied });
        self.finish(&flight, job, again)
    }

    /// Takes in that an attempt panicked. Only its key is concerned, which is tried again after the
    /// retry interval. Returns the job if it is no longer needed.
    pub fn handle_panic(&mut self, now: Timestamp, id: AttemptId, job: J) -> Option<J> {
        let now = self.advance(now);
        let Some(flight) = self.land(id) else { return Some(job) };
        self.counters.panics += 1;
        let setbacks = self.queue.setbacks(flight.slot).saturating_add(1);
        let at = now + self.config.retry_interval;
        let again = (!flight.cleared).then_some(Requeue {
            at,
            fulfilled: false,
            setbacks,
            failed: true,
            denied: false,
        });
        self.finish(&flight, job, again)
    }

    fn write_succeeded(&mut self, now: Timestamp, flight: &Flight, revision: Option<u64>, current: bool) {
        let shard = &mut self.shards[usize::from(flight.shard)];
        // Evidence that came during the attempt may be of a later write. A key of a shard that we gave up
        // meanwhile is the next one's.
        if !flight.cleared {
            let is_given_up = shard.turn == Turn::Other && flight.started < shard.handed_over;
            let by = if is_given_up { Incumbent::Other } else { Incumbent::Us };
            self.queue.set_incumbent_of(now, flight.slot, by);
        }
        shard.contest.wrote(now);
        if flight.kind == Kind::Takeover {
            shard.takeovers.grow(self.config.tuning.window_growth);
        }
        if !self.authority.is_by_work() {
            // The election says how long we lead; a write only shows that the store keeps up.
            self.decided = true;
            if current {
                shard.window.grow(self.config.tuning.window_growth);
            }
            return;
        }
        let term = self.config.term;
        let is_silent = matches!(flight.kind, Kind::Probe { silent: true, .. });
        // An attempt that took longer than the term extends nothing: its lease is over already
        // (rule 9).
        if !current || flight.started + term <= now {
            return;
        }
        if is_silent {
            // What the silent ones wrote is nobody's by now.
            self.queue.change_incumbents(now, |number, incumbent| match incumbent {
                Incumbent::Other if number == flight.shard => Incumbent::Nobody,
                incumbent => incumbent,
            });
        } else if shard.contest.role() != Role::Leader && !matches!(flight.kind, Kind::Probe { .. }) {
            // A key of ours, or one that we took over: the lease is another's.
            return;
        }
        // A member that was heard of when we won, or that had nothing to do, gets a term to show itself.
        let has_led = shard.contest.role() == Role::Leader && now - shard.contest.role_since() > term;
        if let Some(roster) = self.roster.as_mut().filter(|_| is_silent || has_led) {
            // Several may have taken its shards over. The first to ask silences the rest.
            let spread = self.echo.current().saturating_mul(self.config.tuning.rival_echoes);
            let drawn = seconds(spread.as_secs_f64() * self.rng.truncated_exponential());
            let since = self.queue.pending_since(flight.slot, false).unwrap_or(flight.started);
            if has_led || roster.last_sign(flight.shard) <= since {
                roster.doubt(flight.shard, now + drawn);
            }
        }
        // Slow start begins anew after an idle term.
        if !shard.contest.leads(now) {
            shard.window.close();
        }
        let won = shard.contest.win(flight.started, term, revision);
        self.led_until = self.led_until.max(shard.contest.lease_end());
        if won {
            self.counters.won += 1;
            self.role_generation += 1;
            self.decided = true;
        } else {
            shard.window.grow(self.config.tuning.window_growth);
        }
    }

    fn refused(&mut self, now: Timestamp, id: AttemptId, flight: &Flight) {
        let next_serial = self.in_flight.next_serial();
        let shard = &mut self.shards[usize::from(flight.shard)];
        match flight.kind {
            Kind::Lead => shard.window.halve(id.0, next_serial),
            // The object changed since we read it: the suspected leader is alive.
            Kind::Probe { suspicion: true, .. } => {
                shard.patience.refuted(&self.config, &mut self.rng);
                shard.contest.sign_of_life(now, shard.patience.unspread());
            }
            Kind::Takeover => shard.takeovers.halve(id.0, next_serial),
            Kind::Probe { .. } | Kind::Own => {}
        }
    }

    /// Returns how long the key waits by itself. Pauses all attempts if other keys fail, too.
    fn failed(&mut self, now: Timestamp, flight: &Flight, setbacks: u8, current: bool) -> Duration {
        let (floor, cap) = (self.slowest_news(), self.config.retry_interval);
        let failed = Failed { key: self.queue.identity(flight.slot), before: flight.failed_before };
        let (backoff, rng) = (&self.backoff, &mut self.rng);
        let news = current
            && self.outage.failed(now, flight.started, failed, cap, |streak| {
                backoff.after_failure(streak, floor, cap, rng)
            });
        let shard = &mut self.shards[usize::from(flight.shard)];
        if news && shard.contest.role() == Role::Leader {
            shard.window.close();
        }
        let own = self.backoff.after_failure(u32::from(setbacks), floor, cap, &mut self.rng);
        own.max(self.others_first(now))
    }

    /// Returns a delay that lets the other keys go first when the pause of an outage ends. A key
    /// that always fails must not be the one that tests, again and again, whether the store is
    /// back.
    fn others_first(&self, now: Timestamp) -> Duration {
        (self.outage.until(Class::Failed) - now).saturating_add(self.config.backoff_base)
    }

    /// Takes the attempt's key out of flight. Without `again` its job is done.
    fn finish(&mut self, flight: &Flight, job: J, again: Option<Requeue>) -> Option<J> {
        match again {
            Some(again) => self.queue.requeue(flight.slot, job, again),
            None => {
                self.decided = true;
                self.queue.finish(self.clock, flight.slot);
                Some(job)
            }
        }
    }
}
