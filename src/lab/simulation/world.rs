//! The world: one queue of events, and what each of them does. What must hold is checked in `promises`.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    FaultKind, Lap, Plan, Tally, Violation,
    election::Election,
    event::{Agenda, Event},
    post::{Letter, Post},
    promises::Settled,
    replica::{Begin, Change, Replica, Value},
};
use crate::engine::outcome::Outcome;

pub(super) struct World<'a> {
    pub plan: &'a Plan,
    /// Whether it is checked what must hold in time.
    pub checks: bool,
    pub dice: SmallRng,
    pub now: Duration,
    agenda: Agenda,
    /// News that are on their way.
    posts: Vec<Post>,
    free_posts: Vec<usize>,
    /// Of the last request.
    serial: u64,
    pub store: Vec<Value>,
    /// Of the last write.
    order: u64,
    election: Election,
    pub round: u64,
    pub slots: Vec<Slot>,
    /// Whom each fault struck that strikes whoever leads.
    pub struck: Vec<Option<usize>>,
    /// When all were told to want something, in the last while.
    pub wanted: VecDeque<Duration>,
    /// Since when nobody leads, of each group.
    pub leaderless: HashMap<u8, Duration>,
    /// Where it stood once a leader had settled.
    pub settled: Option<Settled>,
    pub tally: Tally,
    laps: Vec<Lap>,
    /// How many keys are not at the last round yet.
    behind: usize,
}

/// A place for a replica, which may die and come back.
#[derive(Default)]
pub(super) struct Slot {
    pub replica: Option<Replica>,
    /// Counts the lives.
    pub life: u32,
    pub paused: bool,
    pub cut: bool,
    pub blind: bool,
    /// What came in while it was paused.
    pub waiting: Vec<Event>,
    /// When it will be asked again.
    pub wakes: Option<Duration>,
    /// When the last news arrives that is on its way.
    pub news_until: Duration,
    /// The request of each key that waits for an answer.
    pub requests: BTreeMap<usize, u64>,
    /// When the last attempts began, for their rate.
    pub begun: VecDeque<Duration>,
    /// When it asked for the office, of what it was told last.
    pub asked: Duration,
}

impl Slot {
    pub fn leads(&self, now: Duration) -> bool {
        self.replica.as_ref().is_some_and(|replica| replica.is_leader(now))
    }
}

impl<'a> World<'a> {
    pub fn new(plan: &'a Plan, checks: bool) -> Self {
        let mut world = Self {
            plan,
            checks,
            dice: SmallRng::seed_from_u64(plan.seed ^ 0x5eed),
            now: Duration::ZERO,
            agenda: Agenda::default(),
            posts: Vec::new(),
            free_posts: Vec::new(),
            serial: 0,
            store: vec![Value::default(); plan.keys],
            order: 0,
            election: Election::default(),
            round: 0,
            slots: Vec::new(),
            struck: vec![None; plan.faults.len()],
            wanted: VecDeque::new(),
            leaderless: HashMap::new(),
            settled: None,
            tally: Tally::default(),
            laps: Vec::new(),
            behind: 0,
        };
        for one in 0..plan.members.len() {
            world.slots.push(Slot::default());
            world.starts(one);
        }
        for (fault, spec) in plan.faults.iter().enumerate() {
            world.at(spec.from, Event::Begins { fault });
            world.at(spec.until, Event::Ends { fault });
        }
        world.at(plan.cadence, Event::Round);
        if checks {
            world.at(world.looks_every(), Event::Check);
        }
        world
    }

    pub fn run(mut self) -> Result<(Tally, Vec<Lap>), Violation> {
        let end = self.plan.end();
        while let Some((at, event)) = self.agenda.pop()
            && (at <= end || self.may_go_on(at))
        {
            self.now = at;
            self.handle(event)?;
        }
        self.tally.time = end;
        self.tally.rounds = self.round;
        self.check_the_end()?;
        Ok((self.tally, self.laps))
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        // Whoever is stopped takes nothing in; it is all there when it goes on.
        if let Some((one, life)) = event.addressee() {
            let slot = &mut self.slots[one];
            if life != slot.life || slot.replica.is_none() {
                return Ok(());
            }
            if slot.paused {
                slot.waiting.push(event);
                return Ok(());
            }
        }
        match event {
            Event::Round => self.next_round(),
            Event::Wants { one, round, .. } => {
                let (plan, member, now) = (self.plan, self.plan.members[one], self.now);
                for key in member.range() {
                    if plan.is_wanted(key, round) {
                        self.replica(one).wants(now, key, round);
                    } else {
                        self.replica(one).leaves(now, key);
                    }
                }
                self.polls(one)?;
            }
            Event::Wake { one, .. } => {
                self.slots[one].wakes = None;
                self.polls(one)?;
            }
            Event::Reading { one, life, key, request } => {
                if self.is_connected(one) {
                    let value = self.store[key];
                    let arrives = self.now + self.half();
                    self.at(arrives, Event::Read { one, life, key, request, value });
                }
            }
            Event::Read { one, life, key, request, value } => {
                if self.is_answered(one, key, request) {
                    let now = self.now;
                    let attempt = self.replica(one).attempt(key);
                    if let Some(round) = self.replica(one).read(now, key, value)
                        && let Some(begin) = attempt
                    {
                        let request = self.request(one, key, Some(round));
                        let arrives = self.now + self.half();
                        let value = Value { round, group: self.plan.members[one].group, ..value };
                        self.at(arrives, Event::Writing { one, life, key, request, value, begin });
                    }
                    self.polls(one)?;
                }
            }
            Event::Writing { one, life, key, request, value, begin } => {
                if !self.is_connected(one) {
                    return Ok(());
                }
                let is_lost = self.lasts(FaultKind::LostAnswers) && self.dice.random_bool(0.5);
                let landed = if self.plan.election.is_some() && !self.election.admits(self.now, begin.fence) {
                    self.tally.fenced += 1;
                    Err(Outcome::WrittenByOther)
                } else if self.store[key].order != value.order {
                    self.tally.refused += 1;
                    if let Some(lap) = self.laps.last_mut() {
                        lap.refused += 1;
                    }
                    Err(Outcome::Conflict)
                } else {
                    self.check_write(one, key, value)?;
                    self.tally.landed += 1;
                    self.note_write(key, value);
                    let landed = self.writes(key, value);
                    self.tell(key, landed, (!is_lost).then_some((one, life, begin.began)));
                    Ok(landed)
                };
                if !is_lost {
                    let arrives = self.now + self.half();
                    self.at(arrives, Event::Wrote { one, life, key, request, landed });
                }
            }
            Event::Wrote { one, key, request, landed, .. } => {
                if self.is_connected(one) && self.is_answered(one, key, request) {
                    let now = self.now;
                    match landed {
                        Ok(value) => self.replica(one).wrote(now, key, value),
                        Err(outcome) => self.replica(one).failed(now, key, outcome, None),
                    }
                    self.polls(one)?;
                }
            }
            Event::Timeout { one, key, request, sent, .. } => {
                if self.is_answered(one, key, request) {
                    let now = self.now;
                    self.replica(one).failed(now, key, Outcome::Failed, sent);
                    self.polls(one)?;
                }
            }
            Event::Delivery { post } => {
                let hears = self.posts[post].take();
                self.send(post);
                if let Some(hears) = hears {
                    return self.handle(hears);
                }
            }
            Event::Lists { one, since, .. } => {
                if !self.slots[one].cut && !self.slots[one].blind {
                    let now = self.now;
                    self.replica(one).lists(now, now - since);
                }
            }
            Event::Hears { one, change, .. } => {
                if !self.slots[one].cut && !self.slots[one].blind {
                    let now = self.now;
                    self.replica(one).hears(now, change);
                    self.polls(one)?;
                }
            }
            Event::Begins { fault } => self.begins(fault),
            Event::Ends { fault } => self.ends(fault),
            Event::Edit { fault } => self.edits(fault),
            Event::Stands { one, life } => {
                let (arrives, Some(ttl)) = (self.now + self.half(), self.plan.election) else {
                    return Ok(());
                };
                self.at(arrives, Event::Asks { one, life, asked: self.now });
                self.at(self.now + ttl / 3, Event::Stands { one, life });
            }
            Event::Asks { one, life, asked } => {
                if self.is_connected(one)
                    && let Some(ttl) = self.plan.election
                {
                    let fence = self.election.asks(self.now, (one, life), ttl);
                    let arrives = self.now + self.half();
                    self.at(arrives, Event::Told { one, life, asked, fence });
                }
            }
            Event::Told { one, asked, fence, .. } => {
                // Answers may overtake each other.
                if self.is_connected(one)
                    && self.slots[one].asked < asked
                    && let Some(ttl) = self.plan.election
                {
                    self.slots[one].asked = asked;
                    let now = self.now;
                    match fence {
                        // Clocks differ by as much.
                        Some(fence) => self.replica(one).elected(now, asked, ttl.mul_f64(0.95), fence),
                        None => self.replica(one).not_elected(now),
                    }
                    self.check_leaders()?;
                    self.polls(one)?;
                }
            }
            Event::Check => {
                self.at(self.now + self.looks_every(), Event::Check);
                self.check()?;
            }
        }
        Ok(())
    }

    fn next_round(&mut self) {
        if self.now > self.plan.last_want() {
            return;
        }
        self.round += 1;
        for one in 0..self.slots.len() {
            let (life, at) = (self.slots[one].life, self.now + self.half());
            if self.slots[one].replica.is_some() {
                self.at(at, Event::Wants { one, life, round: self.round });
            }
        }
        self.wanted.push_back(self.now);
        self.behind = self.plan.keys;
        self.laps.push(Lap { began: self.now, ..Lap::default() });
        let burst = self.lasts(FaultKind::Burst);
        let gap = if burst { self.plan.cadence.min(self.plan.latency) } else { self.plan.cadence };
        self.at(self.now + gap, Event::Round);
    }

    /// A write of a replica lands.
    fn note_write(&mut self, key: usize, value: Value) {
        let Some(lap) = self.laps.last_mut() else { return };
        let since = self.now - lap.began;
        lap.landed += 1;
        lap.first_write.get_or_insert(since);
        if value.round == self.round && self.store[key].round < self.round {
            // What was deleted is written twice.
            self.behind = self.behind.saturating_sub(1);
            if self.behind == 0 {
                lap.right = Some(since);
            }
        }
    }

    /// Lets a replica begin what it may, and sees to it that it is asked again.
    fn polls(&mut self, one: usize) -> Result<(), Violation> {
        let (now, life) = (self.now, self.slots[one].life);
        let begins = self.replica(one).polls(now);
        let begins = begins.map_err(|key| self.violation("no key has two attempts at once", one, key))?;
        self.check_witness(one)?;
        self.check_begins(one, begins.len())?;
        for Begin { key, .. } in begins {
            let request = self.request(one, key, None);
            let at = self.now + self.half();
            self.slots[one].begun.push_back(now);
            self.at(at, Event::Reading { one, life, key, request });
        }
        let wakes = self.replica(one).wakes();
        if let Some(wakes) = wakes.filter(|wakes| self.slots[one].wakes.is_none_or(|before| *wakes < before))
        {
            let wakes = wakes.max(self.now);
            self.slots[one].wakes = Some(wakes);
            self.at(wakes, Event::Wake { one, life });
        }
        Ok(())
    }

    /// A request that waits for an answer, for so long.
    fn request(&mut self, one: usize, key: usize, sent: Option<u64>) -> u64 {
        self.serial += 1;
        let (request, life) = (self.serial, self.slots[one].life);
        self.slots[one].requests.insert(key, request);
        self.agenda.push_orderly(self.now + REQUEST, Event::Timeout { one, life, key, request, sent });
        request
    }

    /// Whether this was what was waited for.
    fn is_answered(&mut self, one: usize, key: usize, request: u64) -> bool {
        let requests = &mut self.slots[one].requests;
        let waits = requests.get(&key) == Some(&request);
        if waits {
            requests.remove(&key);
        }
        waits
    }

    /// Changes a key.
    pub fn writes(&mut self, key: usize, value: Value) -> Value {
        self.order += 1;
        self.store[key] = Value { order: self.order, ..value };
        self.store[key]
    }

    /// Tells all of a change; the writer also since when it had been at it.
    pub fn tell(&mut self, key: usize, value: Value, writer: Option<(usize, u32, Duration)>) {
        let change = Change { key, value, listing: false, ours_since: None };
        let mut letters = Vec::with_capacity(self.slots.len());
        for one in 0..self.slots.len() {
            let life = self.slots[one].life;
            let ours_since =
                writer.filter(|(writer, of, _)| (*writer, *of) == (one, life)).map(|(.., since)| since);
            let unordered = self.one_in(self.plan.disorder);
            let mut arrives = self.now + self.half();
            if unordered {
                arrives += self.half();
            } else {
                arrives = arrives.max(self.slots[one].news_until);
                self.slots[one].news_until = arrives;
            }
            letters.push(Letter { arrives, one, life, ours_since });
            if self.one_in(self.plan.disorder) {
                letters.push(Letter { arrives: arrives + self.half(), one, life, ours_since: None });
            }
        }
        let post = Post::new(change, letters);
        let place = self.free_posts.pop().unwrap_or(self.posts.len());
        if place == self.posts.len() {
            self.posts.push(post);
        } else {
            self.posts[place] = post;
        }
        self.send(place);
    }

    /// The next one of these letters is on its way.
    fn send(&mut self, place: usize) {
        match self.posts[place].next() {
            Some(arrives) => self.at(arrives, Event::Delivery { post: place }),
            None => self.free_posts.push(place),
        }
    }

    /// The watch of a replica begins anew; the first answer tells how far away the store is.
    pub fn lists(&mut self, one: usize) {
        let life = self.slots[one].life;
        let arrives = self.now + self.half() + self.half();
        self.slots[one].news_until = arrives;
        self.at(arrives, Event::Lists { one, life, since: self.now });
        for key in 0..self.store.len() {
            let change = Change { key, value: self.store[key], listing: true, ours_since: None };
            if change.value.order > 0 {
                self.at(arrives, Event::Hears { one, life, change });
            }
        }
    }

    pub fn replica(&mut self, one: usize) -> &mut Replica {
        // Events of former lives are dropped before.
        self.slots[one].replica.as_mut().expect("it lives")
    }

    pub fn lasts(&self, kind: FaultKind) -> bool {
        let now = self.now;
        self.plan.faults.iter().any(|fault| fault.kind == kind && fault.from <= now && now < fault.until)
    }

    /// Whether a replica and the store hear of each other.
    fn is_connected(&self, one: usize) -> bool {
        !self.slots[one].cut && !self.lasts(FaultKind::Outage)
    }

    /// How long a message takes, one way.
    pub fn half(&mut self) -> Duration {
        let usual = self.plan.latency / 2;
        let spread = usual.mul_f64(self.dice.random_range(0.8..1.2));
        if self.one_in(self.plan.tail) { spread * self.dice.random_range(10..100) } else { spread }
    }

    /// While the storm lasts.
    pub fn one_in(&mut self, many: u32) -> bool {
        many > 0 && self.now < self.plan.storm && self.dice.random_range(0..many) == 0
    }

    pub fn at(&mut self, at: Duration, event: Event) {
        self.agenda.push(at, event);
    }
}

/// How long a request waits for its answer.
const REQUEST: Duration = Duration::from_secs(5);
