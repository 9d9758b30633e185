//! What must hold.

use std::{collections::HashMap, fmt, time::Duration};

use super::{
    Algorithm, Member, Violation,
    replica::Value,
    world::{Slot, World},
};
use crate::engine::{Counters, Role};

/// What changes no more once a leader has settled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Settled {
    won: u64,
    suspicions: u64,
    refused: u64,
}

impl World<'_> {
    /// How often all is looked at; more rarely if that takes long.
    pub fn looks_every(&self) -> Duration {
        CHECK * (1 + self.plan.members.len() * self.plan.keys / 2000) as u32
    }

    pub fn check(&mut self) -> Result<(), Violation> {
        let (now, calm) = (self.now, self.calm());
        self.wanted.retain(|at| now - *at <= SPAN);
        let mut oldest_of_all = Duration::ZERO;
        for one in 0..self.slots.len() {
            let begun = &mut self.slots[one].begun;
            while begun.front().is_some_and(|begun| now - *begun > SPAN) {
                begun.pop_front();
            }
            let slot = &self.slots[one];
            let Some(replica) = &slot.replica else { continue };
            // What the engine is compared with promises nothing.
            let Some(engine) = replica.contender.engine() else { continue };
            if !(1..=16).contains(&engine.window()) {
                return Err(self.violation("the window is within its bounds", one, engine.window()));
            }
            if engine.patience() > self.plan.term {
                let detail = format!("{:?}", engine.patience());
                return Err(self.violation("patience is never above the term", one, detail));
            }
            // A tenth more than the term, and what rivals draw.
            let by_work = self.plan.term.mul_f64(1.1) + engine.echo() * self.plan.tuning.rival_echoes;
            let most = self.plan.election.unwrap_or(by_work);
            let lease = engine.lease_end() - replica.local(now);
            let latest = replica.witness.latest_end(engine);
            if self.plan.election.is_none() && replica.is_leader(now) && engine.lease_end() > latest {
                let detail = format!("{:?}, not {latest:?}", engine.lease_end());
                return Err(self.violation(
                    "a leader's lease counts from the start of its attempts",
                    one,
                    detail,
                ));
            }
            if !slot.paused && lease > most {
                let detail = format!("{lease:?}, {most:?} allowed");
                return Err(self.violation("a lease ends within its bounds", one, detail));
            }
            let most = (self.wanted.len() + 2) * self.plan.members[one].keys * 3 + 200;
            if slot.begun.len() > most {
                let detail = format!("{} attempts in {SPAN:?}, {most} allowed", slot.begun.len());
                return Err(self.violation("no replica exceeds its attempt rate", one, detail));
            }
            for (since, key) in replica.pending() {
                // Whoever is luckier writes what changes faster than it can be written.
                let is_disputed = !self.is_easy() && self.is_shared(one, key);
                let longest = if is_disputed { DISPUTED } else { self.old() };
                let age = now - since.max(self.plan.storm.min(now));
                if calm > longest && age > longest {
                    let detail = format!("key {key} is pending for {age:?}:\n{}", self.standing());
                    return Err(self.violation("every pending key is done in time", one, detail));
                }
                if !is_disputed {
                    oldest_of_all = oldest_of_all.max(age);
                }
            }
        }
        self.tally.oldest = self.tally.oldest.max(oldest_of_all);
        self.check_leaders()?;
        self.check_stability()
    }

    /// What was wanted last gets as long as anything else.
    pub fn may_go_on(&self, at: Duration) -> bool {
        let mut replicas = self.slots.iter().filter_map(|slot| slot.replica.as_ref());
        let last = self.plan.last_want() + self.old();
        self.checks && at <= last && replicas.any(|replica| replica.pending().next().is_some())
    }

    /// At the end nothing is pending, and all is as it should be.
    pub fn check_the_end(&mut self) -> Result<(), Violation> {
        for (one, slot) in self.slots.iter().enumerate() {
            let Some(replica) = &slot.replica else { continue };
            let Some(engine) = replica.contender.engine() else { continue };
            self.tally.won += engine.counters().won;
            self.tally.suspicions += engine.counters().suspicions;
            if !self.checks {
                continue;
            }
            if let Some((since, key)) = replica.pending().min() {
                let detail = format!("key {key}, since {since:?}:\n{}", self.standing());
                return Err(self.violation("nothing is pending at the end", one, detail));
            }
            for (key, value) in self.store.iter().enumerate() {
                let Some(goal) = replica.goal(key) else { continue };
                let is_ours = value.group == self.plan.members[one].group;
                if value.round < goal || !(is_ours || self.is_shared(one, key)) {
                    let detail = format!("key {key} is at {value:?}, round {goal} is wanted");
                    return Err(self.violation("all is as it should be at the end", one, detail));
                }
            }
        }
        Ok(())
    }

    /// Of the replicas that want the same, exactly one leads in the end. An election never lets two.
    pub fn check_leaders(&mut self) -> Result<(), Violation> {
        let (now, calm) = (self.now, self.calm());
        let (is_steady, is_easy) = (self.is_steady(), self.is_easy());
        if self.plan.algorithm != Algorithm::Lease || !self.checks {
            return Ok(());
        }
        let mut leaders: HashMap<u8, usize> = HashMap::new();
        for (slot, member) in self.slots.iter().zip(&self.plan.members) {
            *leaders.entry(member.group).or_default() += usize::from(slot.leads(now));
        }
        for (group, leaders) in leaders {
            let mut ranges = self.plan.members.iter().filter(|member| member.group == group);
            let first = ranges.next().map(Member::range);
            let are_same = ranges.all(|member| Some(member.range()) == first);
            let is_alone = self.plan.members.iter().all(|member| member.group == group);
            let is_settled = calm > SETTLED && is_steady && are_same && (is_easy || is_alone);
            if leaders > 1 && (is_settled || self.plan.election.is_some()) {
                let detail = format!("{leaders} lead:\n{}", self.standing());
                return Err(self.violation("no two replicas lead", 0, detail));
            }
            if leaders > 0 || !(is_steady && are_same && is_easy) || calm.is_zero() {
                self.leaderless.remove(&group);
                continue;
            }
            let leaderless = now - *self.leaderless.entry(group).or_insert(now);
            self.tally.leaderless = self.tally.leaderless.max(leaderless);
            if leaderless > LEADERLESS {
                let detail = format!("none for {leaderless:?}:\n{}", self.standing());
                return Err(self.violation("one replica leads", 0, detail));
            }
        }
        Ok(())
    }

    /// One group that wants the same, whose leader has settled and has nothing in its way, changes nothing any more.
    fn check_stability(&mut self) -> Result<(), Violation> {
        let first = &self.plan.members[0];
        let all_want = |member: &Member| (member.range(), member.group) == (first.range(), first.group);
        if self.calm() < SETTLED
            || !self.is_steady()
            || !self.is_easy()
            || !self.plan.members.iter().all(all_want)
            || self.plan.election.is_some()
        {
            return Ok(());
        }
        let engines = || self.slots.iter().filter_map(|slot| slot.replica.as_ref()?.contender.engine());
        let sum = |of: fn(&Counters) -> u64| engines().map(|engine| of(&engine.counters())).sum::<u64>();
        let now =
            Settled { won: sum(|c| c.won), suspicions: sum(|c| c.suspicions), refused: self.tally.refused };
        if !self.slots.iter().any(|slot| slot.leads(self.now)) {
            return Ok(());
        }
        let Some(before) = self.settled else {
            self.settled = Some(now);
            return Ok(());
        };
        if now != before {
            let detail = format!("{before:?} became {now:?}:\n{}", self.standing());
            return Err(self.violation("a leader that has settled stays, unchallenged", 0, detail));
        }
        Ok(())
    }

    /// What an engine was told moved it as it should.
    pub fn check_witness(&self, one: usize) -> Result<(), Violation> {
        let broken = self.slots[one].replica.as_ref().and_then(|replica| replica.witness.broken());
        broken.map_or(Ok(()), |(promise, detail)| Err(self.violation(promise, one, detail)))
    }

    /// Who competes makes one attempt at a time, and nobody any who is not elected. This many have just begun.
    pub fn check_begins(&mut self, one: usize, count: usize) -> Result<(), Violation> {
        // Most polls begin nothing.
        if count == 0 {
            return Ok(());
        }
        let now = self.now;
        let replica = self.replica(one);
        let leads = replica.is_leader(now);
        let is_silent = replica.witness.is_silent();
        let Some(engine) = replica.contender.engine() else { return Ok(()) };
        let competes = match engine.role() {
            Role::Election => true,
            Role::Leader => !leads,
            Role::Follower => false,
        };
        let out = replica.attempts_since(now.saturating_sub(SLOT));
        if competes && out > 1 {
            return Err(self.violation("who competes makes one attempt at a time", one, out));
        }
        if is_silent && out > 1 {
            return Err(self.violation(
                "one attempt at a time finds out whether the store is back",
                one,
                out,
            ));
        }
        if self.plan.election.is_some() && !leads {
            return Err(self.violation("nobody works who is not elected", one, count));
        }
        Ok(())
    }

    /// No write that landed is undone by one that knew less.
    pub fn check_write(&self, one: usize, key: usize, value: Value) -> Result<(), Violation> {
        let before = self.store[key];
        if before.group == value.group && before.round > value.round {
            let detail = format!("key {key} was at {before:?}, and is at round {}", value.round);
            return Err(self.violation("no write is lost", one, detail));
        }
        Ok(())
    }

    /// For how long a key may be pending.
    fn old(&self) -> Duration {
        self.plan.term + OLD
    }

    /// For how long all has been well.
    fn calm(&self) -> Duration {
        self.now.saturating_sub(self.plan.storm)
    }

    /// Whether there is still work.
    fn is_steady(&self) -> bool {
        self.now < self.plan.last_want()
    }

    /// Whether one alone keeps up.
    fn is_easy(&self) -> bool {
        self.plan.cadence >= 8 * self.plan.latency
    }

    /// Whether another group wants something else of a key.
    fn is_shared(&self, one: usize, key: usize) -> bool {
        let ours = self.plan.members[one].group;
        let mut others = self.plan.members.iter().filter(|other| other.group != ours);
        others.any(|other| other.range().contains(&key))
    }

    /// How it stands, for whoever has to find out why.
    fn standing(&self) -> String {
        let stands = |slot: &Slot| {
            let Some(replica) = &slot.replica else { return "dead".to_owned() };
            let Some(engine) = replica.contender.engine() else { return "alive".to_owned() };
            format!(
                "{:?}, tick {}, lease {:?}, patience {:?}, echo {:?}, {} pending, {} out, {:?}",
                engine.role(),
                engine.losses(),
                engine.lease_end() - replica.local(self.now),
                engine.patience(),
                engine.echo(),
                engine.len(),
                engine.in_flight(),
                engine.counters()
            )
        };
        self.slots.iter().map(stands).collect::<Vec<_>>().join("\n")
    }

    pub fn violation(&self, promise: &'static str, one: usize, detail: impl fmt::Display) -> Violation {
        Violation { promise, at: self.now, detail: format!("replica {one}: {detail}") }
    }
}

/// For so long an attempt holds its slot, by any clock.
const SLOT: Duration = Duration::from_secs(4);
/// Between two looks at what must hold.
const CHECK: Duration = Duration::from_millis(250);
/// Attempts are counted over this time.
const SPAN: Duration = Duration::from_secs(10);
/// Once all is well, no key is pending for longer than a term, above which patience never is, and this: attempts take their
/// time, too, and may be refused.
const OLD: Duration = Duration::from_secs(30);
/// Nor any over which two groups fight than this.
const DISPUTED: Duration = Duration::from_secs(150);
/// Once all has been well for so long, no two lead.
const SETTLED: Duration = Duration::from_secs(60);
/// Once all is well, nobody leads for no longer than this.
const LEADERLESS: Duration = Duration::from_secs(120);
