//! One object, one store and one watch that lags, under drawn sequences of steps.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::engine::outcome::Next;

#[derive(Clone, Copy, Debug)]
enum Move {
    Request {
        part: usize,
        wish: usize,
    },
    RequestAbsence,
    Remove,
    /// Somebody else writes.
    Write(usize),
    /// Somebody else deletes.
    Delete,
    /// The watch reports the next change.
    Deliver,
    /// The store takes the state of the next listing.
    Snapshot,
    /// The watch lists anew: the last such state, or the current one.
    List,
    /// The lease starts an attempt, which reads.
    Attempt,
    /// The write of the attempt reaches the store. Its answer may get lost.
    Send {
        is_lost: bool,
    },
    /// The write of the attempt gets lost.
    Lose,
    /// The store denies the write of the attempt.
    Deny,
}

const VALUES: [&str; 3] = ["a", "b", "a b"];
const WISHES: [Wish; 5] = [Exactly("a"), Word("b"), Existing("a"), Exactly("a b"), AtMost("a")];
/// The store appends these to what is written.
const DEFAULTS: &str = " ";
const PARTS: [&str; 2] = ["", "other"];

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let step = prop_oneof![
        4 => (0..PARTS.len(), 0..WISHES.len()).prop_map(|(part, wish)| Move::Request { part, wish }),
        1 => Just(Move::RequestAbsence),
        1 => Just(Move::Remove),
        3 => (0..VALUES.len()).prop_map(Move::Write),
        1 => Just(Move::Delete),
        5 => Just(Move::Deliver),
        1 => Just(Move::Snapshot),
        1 => Just(Move::List),
        4 => Just(Move::Attempt),
        4 => any::<bool>().prop_map(|is_lost| Move::Send { is_lost }),
        1 => Just(Move::Lose),
        1 => Just(Move::Deny),
    ];
    prop::collection::vec(step, 1..60)
}

/// The object, and all that a shell, a lease and a store know of it.
struct World {
    object: Object<Text>,
    is_ordered: bool,
    /// The store changes what is written.
    mutates: bool,
    /// The state of the store, and its position in the order of writes.
    stored: Option<&'static str>,
    position: u64,
    /// The changes that the watch has yet to report.
    news: VecDeque<(Option<&'static str>, u64)>,
    /// The state that the next listing shows. The watch reports nothing until then.
    snapshot: Option<(Option<&'static str>, u64)>,
    /// A listing may be older than what the object knows, and the watch may repeat what followed.
    repeats: bool,
    /// An answer got lost since that snapshot. The object remembers one such write only.
    has_lost: bool,
    /// The positions of the object's own writes.
    own: Vec<u64>,
    /// The latest position that the object has seen, by reading, writing or watching.
    seen: u64,
    /// The lease has a job for the object.
    has_job: bool,
    /// An attempt is in flight. If its job was cleared, the lease does not repeat it.
    in_flight: Option<Attempted>,
    requests: u64,
    completed: Vec<u64>,
}

struct Attempted {
    is_cleared: bool,
    /// The value to write, `None` to delete, and the expected version.
    write: Option<(Option<String>, Option<TestVersion>)>,
}

impl World {
    fn new(is_ordered: bool, mutates: bool) -> Self {
        Self {
            object: Object::new(true),
            is_ordered,
            mutates,
            stored: None,
            position: 0,
            news: VecDeque::new(),
            snapshot: None,
            repeats: false,
            has_lost: false,
            own: Vec::new(),
            seen: 0,
            has_job: false,
            in_flight: None,
            requests: 0,
            completed: Vec::new(),
        }
    }

    fn version(&self, position: u64) -> TestVersion {
        if self.is_ordered { Ordered(position) } else { Opaque(position) }
    }

    fn store(&mut self, value: Option<&'static str>) {
        self.position += 1;
        self.stored = value;
        self.news.push_back((value, self.position));
    }

    fn make(&mut self, step: Move) {
        match step {
            Move::Request { part, wish } => {
                let (id, part) = (RequestId(self.requests), PARTS[part].into());
                self.requests += 1;
                let request = Request { id, part, wish: WISHES[wish], seen: None, waiter: Some(()) };
                let effects = self.object.handle_request(request);
                self.carry_out(effects, None);
            }
            Move::RequestAbsence => {
                let id = RequestId(self.requests);
                self.requests += 1;
                let request = Request { id, part: "".into(), wish: Never, seen: None, waiter: Some(()) };
                let effects = self.object.handle_absence_request(request);
                self.carry_out(effects, None);
            }
            Move::Remove => {
                let effects = self.object.handle_removal();
                self.carry_out(effects, None);
            }
            Move::Write(value) => self.store(Some(VALUES[value])),
            Move::Delete if self.stored.is_some() => self.store(None),
            Move::Deliver if self.snapshot.is_none() => {
                if let Some((value, position)) = self.news.pop_front() {
                    let version = self.version(position);
                    let value = value.map(str::to_owned);
                    self.take_in(Change::new(value, version, Timestamp::ZERO), position);
                }
            }
            Move::Snapshot => {
                self.news.clear();
                self.snapshot = Some((self.stored, self.position));
                self.has_lost &= self.repeats;
                self.repeats = true;
            }
            Move::List => {
                let (value, position) = match self.snapshot.take() {
                    Some(snapshot) => snapshot,
                    None => {
                        self.news.clear();
                        (self.stored, self.position)
                    }
                };
                self.object.handle_listing();
                let version = self.version(position);
                let entry = value.map(|value| (value.to_owned(), version));
                // A listing is the truth, even if it is older.
                self.seen = position;
                self.take_in(Change::listed(entry, Timestamp::ZERO), position);
            }
            Move::Attempt if self.has_job && self.in_flight.is_none() => self.attempt(),
            Move::Send { is_lost } => self.send(is_lost),
            Move::Lose if self.in_flight.is_some() && self.may_lose() => {
                self.has_lost = true;
                self.answer(Answer::Unanswered);
            }
            Move::Deny if self.in_flight.is_some() => self.answer(Answer::Denied("no")),
            Move::Delete | Move::Deliver | Move::Attempt | Move::Lose | Move::Deny => {}
        }
        let is_behind = self.snapshot.is_some() || self.in_flight.is_some() || !self.news.is_empty();
        self.repeats &= is_behind;
        self.check();
    }

    fn attempt(&mut self) {
        self.has_job = false;
        let knew_value = self.object.value().is_some();
        let wishes = self.object.handle_attempt();
        self.in_flight = Some(Attempted { is_cleared: false, write: None });
        let version = self.version(self.position);
        let read = self.stored.map(|value| (value.to_owned(), version));
        let evaluation = wishes.evaluate(read.as_ref().map(|(value, _)| value));
        let by_rival = self.object.before_read(read.as_ref(), &evaluation).is_some();
        let (step, effects) = self.object.handle_read(Timestamp::ZERO, read, evaluation, by_rival);
        // A read of an absent object returns no version. It shows only that the watch will report a
        // deletion, if the object existed.
        let deletion = self.news.iter().find(|(value, _)| value.is_none());
        match self.stored {
            Some(_) => self.seen = self.position,
            None if knew_value => self.seen = deletion.map_or(self.seen, |(_, position)| *position),
            None => {}
        }
        self.carry_out(effects, Some(self.position));
        match step {
            Step::Write { value, expected } => {
                let attempted = self.in_flight.as_mut().expect("it has just started");
                attempted.write = Some((Some(value), expected));
            }
            Step::Delete { expected } => {
                let attempted = self.in_flight.as_mut().expect("it has just started");
                attempted.write = Some((None, Some(expected)));
            }
            Step::Finish(verdict) => self.finish(verdict),
        }
    }

    fn send(&mut self, is_lost: bool) {
        let Some(attempted) = &mut self.in_flight else { return };
        let Some((value, expected)) = attempted.write.take() else { return };
        let current = self.stored.map(|_| self.version(self.position));
        let answer = if current == expected {
            let value = value.map(|value| if self.mutates { value + DEFAULTS } else { value });
            let is_deletion = value.is_none();
            self.store(value.map(|value| &*Box::leak(value.into_boxed_str())));
            self.own.push(self.position);
            match is_deletion {
                true => Answer::Deleted,
                false => Answer::Written(self.version(self.position)),
            }
        } else {
            Answer::Conflict
        };
        if is_lost && self.may_lose() {
            self.has_lost = true;
            self.answer(Answer::Unanswered);
        } else {
            if matches!(answer, Answer::Written(_)) {
                self.seen = self.position;
            }
            self.answer(answer);
        }
    }

    fn may_lose(&self) -> bool {
        !self.repeats || !self.has_lost
    }

    fn answer(&mut self, answer: Answer<Text>) {
        let (verdict, effects) = self.object.handle_answer(answer);
        self.carry_out(effects, Some(self.position));
        self.finish(verdict);
    }

    fn finish(&mut self, verdict: Verdict) {
        while let Some(change) = self.object.poll_deferred() {
            let position = match change.version {
                Some(Ordered(position) | Opaque(position)) => position,
                None => self.seen,
            };
            self.take_in(change, position);
        }
        let attempted = self.in_flight.take().expect("an attempt finishes");
        self.has_job |= verdict.next != Next::Done && !attempted.is_cleared;
    }

    fn take_in(&mut self, change: Change<Text>, position: u64) {
        let value = change.value.clone();
        let question = self.object.question(&change);
        let judgement = question.judge(|wishes| Some(wishes.evaluate(value.as_ref())), |_| true);
        let effects = self.object.handle_change(change, &question, judgement).expect("nothing has changed");
        self.carry_out(effects, Some(position));
        if self.in_flight.is_none() {
            self.seen = self.seen.max(position);
        }
    }

    /// Carries out effects that follow from the state at this position, if they follow from one.
    fn carry_out(&mut self, effects: Vec<Effect<Text>>, position: Option<u64>) {
        for effect in effects {
            match effect {
                Effect::Queue => self.has_job = true,
                Effect::Clear | Effect::Satisfied | Effect::Evidence { .. } => {
                    if let (Effect::Evidence { .. }, Some(position)) = (&effect, position) {
                        assert!(!self.own.contains(&position), "our own write is no evidence");
                    }
                    self.has_job = false;
                    if let Some(attempted) = &mut self.in_flight {
                        attempted.is_cleared = true;
                    }
                }
                Effect::Complete(request, completion) => {
                    assert!(!self.completed.contains(&request.id.0), "{request:?} ended twice");
                    self.completed.push(request.id.0);
                    if let Some(position) = position {
                        assert!(position >= self.seen, "old news ended {request:?}: {completion:?}");
                    }
                }
                Effect::Assess => {
                    if let Some((question, value)) = self.object.assessment() {
                        let evaluation = question.wishes.evaluate(value.as_ref());
                        let assessed = self.object.handle_assessment(&question, Some(evaluation), true);
                        self.carry_out(assessed.expect("nothing has changed").1, None);
                        let effects = self.object.handle_contention(&question.wishes, None);
                        self.carry_out(effects, None);
                    }
                }
                Effect::Deleted
                | Effect::Deny(..)
                | Effect::Echo(_)
                | Effect::Lost(_)
                | Effect::Discard(_) => {}
            }
        }
    }

    fn check(&self) {
        let pending = self.object.requests();
        assert_eq!(pending.len() + self.completed.len(), self.requests as usize, "no request is lost");
        if self.in_flight.is_none() {
            assert_eq!(self.has_job, !pending.is_empty(), "the lease has a job if one is needed");
        }
    }

    /// Lets everything end.
    fn settle(&mut self) {
        for _ in 0..10 {
            self.make(Move::Send { is_lost: false });
            if self.snapshot.is_some() {
                self.make(Move::List);
            }
            while !self.news.is_empty() {
                self.make(Move::Deliver);
            }
            self.make(Move::Attempt);
        }
        assert_eq!(self.object.requests().len(), 0, "every request ends");
    }
}

proptest! {
    #[test]
    fn requests_end_once_and_by_new_states(is_ordered: bool, mutates: bool, moves in moves()) {
        let mut world = World::new(is_ordered, mutates);
        for step in moves {
            world.make(step);
        }
        world.settle();
    }
}
