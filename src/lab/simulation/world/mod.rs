//! The world: processes, a store, the network between them, and what goes wrong. Each event changes
//! it; the promises are checked from outside, by `promises`.

mod faults;
mod votes;

use std::{collections::VecDeque, time::Duration};

use rand::RngExt;

use super::{
    broadcast::{Broadcasts, Delivery},
    contender::Contender,
    election::SimulatedElection,
    event_queue::{Event, EventQueue},
    host::Host,
    message::{Call, Content, News, ProcessId, Refusal, Revision, Simulated, Stored, Write, WriteResult},
    network::Network,
    observation::Observation,
    plan::{Ailment, FaultKind, Plan, Sickness},
    process::Process,
    report::{RoundStats, RunStats},
};
use crate::object::Answer;

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
    /// How many keys that can get there are not at the last round yet.
    behind: usize,
    /// The keys that cannot be written now.
    sick: Vec<Sickness>,
    /// All messages take long.
    brownout: bool,
    /// The keys and the revision to which the store will be set back.
    backup: Option<(Vec<Stored>, u64)>,
    /// When the store was last set back.
    restored: Duration,
    /// When the last message arrives that was sent in the storm.
    storm_heard: Duration,
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
            sick: Vec::new(),
            brownout: false,
            backup: None,
            restored: Duration::ZERO,
            storm_heard: plan.storm,
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
                    let is_first = self.hosts[process.replica].is_first_watch();
                    self.process(process.replica).open_watch(at, at - since, is_first);
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
                self.send(replica, Event::Request { process, round: self.round });
            }
        }
        self.behind = self.count_behind();
        // A round that wants nothing is right from the start.
        let right = (self.behind == 0).then_some(Duration::ZERO);
        self.rounds.push(RoundStats { began: self.now, right, ..RoundStats::default() });
        let burst = self.plan.has_fault(self.now, FaultKind::Burst);
        let gap = if burst { self.plan.cadence.min(self.plan.latency) } else { self.plan.cadence };
        self.at(self.now + gap, Event::Round);
    }

    fn request(&mut self, replica: usize, round: u64) {
        let (plan, now) = (self.plan, self.now);
        if !self.process(replica).begin_round(round) {
            return;
        }
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
            self.send(replica, Event::ReadArrives { call });
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
        let replica = call.process.replica;
        if self.is_connected(replica) && !self.hosts[replica].deaf {
            let stored = self.store[call.key];
            self.send(replica, Event::ReadAnswered { call, stored });
        }
    }

    fn handle_read_answer(&mut self, call: Call, stored: Stored) {
        let (now, replica) = (self.now, call.process.replica);
        if !self.hosts[replica].take_answer(call) {
            return;
        }
        if let Some(write) = self.process(replica).read(now, call.key, stored) {
            let call = self.call(call.process, call.key);
            let arrives = self.now + self.one_way(replica) + self.plan.commit / 2;
            self.arrives(arrives, Event::WriteArrives { call, write });
        }
        self.poll(replica);
    }

    fn handle_write(&mut self, call: Call, write: Write) {
        let (replica, key) = (call.process.replica, call.key);
        if !self.is_connected(replica) {
            return;
        }
        let is_lost = self.hosts[replica].deaf
            || self.plan.has_fault(self.now, FaultKind::LostAnswers) && self.network.rng.random_bool(0.5);
        let ailment =
            self.sick.iter().find(|sickness| sickness.affects(replica, key)).map(|sick| sick.ailment);
        let before = self.store[key];
        let result = if ailment == Some(Ailment::Hangs) {
            return;
        } else if let Some(ailment) = ailment {
            Err(if ailment == Ailment::Denied { Refusal::Denied } else { Refusal::Unavailable })
        } else if self.plan.election.is_some() && !self.leadership.admits(self.now, write.fence) {
            self.stats.fenced += 1;
            Err(Refusal::Fenced)
        } else if before.entry().map(|(_, revision)| revision) != write.expected {
            self.stats.refused += 1;
            if let Some(round) = self.rounds.last_mut() {
                round.refused += 1;
            }
            Err(Refusal::Conflict)
        } else {
            let after = write.content;
            // The versions of a store that was set back repeat: one that was read before that may
            // belong to another write by now.
            let began = self.hosts[replica].process.as_ref().and_then(|process| process.attempt_began(key));
            if began.unwrap_or_default() >= self.restored {
                self.observations.push_back(Observation::Written { replica, key, before, after });
            }
            self.stats.written += 1;
            self.count_write(key, before, after);
            Ok(self.store(key, Some(after)))
        };
        if !is_lost {
            let arrives = self.now + self.one_way(replica) + self.plan.commit / 2;
            self.arrives(arrives, Event::WriteAnswered { call, result });
        }
    }

    fn count_write(&mut self, key: usize, before: Stored, after: Content) {
        let is_counted = self.counts(key);
        let Some(round) = self.rounds.last_mut() else { return };
        let since = self.now - round.began;
        round.written += 1;
        round.first_write.get_or_insert(since);
        if after.round == self.round && before.round() < self.round && is_counted {
            // A key that was deleted is written twice.
            self.behind = self.behind.saturating_sub(1);
            if self.behind == 0 {
                round.right = Some(since);
            }
        }
    }

    /// Returns whether some replica that lives wants a key and can write it; with a group, one of
    /// this group.
    pub fn is_within_reach(&self, group: Option<u8>, key: usize) -> bool {
        let mut members = self.plan.members.iter().enumerate();
        members.any(|(replica, member)| {
            self.hosts[replica].process.is_some()
                && group.is_none_or(|group| group == member.group)
                && member.range().contains(&key)
                && !self.plan.cannot_write(replica, key)
        })
    }

    /// Returns whether a key belongs to the round.
    fn counts(&self, key: usize) -> bool {
        self.plan.is_wanted(key, self.round) && self.is_within_reach(None, key)
    }

    fn count_behind(&self) -> usize {
        let is_behind = |key: &usize| self.store[*key].round() < self.round && self.counts(*key);
        (0..self.plan.keys).filter(is_behind).count()
    }

    fn handle_write_answer(&mut self, call: Call, result: WriteResult) {
        if self.is_connected(call.process.replica) {
            let answer = match result {
                Ok(revision) => Answer::Written(revision),
                Err(Refusal::Conflict) => Answer::Conflict,
                Err(Refusal::Fenced) => Answer::Fenced,
                Err(Refusal::Unavailable) => Answer::Unanswered,
                Err(Refusal::Denied) => Answer::Denied(()),
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
            let mut arrives = self.now + self.one_way(replica) + self.plan.members[replica].lag;
            if is_unordered {
                arrives = (arrives + self.one_way(replica)).max(self.hosts[replica].listing_at);
            } else {
                arrives += self.network.lateness(self.now);
                // News of one watch never arrive at the same time, or their order would be lost.
                arrives = arrives.max(self.hosts[replica].news_until + Duration::from_nanos(1));
                self.hosts[replica].news_until = arrives;
            }
            self.hear(arrives);
            deliveries.push(Delivery { arrives, process, watch });
            if self.network.is_disordered(self.now) {
                let arrives = arrives + self.one_way(replica);
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
        let arrives = self.now + self.one_way(replica) + self.one_way(replica);
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
        self.arrives(arrives, Event::ListingEnds { process, watch });
    }

    fn start(&mut self, replica: usize) {
        let plan = self.plan;
        let incarnation = self.hosts[replica].incarnation + 1;
        let contender = Contender::new(plan.algorithm, plan.config(replica, incarnation));
        self.hosts[replica].start(Process::new(plan.members[replica], plan.restless, contender, self.now));
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

    /// Sends a message between a replica and the store, which arrives as this event.
    fn send(&mut self, replica: usize, event: Event) {
        let arrives = self.now + self.one_way(replica);
        self.arrives(arrives, event);
    }

    /// Lets a message that is sent now arrive as this event.
    fn arrives(&mut self, arrives: Duration, event: Event) {
        self.hear(arrives);
        self.at(arrives, event);
    }

    fn hear(&mut self, arrives: Duration) {
        if self.now <= self.plan.storm {
            self.storm_heard = self.storm_heard.max(arrives);
        }
    }

    fn one_way(&mut self, replica: usize) -> Duration {
        let usual = self.network.one_way(self.now);
        if self.brownout || self.hosts[replica].slow { usual * SLOWNESS } else { usual }
    }

    /// Returns when the last message arrives that was sent in the storm. News hold up those behind
    /// them, so one that takes minutes leaves a watch blind for as long.
    pub fn storm_heard(&self) -> Duration {
        self.storm_heard
    }

    /// Returns how many messages have taken longer than usual.
    pub fn late_messages(&self) -> u64 {
        self.network.late_messages
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.queue.push(at, event);
    }
}

/// How long a call waits for its answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// How many times as long messages take that are slow.
pub(super) const SLOWNESS: u32 = 20;
