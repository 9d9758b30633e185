//! The world: one queue of events, and what each of them does.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    FaultKind, Plan, Tally, Violation,
    replica::{Change, Replica, Value},
};
use crate::work::Outcome;

pub(super) struct World<'a> {
    plan: &'a Plan,
    dice: SmallRng,
    now: Duration,
    queue: BinaryHeap<Reverse<Due>>,
    /// Of the events, so that those of one moment come in the order in which they were caused.
    serial: u64,
    store: Vec<Value>,
    /// Of the last write.
    order: u64,
    round: u64,
    slots: Vec<Slot>,
    tally: Tally,
}

/// A place for a replica, which may die and come back.
#[derive(Default)]
struct Slot {
    replica: Option<Replica>,
    /// Counts the lives.
    life: u32,
    paused: bool,
    cut: bool,
    blind: bool,
    /// What came in while it was paused.
    waiting: Vec<Event>,
    /// When it will be asked again.
    wakes: Option<Duration>,
    /// When the last news arrives that is on its way.
    news_until: Duration,
    /// The request of each key that waits for an answer.
    requests: HashMap<usize, u64>,
    /// When the last attempts began, for their rate.
    begun: Vec<Duration>,
}

struct Due {
    at: Duration,
    serial: u64,
    event: Event,
}

#[derive(Clone, Debug)]
enum Event {
    /// Everybody wants the next round.
    Round,
    /// Somebody learns of it.
    Wants {
        one: usize,
        life: u32,
        round: u64,
    },
    Wake {
        one: usize,
        life: u32,
    },
    /// A read reaches the store.
    Reading {
        one: usize,
        life: u32,
        key: usize,
        request: u64,
    },
    Read {
        one: usize,
        life: u32,
        key: usize,
        request: u64,
        value: Value,
    },
    /// A write reaches the store.
    Writing {
        one: usize,
        life: u32,
        key: usize,
        request: u64,
        round: u64,
        expected: u64,
        begun: Duration,
    },
    Wrote {
        one: usize,
        life: u32,
        key: usize,
        request: u64,
        landed: Option<Value>,
    },
    /// Nobody waits any longer for an answer.
    Timeout {
        one: usize,
        life: u32,
        key: usize,
        request: u64,
        sent: Option<u64>,
    },
    Hears {
        one: usize,
        life: u32,
        change: Change,
    },
    Begins {
        fault: usize,
    },
    Ends {
        fault: usize,
    },
    Edit {
        fault: usize,
    },
    Check,
}

impl<'a> World<'a> {
    pub fn new(plan: &'a Plan) -> Self {
        let mut world = Self {
            plan,
            dice: SmallRng::seed_from_u64(plan.seed ^ 0x5eed),
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            serial: 0,
            store: vec![Value::default(); plan.keys],
            order: 0,
            round: 0,
            slots: Vec::new(),
            tally: Tally::default(),
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
        world.at(CHECK, Event::Check);
        world
    }

    pub fn run(mut self) -> Result<Tally, Violation> {
        let end = self.plan.storm + self.plan.calm;
        while let Some(Reverse(due)) = self.queue.pop() {
            if due.at > end {
                break;
            }
            self.now = due.at;
            self.handle(due.event)?;
        }
        self.tally.time = end;
        self.tally.rounds = self.round;
        let lives = self.slots.iter().filter_map(|slot| slot.replica.as_ref());
        self.tally.won = lives.map(|replica| replica.engine.counters().won).sum();
        Ok(self.tally)
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
                let (member, now) = (&self.plan.members[one], self.now);
                for key in member.first_key..member.first_key + member.keys {
                    self.replica(one).wants(now, key, round);
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
                    let begun = self.replica(one).started(key).unwrap_or(now);
                    if let Some(round) = self.replica(one).read(now, key, value) {
                        let request = self.request(one, key, Some(round));
                        let arrives = self.now + self.half();
                        let expected = value.order;
                        self.at(arrives, Event::Writing { one, life, key, request, round, expected, begun });
                    }
                    self.polls(one)?;
                }
            }
            Event::Writing { one, life, key, request, round, expected, begun } => {
                if !self.is_connected(one) {
                    return Ok(());
                }
                let landed = (self.store[key].order == expected).then(|| self.writes(key, round));
                let is_lost = self.lasts(FaultKind::LostAnswers) && self.dice.random_bool(0.5);
                match landed {
                    Some(value) => {
                        self.tally.landed += 1;
                        self.tell(key, value, (!is_lost).then_some((one, life, begun)));
                    }
                    None => self.tally.refused += 1,
                }
                if !is_lost {
                    let arrives = self.now + self.half();
                    self.at(arrives, Event::Wrote { one, life, key, request, landed });
                }
            }
            Event::Wrote { one, key, request, landed, .. } => {
                if self.is_connected(one) && self.is_answered(one, key, request) {
                    let now = self.now;
                    match landed {
                        Some(value) => self.replica(one).wrote(now, key, value),
                        None => self.replica(one).failed(now, key, Outcome::Conflict, None),
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
            Event::Check => self.check()?,
        }
        Ok(())
    }

    fn next_round(&mut self) {
        if self.now + QUIET > self.plan.storm + self.plan.calm {
            return;
        }
        self.round += 1;
        for one in 0..self.slots.len() {
            let (life, at) = (self.slots[one].life, self.now + self.half());
            if self.slots[one].replica.is_some() {
                self.at(at, Event::Wants { one, life, round: self.round });
            }
        }
        self.at(self.now + self.plan.cadence, Event::Round);
    }

    /// Lets a replica begin what it may, and sees to it that it is asked again.
    fn polls(&mut self, one: usize) -> Result<(), Violation> {
        let (now, life) = (self.now, self.slots[one].life);
        let begins = self.replica(one).polls(now);
        let begins = begins.map_err(|key| self.violation("no key has two attempts at once", one, key))?;
        for key in begins {
            let request = self.request(one, key, None);
            let at = self.now + self.half();
            self.slots[one].begun.push(now);
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
        self.at(self.now + REQUEST, Event::Timeout { one, life, key, request, sent });
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
    fn writes(&mut self, key: usize, round: u64) -> Value {
        self.order += 1;
        self.store[key] = Value { round, order: self.order };
        self.store[key]
    }

    /// Tells all of a change; the writer also since when it had been at it.
    fn tell(&mut self, key: usize, value: Value, writer: Option<(usize, u32, Duration)>) {
        for one in 0..self.slots.len() {
            let life = self.slots[one].life;
            let ours_since =
                writer.filter(|(writer, of, _)| (*writer, *of) == (one, life)).map(|(.., since)| since);
            let change = Change { key, value, listing: false, ours_since };
            let unordered = self.one_in(self.plan.disorder);
            let mut arrives = self.now + self.half();
            if unordered {
                arrives += self.half();
            } else {
                arrives = arrives.max(self.slots[one].news_until);
                self.slots[one].news_until = arrives;
            }
            self.at(arrives, Event::Hears { one, life, change });
            if self.one_in(self.plan.disorder) {
                let again = Change { ours_since: None, ..change };
                let arrives = arrives + self.half();
                self.at(arrives, Event::Hears { one, life, change: again });
            }
        }
    }

    /// The watch of a replica begins anew.
    fn lists(&mut self, one: usize) {
        let life = self.slots[one].life;
        let arrives = self.now + self.half() + self.half();
        self.slots[one].news_until = arrives;
        for key in 0..self.store.len() {
            let change = Change { key, value: self.store[key], listing: true, ours_since: None };
            if change.value.order > 0 {
                self.at(arrives, Event::Hears { one, life, change });
            }
        }
    }

    fn starts(&mut self, one: usize) {
        let slot = &mut self.slots[one];
        slot.life += 1;
        slot.requests.clear();
        slot.waiting.clear();
        slot.wakes = None;
        let life = slot.life;
        let seed = self.plan.seed.wrapping_mul(1_000_003).wrapping_add((one as u64) << 16 | u64::from(life));
        slot.replica = Some(Replica::new(one, self.plan.term, seed, self.plan.members[one].rate, self.now));
        self.lists(one);
        if self.round > 0 {
            self.at(self.now, Event::Wants { one, life, round: self.round });
        }
    }

    fn begins(&mut self, fault: usize) {
        match self.plan.faults[fault].kind {
            FaultKind::Pause(one) => self.slots[one].paused = true,
            FaultKind::Crash(one) => {
                self.slots[one].life += 1;
                self.slots[one].replica = None;
                self.slots[one].waiting.clear();
            }
            FaultKind::Partition(one) => self.slots[one].cut = true,
            FaultKind::Blind(one) => self.slots[one].blind = true,
            FaultKind::Edits => self.at(self.now, Event::Edit { fault }),
            FaultKind::Outage | FaultKind::LostAnswers => {}
        }
    }

    fn ends(&mut self, fault: usize) {
        let kind = self.plan.faults[fault].kind;
        // Another one of the same kind may still last.
        if self.lasts(kind) {
            return;
        }
        match kind {
            FaultKind::Pause(one) => {
                self.slots[one].paused = false;
                for event in std::mem::take(&mut self.slots[one].waiting) {
                    self.at(self.now, event);
                }
            }
            FaultKind::Crash(one) if self.slots[one].replica.is_none() => self.starts(one),
            FaultKind::Partition(one) => {
                self.slots[one].cut = false;
                self.lists(one);
            }
            FaultKind::Blind(one) => {
                self.slots[one].blind = false;
                self.lists(one);
            }
            FaultKind::Crash(_) | FaultKind::Edits | FaultKind::Outage | FaultKind::LostAnswers => {}
        }
    }

    /// Somebody else changes something that is nobody's want.
    fn edits(&mut self, fault: usize) {
        if self.now >= self.plan.faults[fault].until {
            return;
        }
        let key = self.dice.random_range(0..self.store.len());
        let value = self.writes(key, self.store[key].round);
        self.tell(key, value, None);
        self.at(self.now + self.plan.latency.max(EDIT), Event::Edit { fault });
    }

    fn check(&mut self) -> Result<(), Violation> {
        self.at(self.now + CHECK, Event::Check);
        let calm = self.now.saturating_sub(self.plan.storm);
        let (mut leaders, mut oldest_of_all) = (0, Duration::ZERO);
        for one in 0..self.slots.len() {
            let now = self.now;
            self.slots[one].begun.retain(|begun| now - *begun <= SPAN);
            let slot = &self.slots[one];
            let (begun, paused) = (slot.begun.len(), slot.paused);
            let Some(replica) = &slot.replica else { continue };
            let engine = &replica.engine;
            leaders += usize::from(engine.is_leader(replica.local(now)));
            let oldest = replica.wants.iter().map(|(key, want)| (want.oldest().1, *key)).min();
            if !(1..=16).contains(&engine.window()) {
                return Err(self.violation("the window is within its bounds", one, engine.window()));
            }
            if engine.patience() > self.plan.term {
                return Err(self.violation(
                    "patience is never above the term",
                    one,
                    format!("{:?}", engine.patience()),
                ));
            }
            let lease = engine.lease_end() - replica.local(now);
            if !paused && lease > self.plan.term * 2 {
                return Err(self.violation("a lease ends within its bounds", one, format!("{lease:?}")));
            }
            let wanted = SPAN.div_duration_f64(self.plan.cadence) + 2.0;
            let most = wanted * self.plan.members[one].keys as f64 * 3.0 + 200.0;
            if begun as f64 > most {
                let detail = format!("{begun} attempts in {SPAN:?}, {most:.0} allowed");
                return Err(self.violation("no replica exceeds its attempt rate", one, detail));
            }
            if let Some((since, key)) = oldest {
                let age = now - since.max(self.plan.storm.min(now));
                if calm > OLD && age > OLD {
                    let detail = format!("key {key} is pending for {age:?}:\n{}", self.standing());
                    return Err(self.violation("every pending key is done in time", one, detail));
                }
                oldest_of_all = oldest_of_all.max(age);
            }
        }
        self.tally.oldest = self.tally.oldest.max(oldest_of_all);
        let same = self.plan.members.iter().all(|member| {
            (member.first_key, member.keys) == (self.plan.members[0].first_key, self.plan.members[0].keys)
        });
        let steady = self.now + QUIET < self.plan.storm + self.plan.calm;
        if same && steady && calm > SETTLED && leaders > 1 {
            let detail = format!("{leaders} lead:\n{}", self.standing());
            return Err(self.violation("no two replicas lead", 0, detail));
        }
        Ok(())
    }

    /// How it stands, for whoever has to find out why.
    fn standing(&self) -> String {
        let stands = |slot: &Slot| {
            let Some(replica) = &slot.replica else { return "dead".to_owned() };
            let (engine, now) = (&replica.engine, replica.local(self.now));
            format!(
                "{:?}, tick {}, lease {:?}, patience {:?}, echo {:?}, {} pending, {} out, {:?}",
                engine.role(),
                engine.tick(),
                engine.lease_end() - now,
                engine.patience(),
                engine.echo(),
                engine.len(),
                engine.in_flight(),
                engine.counters()
            )
        };
        self.slots.iter().map(stands).collect::<Vec<_>>().join("\n")
    }

    fn violation(&self, promise: &'static str, one: usize, detail: impl std::fmt::Display) -> Violation {
        Violation { promise, at: self.now, detail: format!("replica {one}: {detail}") }
    }

    fn replica(&mut self, one: usize) -> &mut Replica {
        // Events of former lives are dropped before.
        self.slots[one].replica.as_mut().expect("it lives")
    }

    fn lasts(&self, kind: FaultKind) -> bool {
        let now = self.now;
        self.plan.faults.iter().any(|fault| fault.kind == kind && fault.from <= now && now < fault.until)
    }

    /// Whether a replica and the store hear of each other.
    fn is_connected(&self, one: usize) -> bool {
        !self.slots[one].cut && !self.lasts(FaultKind::Outage)
    }

    /// How long a message takes, one way.
    fn half(&mut self) -> Duration {
        let usual = self.plan.latency / 2;
        let spread = usual.mul_f64(self.dice.random_range(0.8..1.2));
        if self.one_in(self.plan.tail) { spread * self.dice.random_range(10..100) } else { spread }
    }

    /// While the storm lasts.
    fn one_in(&mut self, many: u32) -> bool {
        many > 0 && self.now < self.plan.storm && self.dice.random_range(0..many) == 0
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse(Due { at, serial: self.serial, event }));
    }
}

impl Event {
    /// The replica that takes it in, and in which of its lives. What was sent to the store arrives there, whatever became of
    /// the sender.
    fn addressee(&self) -> Option<(usize, u32)> {
        match *self {
            Self::Wants { one, life, .. }
            | Self::Wake { one, life }
            | Self::Read { one, life, .. }
            | Self::Wrote { one, life, .. }
            | Self::Timeout { one, life, .. }
            | Self::Hears { one, life, .. } => Some((one, life)),
            Self::Round
            | Self::Reading { .. }
            | Self::Writing { .. }
            | Self::Begins { .. }
            | Self::Ends { .. }
            | Self::Edit { .. }
            | Self::Check => None,
        }
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// How long a request waits for its answer.
const REQUEST: Duration = Duration::from_secs(5);
/// Between two looks at what must hold.
const CHECK: Duration = Duration::from_millis(250);
/// Attempts are counted over this time.
const SPAN: Duration = Duration::from_secs(10);
/// At the end nothing new is wanted for so long.
const QUIET: Duration = Duration::from_secs(30);
/// No key is pending for longer, once all is well.
const OLD: Duration = Duration::from_secs(45);
/// Once all has been well for so long, no two lead.
const SETTLED: Duration = Duration::from_secs(60);
/// Edits are at least so far apart.
const EDIT: Duration = Duration::from_millis(20);
