//! The world: processes, a store, the network between them, and what goes wrong. Each event changes
//! it; the promises are checked from outside, by `promises`.

use std::{collections::VecDeque, mem, time::Duration};

use rand::RngExt;

use super::{
    broadcast::{Broadcasts, Delivery},
    contender::Contender,
    election::SimulatedElection,
    event_queue::{Event, EventQueue},
    host::Host,
    message::{Call, Content, News, ProcessId, Revision, Simulated, Stored, Write, WriteResult},
    network::Network,
    observation::Observation,
    plan::{FaultKind, Plan},
    process::Process,
    report::{RoundStats, RunStats},
};
use crate::{engine::outcome::Outcome, object::Answer};

pub(super) struct World<'a> {
    pub plan: &'a Plan,
    pub now: Duration,
    pub store: Vec<Stored>,
    pub hosts: Vec<Host>,
    pub round: u64,
    pub stats: RunStats,
    pub rounds: Vec<RoundStats>,
    /// The observations that the promises have not been checked against yet.
    pub observations: VecDeque<Observation>,
    network: Network,
    queue: EventQueue,
    broadcasts: Broadcasts,
    /// The serial of the last call.
    calls: u64,
    /// The revision of the last write.
    revision: u64,
    leadership: SimulatedElection,
    /// For each `CrashLeader` fault, the replica that it hit.
    struck: Vec<Option<usize>>,
    /// How many keys are not at the last round yet.
    behind: usize,
    check_every: Option<Duration>,
}

impl<'a> World<'a> {
    /// The world before its first event. `check_every` says how often all promises are checked.
    pub fn new(plan: &'a Plan, check_every: Option<Duration>) -> Self {
        let mut world = Self {
            plan,
            now: Duration::ZERO,
            store: vec![Stored::default(); plan.keys],
            hosts: plan.members.iter().map(|_| Host::default()).collect(),
            round: 0,
            stats: RunStats::default(),
            rounds: Vec::new(),
            observations: VecDeque::new(),
            network: Network::new(plan),
            queue: EventQueue::default(),
            broadcasts: Broadcasts::default(),
            calls: 0,
            revision: 0,
            leadership: SimulatedElection::default(),
            struck: vec![None; plan.faults.len()],
            behind: 0,
            check_every,
        };
        for replica in 0..plan.members.len() {
            world.start(replica);
        }
        for (fault, planned) in plan.faults.iter().enumerate() {
            world.at(planned.from, Event::FaultBegins { fault });
            world.at(planned.until, Event::FaultEnds { fault });
        }
        world.at(plan.cadence, Event::Round);
        if let Some(every) = check_every {
            world.at(every, Event::Check);
        }
        world
    }

    pub fn next_event(&mut self) -> Option<(Duration, Event)> {
        self.queue.pop()
    }

    pub fn handle(&mut self, at: Duration, event: Event) {
        self.now = at;
        if let Some(process) = event.recipient() {
            let host = &mut self.hosts[process.replica];
            if !host.runs(process) {
                return;
            }
            // A process that is stopped takes nothing in; the events are there when it goes on.
            if host.paused {
                host.waiting.push(event);
                return;
            }
        }
        match event {
            Event::Round => self.next_round(),
            Event::Request { process, round } => self.request(process.replica, round),
            Event::Wake { process } => {
                self.hosts[process.replica].wake_at = None;
                self.poll(process.replica);
            }
            Event::ReadArrives { call } => self.handle_read(call),
            Event::ReadAnswered { call, stored } => self.handle_read_answer(call, stored),
            Event::WriteArrives { call, write } => self.handle_write(call, write),
            Event::WriteAnswered { call, result } => self.handle_write_answer(call, result),
            Event::Timeout { call } => self.answer(call, Answer::Unanswered),
            Event::WatchOpens { process, watch, since } => {
                if self.hosts[process.replica].sees(watch) {
                    self.process(process.replica).open_watch(at, at - since);
                }
            }
            Event::ListingEnds { process, watch } => {
                if self.hosts[process.replica].sees(watch) {
                    self.process(process.replica).end_listing(at);
                    self.poll(process.replica);
                }
            }
            Event::Delivery { broadcast } => {
                let (news, next) = self.broadcasts.deliver(broadcast);
                if let Some(next) = next {
                    self.at(next, event);
                }
                self.handle(at, news);
            }
            Event::News { process, news } => {
                if self.hosts[process.replica].sees(news.watch) {
                    self.process(process.replica).receive(at, news);
                    self.poll(process.replica);
                }
            }
            Event::FaultBegins { fault } => self.begin_fault(fault),
            Event::FaultEnds { fault } => self.end_fault(fault),
            Event::Edit { fault } => self.edit(fault),
            Event::Campaign { process } => self.campaign(process),
            Event::VoteArrives { process, asked } => self.handle_vote(process, asked),
            Event::VoteAnswered { process, asked, fence } => self.handle_vote_answer(process, asked, fence),
            Event::Check => {
                self.observations.push_back(Observation::Check);
                if let Some(every) = self.check_every {
                    self.at(at + every, Event::Check);
                }
            }
        }
    }

    fn next_round(&mut self) {
        if self.now > self.plan.last_want() {
            return;
        }
        self.round += 1;
        for replica in 0..self.hosts.len() {
            if self.hosts[replica].process.is_some() {
                let process = self.id(replica);
                self.send(Event::Request { process, round: self.round });
            }
        }
        self.behind = self.plan.keys;
        self.rounds.push(RoundStats { began: self.now, ..RoundStats::default() });
        let burst = self.plan.has_fault(self.now, FaultKind::Burst);
        let gap = if burst { self.plan.cadence.min(self.plan.latency) } else { self.plan.cadence };
        self.at(self.now + gap, Event::Round);
    }

    fn request(&mut self, replica: usize, round: u64) {
        let (plan, now) = (self.plan, self.now);
        for key in plan.members[replica].range() {
            if plan.is_wanted(key, round) {
                self.process(replica).request(now, key, round);
            } else {
                self.process(replica).withdraw(now, key);
            }
        }
        self.poll(replica);
    }

    /// Lets a process start the attempts that it may, and makes sure that it is polled again.
    fn poll(&mut self, replica: usize) {
        let (now, process) = (self.now, self.id(replica));
        let started = match self.process(replica).poll(now) {
            Ok(started) => started,
            Err(key) => {
                self.observations.push_back(Observation::SecondAttempt { replica, key });
                return;
            }
        };
        self.observations.push_back(Observation::Polled { replica, started: started.len() });
        for key in started {
            let call = self.call(process, key);
            self.send(Event::ReadArrives { call });
        }
        if let Some(wake_at) = self.process(replica).wake_at()
            && self.hosts[replica].wake_at.is_none_or(|before| wake_at < before)
        {
            let wake_at = wake_at.max(now);
            self.hosts[replica].wake_at = Some(wake_at);
            self.at(wake_at, Event::Wake { process });
        }
    }

    /// A call that waits for its answer, until it times out.
    fn call(&mut self, process: ProcessId, key: usize) -> Call {
        self.calls += 1;
        let call = Call { process, key, serial: self.calls };
        self.hosts[process.replica].expect_answer(call);
        self.queue.push_in_order(self.now + TIMEOUT, Event::Timeout { call });
        call
    }

    fn handle_read(&mut self, call: Call) {
        if self.is_connected(call.process.replica) {
            let stored = self.store[call.key];
            self.send(Event::ReadAnswered { call, stored });
        }
    }

    fn handle_read_answer(&mut self, call: Call, stored: Stored) {
        let (now, replica) = (self.now, call.process.replica);
        if !self.hosts[replica].take_answer(call) {
            return;
        }
        if let Some(write) = self.process(replica).read(now, call.key, stored) {
            let call = self.call(call.process, call.key);
            self.send(Event::WriteArrives { call, write });
        }
        self.poll(replica);
    }

    fn handle_write(&mut self, call: Call, write: Write) {
        let (replica, key) = (call.process.replica, call.key);
        if !self.is_connected(replica) {
            return;
        }
        let is_lost =
            self.plan.has_fault(self.now, FaultKind::LostAnswers) && self.network.rng.random_bool(0.5);
        let before = self.store[key];
        let result = if self.plan.election.is_some() && !self.leadership.admits(self.now, write.fence) {
            self.stats.fenced += 1;
            Err(Outcome::WrittenByOther)
        } else if before.entry().map(|(_, revision)| revision) != write.expected {
            self.stats.refused += 1;
            if let Some(round) = self.rounds.last_mut() {
                round.refused += 1;
            }
            Err(Outcome::Conflict)
        } else {
            let after = write.content;
            self.observations.push_back(Observation::Written { replica, key, before, after });
            self.stats.written += 1;
            self.count_write(before, after);
            Ok(self.store(key, Some(after)))
        };
        if !is_lost {
            self.send(Event::WriteAnswered { call, result });
        }
    }

    fn count_write(&mut self, before: Stored, after: Content) {
        let Some(round) = self.rounds.last_mut() else { return };
        let since = self.now - round.began;
        round.written += 1;
        round.first_write.get_or_insert(since);
        if after.round == self.round && before.round() < self.round {
            // A key that was deleted is written twice.
            self.behind = self.behind.saturating_sub(1);
            if self.behind == 0 {
                round.right = Some(since);
            }
        }
    }

    fn handle_write_answer(&mut self, call: Call, result: WriteResult) {
        if self.is_connected(call.process.replica) {
            let answer = match result {
                Ok(revision) => Answer::Written(revision),
                Err(Outcome::WrittenByOther) => Answer::Fenced,
                Err(_) => Answer::Conflict,
            };
            self.answer(call, answer);
        }
    }

    fn answer(&mut self, call: Call, answer: Answer<Simulated>) {
        let (now, replica) = (self.now, call.process.replica);
        if self.hosts[replica].take_answer(call) {
            self.process(replica).answer(now, call.key, answer);
            self.poll(replica);
        }
    }

    /// Changes a key, and sends the news of it to everybody.
    fn store(&mut self, key: usize, content: Option<Content>) -> Revision {
        self.revision += 1;
        let revision = Revision { position: self.revision, versions: self.plan.versions };
        let stored = Stored { content, revision };
        self.store[key] = stored;
        let mut deliveries = Vec::with_capacity(self.hosts.len());
        for replica in 0..self.hosts.len() {
            let (process, watch) = (self.id(replica), self.hosts[replica].watch);
            let is_unordered = self.network.is_disordered(self.now);
            let mut arrives = self.now + self.one_way();
            if is_unordered {
                arrives = (arrives + self.one_way()).max(self.hosts[replica].listing_at);
            } else {
                // News of one watch never arrive at the same time, or their order would be lost.
                arrives = arrives.max(self.hosts[replica].news_until + Duration::from_nanos(1));
                self.hosts[replica].news_until = arrives;
            }
            deliveries.push(Delivery { arrives, process, watch });
            if self.network.is_disordered(self.now) {
                let arrives = arrives + self.one_way();
                deliveries.push(Delivery { arrives, process, watch });
            }
        }
        let news = News { key, stored, listing: false, watch: 0 };
        if let Some((broadcast, arrives)) = self.broadcasts.send(news, deliveries) {
            self.at(arrives, Event::Delivery { broadcast });
        }
        revision
    }

    /// A process watches anew, and the store answers with a listing.
    fn watch(&mut self, replica: usize) {
        let process = self.id(replica);
        let arrives = self.now + self.one_way() + self.one_way();
        let host = &mut self.hosts[replica];
        host.watch += 1;
        host.listing_at = arrives;
        host.news_until = arrives;
        let watch = host.watch;
        self.at(arrives, Event::WatchOpens { process, watch, since: self.now });
        for key in 0..self.store.len() {
            let stored = self.store[key];
            if stored.content.is_some() {
                let news = News { key, stored, listing: true, watch };
                self.at(arrives, Event::News { process, news });
            }
        }
        self.at(arrives, Event::ListingEnds { process, watch });
    }

    fn campaign(&mut self, process: ProcessId) {
        let Some(ttl) = self.plan.election else { return };
        self.send(Event::VoteArrives { process, asked: self.now });
        self.at(self.now + ttl / 3, Event::Campaign { process });
    }

    fn handle_vote(&mut self, process: ProcessId, asked: Duration) {
        if self.is_connected(process.replica)
            && let Some(ttl) = self.plan.election
        {
            let fence = self.leadership.ask(self.now, process, ttl);
            self.send(Event::VoteAnswered { process, asked, fence });
        }
    }

    fn handle_vote_answer(&mut self, process: ProcessId, asked: Duration, fence: Option<u64>) {
        let (now, replica) = (self.now, process.replica);
        // Answers may overtake each other.
        if !self.is_connected(replica) || self.hosts[replica].asked >= asked {
            return;
        }
        let Some(ttl) = self.plan.election else { return };
        self.hosts[replica].asked = asked;
        match fence {
            // Clocks differ by as much.
            Some(fence) => self.process(replica).elected(now, asked, ttl.mul_f64(0.95), fence),
            None => self.process(replica).not_elected(now),
        }
        self.observations.push_back(Observation::Elected);
        self.poll(replica);
    }

    fn start(&mut self, replica: usize) {
        let plan = self.plan;
        let incarnation = self.hosts[replica].incarnation + 1;
        let contender = Contender::new(plan.algorithm, plan.config(replica, incarnation));
        self.hosts[replica].start(Process::new(plan.members[replica], contender, self.now));
        self.watch(replica);
        let process = self.id(replica);
        if plan.election.is_some() {
            // Nothing runs before the process is elected.
            let now = self.now;
            self.process(replica).not_elected(now);
            self.at(now + plan.latency, Event::Campaign { process });
        }
        if self.round > 0 {
            self.at(self.now, Event::Request { process, round: self.round });
        }
    }

    fn begin_fault(&mut self, fault: usize) {
        let now = self.now;
        match self.plan.faults[fault].kind {
            FaultKind::Pause(replica) => self.hosts[replica].paused = true,
            FaultKind::Crash(replica) => self.hosts[replica].crash(),
            FaultKind::CrashLeader => {
                self.struck[fault] = self.hosts.iter().position(|host| host.leads(now));
                if let Some(leader) = self.struck[fault] {
                    self.hosts[leader].crash();
                }
            }
            FaultKind::Partition(replica) => self.hosts[replica].partitioned = true,
            FaultKind::Blind(replica) => self.hosts[replica].blind = true,
            FaultKind::Edits | FaultKind::Deletes => self.at(now, Event::Edit { fault }),
            FaultKind::Outage | FaultKind::LostAnswers | FaultKind::Burst => {}
        }
    }

    fn end_fault(&mut self, fault: usize) {
        let kind = self.plan.faults[fault].kind;
        // Another fault of the same kind may still last; but the replica that a `CrashLeader` hit
        // is its own.
        if kind != FaultKind::CrashLeader && self.plan.has_fault(self.now, kind) {
            return;
        }
        let is_dead = |host: &Host| host.process.is_none();
        match kind {
            FaultKind::Pause(replica) => {
                self.hosts[replica].paused = false;
                for event in mem::take(&mut self.hosts[replica].waiting) {
                    self.at(self.now, event);
                }
            }
            FaultKind::Crash(replica) if is_dead(&self.hosts[replica]) => self.start(replica),
            FaultKind::CrashLeader => {
                if let Some(replica) = self.struck[fault].filter(|replica| is_dead(&self.hosts[*replica])) {
                    self.start(replica);
                }
            }
            FaultKind::Partition(replica) => {
                self.hosts[replica].partitioned = false;
                self.watch(replica);
            }
            FaultKind::Blind(replica) => {
                self.hosts[replica].blind = false;
                self.watch(replica);
            }
            _ => {}
        }
    }

    /// Somebody else edits a part of a key that no replica cares for, or deletes the key.
    fn edit(&mut self, fault: usize) {
        if self.now >= self.plan.faults[fault].until {
            return;
        }
        let key = self.network.rng.random_range(0..self.store.len());
        let (content, gap) = match self.plan.faults[fault].kind {
            FaultKind::Deletes => (None, DELETE_GAP),
            _ => (self.store[key].content, self.plan.latency.max(EDIT_GAP)),
        };
        if self.store[key].content.is_some() {
            self.store(key, content);
        }
        self.at(self.now + gap, Event::Edit { fault });
    }

    /// A replica's process. Events of former incarnations do not come this far.
    fn process(&mut self, replica: usize) -> &mut Process {
        self.hosts[replica].process.as_mut().expect("the process runs")
    }

    fn id(&self, replica: usize) -> ProcessId {
        ProcessId { replica, incarnation: self.hosts[replica].incarnation }
    }

    /// Returns whether a replica and the store reach each other.
    fn is_connected(&self, replica: usize) -> bool {
        !self.hosts[replica].partitioned && !self.plan.has_fault(self.now, FaultKind::Outage)
    }

    /// Sends a message, which arrives as this event.
    fn send(&mut self, event: Event) {
        let arrives = self.now + self.one_way();
        self.at(arrives, event);
    }

    fn one_way(&mut self) -> Duration {
        self.network.one_way(self.now)
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.queue.push(at, event);
    }
}

/// How long a call waits for its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The least time between two edits.
const EDIT_GAP: Duration = Duration::from_millis(20);
/// The time between two deletions.
const DELETE_GAP: Duration = Duration::from_millis(500);
