//! The table of events and effects, row by row, then the rules behind it.

mod properties;

use std::time::Duration;

use super::*;
use crate::engine::{
    Timestamp,
    outcome::{Outcome, Verdict},
};

/// An object with one text for a value.
#[derive(Debug, PartialEq)]
enum Text {}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wish {
    /// Exactly this text, but for spaces at the end.
    Exactly(&'static str),
    /// This word, whatever else there is.
    Word(&'static str),
    /// Exactly this text, if the object exists.
    Existing(&'static str),
    /// Exactly this text, or no object.
    AtMost(&'static str),
    /// No object.
    Never,
    /// One more of this letter, whatever there is.
    More(char),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum TestVersion {
    Ordered(u64),
    Opaque(u64),
}

use TestVersion::{Opaque, Ordered};
use Wish::{AtMost, Exactly, Existing, More, Never, Word};

impl Version for TestVersion {
    fn revision(&self) -> Option<u64> {
        self.key_revision()
    }

    fn key_revision(&self) -> Option<u64> {
        match *self {
            Ordered(revision) => Some(revision),
            Opaque(_) => None,
        }
    }
}

impl Types for Text {
    type Value = String;
    type Version = TestVersion;
    type Wish = Wish;
    type Waiter = ();
    type Reason = &'static str;

    fn evaluate(wish: &Wish, current: Option<&String>) -> Desired<String> {
        match *wish {
            Exactly(text) if current.is_some_and(|current| current.trim_end() == text) => Desired::Right,
            Exactly(text) => Desired::Write(text.into()),
            Word(word) if current.is_some_and(|current| current.contains(word)) => Desired::Right,
            Word(word) => Desired::Write(format!("{} {word}", current.map_or("", |current| current))),
            More(letter) => Desired::Write(format!("{}{letter}", current.map_or("", |current| current))),
            Existing(_) if current.is_none() => Desired::Gone,
            AtMost(_) if current.is_none() => Desired::Right,
            Never => Desired::Absent,
            Existing(text) | AtMost(text) => Self::evaluate(&Exactly(text), current),
        }
    }
}

/// A shell with one object, in a store whose writes all come from rivals.
struct Shell {
    object: Object<Text>,
    now: Timestamp,
    rivals: bool,
}

type Read = Option<(&'static str, TestVersion)>;

impl Shell {
    /// The object does not exist, as a listing has shown.
    fn absent() -> Self {
        Self { object: Object::new(true), now: Timestamp::ZERO, rivals: true }
    }

    /// The watch has reported this value.
    fn with(value: &str, version: TestVersion) -> Self {
        let mut shell = Self::absent();
        assert_eq!(shell.put(value, version), [""; 0]);
        shell
    }

    /// The request comes while the watch is not live, so a satisfied one is queued, too.
    fn request_blindly(&mut self, id: u64, part: &str, wish: Wish) {
        let request = Request { id: RequestId(id), part: part.into(), wish, seen: None, waiter: Some(()) };
        self.object.handle_request(request);
        let (question, value) = self.object.assessment().unwrap();
        let evaluation = question.wishes.evaluate(value.as_ref());
        self.object.handle_assessment(&question, Some(evaluation), false).expect("nothing has changed");
        assert_eq!(brief(self.object.handle_contention(&question.wishes, None)), ["queue"]);
    }

    /// The caller has seen the object at this version. Returns the requests that stay pending.
    fn request_seen(&mut self, id: u64, wish: Wish, seen: TestVersion) -> &[Request<TestVersion, Wish, ()>] {
        let (id, seen) = (RequestId(id), Some(seen));
        self.object.handle_request(Request { id, part: "".into(), wish, seen, waiter: Some(()) });
        self.assess();
        self.object.requests()
    }

    fn request(&mut self, id: u64, part: &str, wish: Wish) -> Vec<String> {
        let request = Request { id: RequestId(id), part: part.into(), wish, seen: None, waiter: Some(()) };
        let mut effects = brief(self.object.handle_request(request));
        effects.extend(self.assess());
        effects
    }

    fn request_absence(&mut self, id: u64) -> Vec<String> {
        let request =
            Request { id: RequestId(id), part: "".into(), wish: Never, seen: None, waiter: Some(()) };
        let mut effects = brief(self.object.handle_absence_request(request));
        effects.extend(self.assess());
        effects
    }

    fn assess(&mut self) -> Vec<String> {
        let Some((question, value)) = self.object.assessment() else { return Vec::new() };
        let evaluation = question.wishes.evaluate(value.as_ref());
        let assessed = self.object.handle_assessment(&question, Some(evaluation), true);
        let mut effects = assessed.expect("nothing has changed").1;
        effects.extend(self.object.handle_contention(&question.wishes, None));
        brief(effects)
    }

    fn change(&mut self, change: Change<Text>) -> Vec<String> {
        let value = change.value.clone();
        let question = self.object.question(&change);
        let judgement = question.judge(|wishes| Some(wishes.evaluate(value.as_ref())), |_| self.rivals);
        brief(self.object.handle_change(change, &question, judgement).expect("nothing has changed"))
    }

    /// The watch reports a write.
    fn put(&mut self, value: &str, version: TestVersion) -> Vec<String> {
        self.change(Change::new(Some(value.into()), version, self.now))
    }

    /// The watch reports a deletion.
    fn delete(&mut self, version: TestVersion) -> Vec<String> {
        self.change(Change::new(None, version, self.now))
    }

    fn list(&mut self, read: Read) -> Vec<String> {
        self.object.handle_listing();
        self.change(Change::listed(entry(read), self.now))
    }

    /// An attempt starts and reads.
    fn read(&mut self, read: Read) -> (Step<Text>, Vec<String>) {
        let wishes = self.object.handle_attempt();
        let read = entry(read);
        let evaluation = wishes.evaluate(read.as_ref().map(|(value, _)| value));
        let by_rival = self.object.before_read(read.as_ref(), &evaluation).is_some() && self.rivals;
        let (step, effects) = self.object.handle_read(self.now, read, evaluation, by_rival);
        (step, brief(effects))
    }

    /// An attempt starts, reads, and sends its write.
    fn send(&mut self, read: Read) {
        let (step, _) = self.read(read);
        assert!(matches!(step, Step::Write { .. }), "{step:?}");
    }

    fn answer(&mut self, answer: Answer<Text>) -> (Verdict, Vec<String>) {
        let (verdict, effects) = self.object.handle_answer(answer);
        (verdict, brief(effects))
    }

    /// The attempt ends.
    fn end(&mut self) -> Vec<String> {
        let mut effects = Vec::new();
        while let Some(change) = self.object.poll_deferred() {
            effects.extend(self.change(change));
        }
        effects
    }

    /// One attempt reads, writes and succeeds.
    fn write(&mut self, read: Read, version: TestVersion) -> Vec<String> {
        self.send(read);
        let (verdict, effects) = self.answer(Answer::Written(version));
        assert_eq!(verdict.outcome, Outcome::Written);
        self.end();
        effects
    }
}

fn entry(read: Read) -> Option<(String, TestVersion)> {
    read.map(|(value, version)| (value.to_owned(), version))
}

fn brief(effects: Vec<Effect<Text>>) -> Vec<String> {
    let brief = |effect| match effect {
        Effect::Queue => "queue".into(),
        Effect::Clear => "clear".into(),
        Effect::Satisfied => "satisfied".into(),
        Effect::Assess => "assess".into(),
        Effect::Discard(_) => "discard".into(),
        Effect::Deleted => "deleted".into(),
        Effect::Evidence { revision } => format!("evidence {revision:?}"),
        Effect::Echo(echo) => format!("echo {echo:?}"),
        Effect::Deny(waiters, reason) => format!("deny {} {reason}", waiters.len()),
        Effect::Lost(value) => format!("lost {value}"),
        Effect::Complete(request, completion) => format!("{} {completion:?}", request.id.0),
    };
    effects.into_iter().map(brief).collect()
}

// --- requests ---

#[test]
fn unsatisfied_request_is_assessed_and_queued() {
    assert_eq!(Shell::absent().request(1, "", Exactly("a")), ["assess", "queue"]);
}

#[test]
fn request_for_an_unknown_value_is_queued_first() {
    let mut shell = Shell::absent();
    shell.object = Object::new(false);
    assert_eq!(shell.request(1, "", Exactly("a")), ["queue", "assess"]);
}

#[test]
fn request_for_the_known_value_needs_no_job() {
    let mut shell = Shell::with("a", Ordered(1));
    assert_eq!(shell.request(1, "", Exactly("a")), ["assess", "satisfied", "1 Satisfied"]);
    shell.put("b", Ordered(2));
    shell.request(2, "", Exactly("a"));
    let restored = shell.request(3, "", Exactly("b"));
    assert_eq!(restored, ["2 Superseded", "queue", "assess", "satisfied", "3 Satisfied", "discard"]);
}

#[test]
fn parts_are_satisfied_together() {
    let mut shell = Shell::with("l", Ordered(1));
    assert_eq!(shell.request(1, "right", Word("r")), ["assess", "queue"]);
    assert_eq!(shell.request(2, "left", Word("l")), ["queue", "assess"], "the other part is pending");
}

#[test]
fn write_that_comes_back_satisfies_a_later_request() {
    for version in [Ordered, Opaque] {
        let mut shell = Shell::absent();
        shell.request(1, "", Exactly("a"));
        shell.write(None, version(1));
        assert_eq!(shell.request(2, "", Exactly("a")), ["queue", "assess"], "our write has not come back");
        assert_eq!(shell.put("a", version(1)), ["echo 0ns", "assess"]);
        assert_eq!(shell.assess(), ["satisfied", "2 Satisfied"]);
    }
}

#[test]
fn absent_object_that_must_exist_is_read() {
    assert_eq!(Shell::absent().request(1, "", Existing("a")), ["assess", "queue"]);
}

#[test]
fn known_value_that_may_be_outdated_satisfies_nothing() {
    // The watch is not live, or a listing is in progress.
    let mut shell = Shell::with("a", Ordered(1));
    let request =
        Request { id: RequestId(1), part: "".into(), wish: Exactly("a"), seen: None, waiter: Some(()) };
    shell.object.handle_request(request);
    let (question, value) = shell.object.assessment().unwrap();
    let evaluation = question.wishes.evaluate(value.as_ref());
    let (_, effects) = shell.object.handle_assessment(&question, Some(evaluation), false).unwrap();
    assert_eq!(brief(effects), [""; 0]);
    assert_eq!(brief(shell.object.handle_contention(&question.wishes, None)), ["queue"]);

    // Our write has not come back.
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.write(None, Ordered(1));
    assert_eq!(shell.request(2, "", Exactly("a")), ["queue", "assess"]);

    // Our write has no answer.
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", Exactly("a"));
    shell.send(Some(("b", Ordered(1))));
    let _ = shell.answer(Answer::Unanswered);
    assert_eq!(shell.request(2, "", Exactly("b")), ["1 Superseded", "queue", "assess"], "in flight");
    shell.end();
    assert_eq!(shell.assess(), [""; 0]);
}

#[test]
fn known_value_older_than_the_callers_satisfies_nothing() {
    for (seen, satisfies) in [(Ordered(2), true), (Ordered(3), true), (Ordered(4), false), (Opaque(2), false)]
    {
        let mut shell = Shell::with("a", Ordered(3));
        assert_eq!(shell.request_seen(1, Exactly("a"), seen).is_empty(), satisfies, "{seen:?}");
    }
}

#[test]
fn change_older_than_the_callers_version_ends_nothing() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request_seen(1, Exactly("a"), Ordered(3));
    assert_eq!(shell.put("a", Ordered(2)), [""; 0], "the caller saw what came after it");
    assert_eq!(shell.put("b", Ordered(3)), [""; 0]);
    assert_eq!(shell.put("a", Ordered(4)), ["evidence Some(4)", "1 ByOther"]);
}

#[test]
fn newer_request_supersedes_its_part_only() {
    let mut shell = Shell::absent();
    shell.request(1, "left", Word("l"));
    shell.request(2, "right", Word("r"));
    assert_eq!(shell.request(3, "left", Word("L")), ["1 Superseded", "queue", "assess"]);
    assert_eq!(shell.object.requests().iter().map(|request| request.id.0).collect::<Vec<_>>(), [3, 2]);
}

#[test]
fn assessment_reports_a_satisfactory_value_as_lost() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.write(None, Ordered(1));
    assert_eq!(shell.put("b", Ordered(2)), [""; 0]);
    let request =
        Request { id: RequestId(2), part: "".into(), wish: Exactly("a"), seen: None, waiter: Some(()) };
    shell.object.handle_request(request);
    assert_eq!(shell.assess(), ["lost a", "queue"]);
    assert_eq!(shell.assess(), [""; 0], "once");
}

#[test]
fn assessment_of_changed_requests_is_stale() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    let (question, value) = shell.object.assessment().unwrap();
    let evaluation = question.wishes.evaluate(value.as_ref());
    shell.request(2, "", Exactly("b"));
    assert_eq!(shell.object.handle_assessment(&question, Some(evaluation), true), Err(Stale));
}

#[test]
fn removal_ends_all_parts_and_clears() {
    let mut shell = Shell::absent();
    shell.request(1, "left", Word("l"));
    shell.request(2, "right", Word("r"));
    assert_eq!(
        brief(shell.object.handle_removal()),
        ["1 Removed", "2 Removed", "discard", "clear"],
        "the first part was unsatisfied when the second came"
    );
    assert_eq!(brief(shell.object.handle_removal()), ["clear"]);
}

#[test]
fn closure_gives_all_requests_up() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    assert_eq!(brief(shell.object.handle_closure("closed")), [r#"1 GivenUp("closed")"#]);
}

#[test]
fn contention_gives_up_assessed_requests_only() {
    let mut shell = Shell::absent();
    shell.request(1, "left", Word("l"));
    let (question, _) = shell.object.assessment().unwrap();
    shell.request(2, "right", Word("r"));
    let effects = shell.object.handle_contention(&question.wishes, Some("contended"));
    assert_eq!(brief(effects), [r#"1 GivenUp("contended")"#, "assess"], "the other one stays queued");
    let (question, _) = shell.object.assessment().unwrap();
    let effects = shell.object.handle_contention(&question.wishes, Some("contended"));
    assert_eq!(brief(effects), [r#"2 GivenUp("contended")"#, "discard", "clear"]);
}

#[test]
fn wishes_that_change_their_own_value_are_never_content() {
    let never_content = |wishes: &[Wish]| -> Vec<u64> {
        let mut shell = Shell::absent();
        for (id, wish) in (0..).zip(wishes) {
            shell.request(id, &id.to_string(), *wish);
        }
        let wishes = shell.object.handle_attempt();
        let never_content = wishes.never_content(&wishes.evaluate(None));
        assert_eq!(wishes.without(&never_content).is_empty(), !wishes.is_empty() && never_content == wishes);
        let pending = shell.object.requests().iter().map(|request| request.id);
        pending.filter(|id| never_content.contains(*id)).map(|id| id.0).collect()
    };
    assert_eq!(never_content(&[Exactly("a")]), [0; 0]);
    assert_eq!(never_content(&[More('a')]), [0]);
    assert_eq!(never_content(&[Word("l"), More('a'), Word("r")]), [1]);
    assert_eq!(never_content(&[Exactly("a"), Exactly("b")]), [0; 0], "the second undoes what the first did");
    assert_eq!(never_content(&[More('a'), Exactly("b")]), [0; 0]);
}

// --- reads ---

#[test]
fn unsatisfactory_read_is_written_against_its_version() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", Exactly("a"));
    let (step, effects) = shell.read(Some(("b", Ordered(1))));
    assert_eq!(step, Step::Write { value: "a".into(), expected: Some(Ordered(1)) });
    assert_eq!(effects, [""; 0]);
}

#[test]
fn absent_object_is_created() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    assert_eq!(shell.read(None).0, Step::Write { value: "a".into(), expected: None });
}

#[test]
fn absent_object_that_must_exist_is_gone() {
    let mut shell = Shell::absent();
    shell.request(1, "", Existing("a"));
    let (step, effects) = shell.read(None);
    assert_eq!((step, effects), (Step::Finish(Outcome::Unchanged.done()), vec!["1 Gone".into()]));
}

#[test]
fn read_that_finds_a_deletion_is_no_evidence() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", AtMost("a"));
    let (step, effects) = shell.read(None);
    assert_eq!(step, Step::Finish(Outcome::Unchanged.done()));
    assert_eq!(effects, ["1 Satisfied", "deleted"]);

    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", Exactly("a"));
    assert_eq!(shell.read(None).1, ["deleted"]);
}

#[test]
fn part_that_must_exist_keeps_no_other_from_creating() {
    let mut shell = Shell::absent();
    shell.request(1, "left", Existing("l"));
    shell.request(2, "right", Word("r"));
    let (step, effects) = shell.read(None);
    assert_eq!(step, Step::Write { value: " r".into(), expected: None });
    assert_eq!(effects, ["1 Gone"]);
}

#[test]
fn rewriting_a_satisfactory_value_reports_it_lost() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.write(None, Ordered(1));
    // The assessment still sees our own write.
    shell.request(2, "", Exactly("a"));
    let (_, effects) = shell.read(Some(("b", Ordered(2))));
    assert_eq!(effects, ["lost a"]);
}

#[test]
fn satisfactory_read_at_first_sight_is_satisfied() {
    let mut shell = Shell { object: Object::new(false), ..Shell::absent() };
    shell.request(1, "", Exactly("a"));
    let (step, effects) = shell.read(Some(("a", Ordered(1))));
    assert_eq!((step, effects), (Step::Finish(Outcome::Unchanged.done()), vec!["1 Satisfied".into()]));
}

#[test]
fn satisfactory_read_after_unsatisfactory_sight_is_evidence() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", Exactly("a"));
    let (_, effects) = shell.read(Some(("a", Ordered(2))));
    assert_eq!(effects, ["1 ByOther", "evidence Some(2)"]);
}

#[test]
fn read_that_nobody_competed_for_is_no_evidence() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.rivals = false;
    shell.request(1, "", Exactly("a"));
    assert_eq!(shell.read(Some(("a", Ordered(2)))).1, ["1 Satisfied"]);
}

#[test]
fn evidence_requeues_requests_that_came_meanwhile() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "left", Word("l"));
    let wishes = shell.object.handle_attempt();
    shell.request(2, "right", Word("r"));
    let read = entry(Some(("l", Ordered(2))));
    let evaluation = wishes.evaluate(read.as_ref().map(|(value, _)| value));
    let (_, effects) = shell.object.handle_read(shell.now, read, evaluation, true);
    assert_eq!(brief(effects), ["discard", "1 ByOther", "evidence Some(2)", "queue", "assess"]);
}

#[test]
fn read_of_our_unacknowledged_write_is_written() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", Exactly("a"));
    shell.send(Some(("b", Ordered(1))));
    assert_eq!(shell.answer(Answer::Unanswered), (Outcome::Failed.retry(), Vec::new()));
    shell.end();
    assert_eq!(shell.read(Some(("a", Ordered(2)))).1, ["1 Written(Ordered(2))"]);
}

// --- answers ---

#[test]
fn written_request_ends_as_written_others_satisfied() {
    let mut shell = Shell::with("l", Ordered(1));
    shell.request_blindly(1, "left", Word("l"));
    shell.request(2, "right", Word("r"));
    shell.send(Some(("l", Ordered(1))));
    let (verdict, effects) = shell.answer(Answer::Written(Ordered(2)));
    assert_eq!(verdict, Outcome::Written.done().at_revision(Some(2)));
    assert_eq!(effects, ["1 Satisfied", "2 Written(Ordered(2))"]);
}

#[test]
fn request_during_the_attempt_is_assessed_after_it() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.send(None);
    assert_eq!(shell.request(2, "", Exactly("b")), ["1 Superseded", "queue", "assess"]);
    assert_eq!(shell.answer(Answer::Written(Ordered(1))).1, ["discard", "assess"]);
    shell.assess();
    shell.end();
    assert_eq!(
        shell.put("b", Ordered(2)),
        ["evidence Some(2)", "2 ByOther"],
        "it was unsatisfied by our write"
    );
}

#[test]
fn refusals_and_failures_are_tried_again() {
    for (answer, verdict) in [
        (Answer::Conflict, Outcome::Conflict.retry()),
        (Answer::Fenced, Outcome::WrittenByOther.retry()),
        (Answer::Unanswered, Outcome::Failed.retry()),
    ] {
        let mut shell = Shell::absent();
        shell.request(1, "", Exactly("a"));
        shell.send(None);
        assert_eq!(shell.answer(answer), (verdict, Vec::new()));
        assert!(!shell.object.requests().is_empty());
    }
}

#[test]
fn failed_read_is_tried_again() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.object.handle_attempt();
    assert_eq!(shell.answer(Answer::Unanswered), (Outcome::Failed.retry(), Vec::new()));
    shell.end();
    assert_eq!(shell.put("a", Ordered(1)), ["evidence Some(1)", "1 ByOther"], "nothing was sent");
}

#[test]
fn refusals_for_good_give_the_requests_up() {
    for (answer, verdict, is_refusal) in [
        (Answer::Impossible("no"), Outcome::Unchanged.done(), true),
        (Answer::Withheld("no"), Outcome::Unchanged.done(), false),
    ] {
        let mut shell = Shell::with("b", Ordered(1));
        shell.request(1, "", Exactly("a"));
        shell.send(Some(("b", Ordered(1))));
        assert_eq!(shell.answer(answer), (verdict, vec![r#"1 GivenUp("no")"#.into()]));
        shell.end();
        assert_eq!(shell.object.take_refusal(Some(&Ordered(1))), is_refusal.then_some("no"));
        assert_eq!(shell.object.take_refusal(Some(&Ordered(1))), None, "once");
    }
}

#[test]
fn denied_requests_stay_pending_and_are_told_once() {
    let verdict = Outcome::Denied.retry();
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "left", Word("l"));
    shell.request(2, "right", Word("r"));
    shell.send(Some(("b", Ordered(1))));
    shell.request(3, "late", Word("x"));
    assert_eq!(shell.answer(Answer::Denied("no")), (verdict, vec!["deny 2 no".into()]));
    shell.end();
    assert_eq!(shell.object.take_refusal(Some(&Ordered(1))), Some("no"));
    shell.object.handle_attempt();
    assert_eq!(shell.answer(Answer::Denied("no")), (verdict, vec!["deny 1 no".into()]), "also of a read");
    shell.end();
    shell.object.handle_attempt();
    assert_eq!(shell.answer(Answer::Denied("no")), (verdict, Vec::new()));
    shell.end();
    assert_eq!(shell.object.take_refusal(Some(&Ordered(1))), Some("no"), "each time");
    // It ends as any other request does.
    assert_eq!(shell.request(4, "left", Word("L")), ["1 Superseded", "queue", "assess"]);
    assert_eq!(
        shell.put("L r x", Ordered(2)),
        ["evidence Some(2)", "4 ByOther", "2 ByOther", "3 ByOther", "discard"]
    );
}

#[test]
fn refusal_of_a_withdrawn_request_is_not_kept() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", Exactly("a"));
    shell.send(Some(("b", Ordered(1))));
    let _ = shell.object.handle_removal();
    let _ = shell.answer(Answer::Denied("no"));
    shell.end();
    assert_eq!(shell.object.take_refusal(Some(&Ordered(1))), None);
}

#[test]
fn refused_read_is_kept_before_anything_is_known() {
    let mut shell = Shell { object: Object::new(false), ..Shell::absent() };
    shell.request(1, "", Exactly("a"));
    shell.object.handle_attempt();
    let _ = shell.answer(Answer::Impossible("no"));
    shell.end();
    assert!(!shell.object.is_blank());
    assert_eq!(shell.object.take_refusal(Some(&Ordered(1))), Some("no"));
    assert!(shell.object.is_blank());
}

#[test]
fn refusal_belongs_to_one_version() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", Exactly("a"));
    shell.object.handle_attempt();
    let _ = shell.answer(Answer::Denied("no"));
    shell.end();
    assert_eq!(shell.object.take_refusal(Some(&Ordered(2))), None);
    shell.request(2, "", Exactly("a"));
    shell.object.handle_attempt();
    let _ = shell.answer(Answer::Denied("no"));
    shell.end();
    shell.put("c", Ordered(2));
    assert_eq!(shell.object.take_refusal(Some(&Ordered(1))), None, "the object is another one");
}

// --- changes ---

#[test]
fn change_waits_for_the_attempt_in_flight() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.send(None);
    shell.now = shell.now + Duration::from_millis(5);
    assert_eq!(shell.put("a", Ordered(1)), [""; 0]);
    shell.now = shell.now + Duration::from_millis(5);
    assert_eq!(shell.answer(Answer::Written(Ordered(1))).1, ["1 Written(Ordered(1))"]);
    assert_eq!(shell.end(), ["echo 5ms"], "counted to its arrival");
}

#[test]
fn changes_are_taken_in_in_order() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.send(None);
    shell.put("b", Ordered(1));
    shell.put("a", Ordered(2));
    let _ = shell.answer(Answer::Conflict);
    assert_eq!(shell.end(), ["evidence Some(2)", "1 ByOther"]);
}

#[test]
fn our_write_measures_the_echo_once() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.write(None, Ordered(1));
    shell.now = shell.now + Duration::from_millis(7);
    assert_eq!(shell.put("a", Ordered(1)), ["echo 7ms"]);
    assert_eq!(shell.put("a", Ordered(1)), [""; 0]);
}

#[test]
fn listing_measures_no_echo() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.write(None, Ordered(1));
    assert_eq!(shell.list(Some(("a", Ordered(1)))), [""; 0]);
    assert_eq!(shell.put("a", Ordered(1)), [""; 0], "it has come back already");
}

#[test]
fn write_before_an_interruption_measures_no_echo() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.write(None, Ordered(1));
    shell.now = shell.now + Duration::from_secs(30);
    let change = Change::new(Some("a".into()), Ordered(1), shell.now);
    assert_eq!(shell.change(change.live_since(shell.now)), [""; 0]);
}

#[test]
fn older_change_has_no_effect() {
    let mut shell = Shell::with("b", Ordered(5));
    shell.request(1, "", Exactly("a"));
    assert_eq!(shell.put("a", Ordered(4)), [""; 0]);
    assert!(!shell.object.requests().is_empty());
}

#[test]
fn rivals_write_that_satisfies_is_evidence() {
    let mut shell = Shell::absent();
    shell.request(1, "left", Word("l"));
    shell.request(2, "right", Word("r"));
    let effects = shell.put("l r", Ordered(3));
    assert_eq!(effects, ["evidence Some(3)", "1 ByOther", "2 ByOther", "discard"]);
}

#[test]
fn satisfactory_write_of_others_clears_only() {
    let mut shell = Shell::absent();
    shell.rivals = false;
    shell.request(1, "", Exactly("a"));
    assert_eq!(shell.put("a", Ordered(1)), ["satisfied", "1 Satisfied"]);
}

#[test]
fn edit_of_a_satisfactory_value_clears_only() {
    let mut shell = Shell::with("a", Ordered(1));
    shell.request_blindly(1, "", Word("a"));
    assert_eq!(shell.put("a b", Ordered(2)), ["satisfied", "1 Satisfied"]);
}

#[test]
fn listing_clears_and_is_no_evidence() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    assert_eq!(shell.list(Some(("a", Ordered(1)))), ["satisfied", "1 Satisfied"]);
    assert!(shell.object.is_listed());
}

#[test]
fn listing_without_the_object_shows_its_absence() {
    let mut shell = Shell::with("a", Ordered(1));
    assert_eq!(shell.list(None), ["deleted"]);
    assert_eq!(shell.list(None), [""; 0], "once");
    shell.request(1, "", Exactly("a"));
    assert_eq!(shell.put("a", Ordered(2)), ["evidence Some(2)", "1 ByOther"], "it was absent in between");
}

#[test]
fn deletion_is_no_evidence_and_ends_claims() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", AtMost("a"));
    assert_eq!(shell.delete(Ordered(2)), ["satisfied", "1 Satisfied", "deleted"]);
    assert_eq!(shell.delete(Ordered(3)), [""; 0], "it was gone already");

    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", AtMost("a"));
    shell.request(2, "", Exactly("a"));
    assert_eq!(shell.delete(Ordered(2)), ["deleted"], "nor for an earlier request");

    let mut shell = Shell::with("b", Ordered(1));
    assert_eq!(shell.delete(Ordered(2)), ["deleted"], "nor if nobody wants the object");
}

#[test]
fn listing_replaces_changes_that_an_attempt_deferred() {
    let mut shell = Shell::with("old", Opaque(1));
    shell.request(1, "", Exactly("a"));
    shell.send(Some(("now", Opaque(3))));
    assert_eq!(shell.put("a", Opaque(2)), [""; 0], "it is older than what the attempt has read");
    assert_eq!(shell.list(Some(("now", Opaque(3)))), [""; 0]);
    let _ = shell.answer(Answer::Conflict);
    assert_eq!(shell.end(), ["assess"], "of the listing");
    assert_eq!(shell.put("a", Opaque(4)), ["evidence None", "1 ByOther"]);
}

#[test]
fn change_to_our_unacknowledged_value_is_written() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.send(None);
    let _ = shell.answer(Answer::Unanswered);
    shell.end();
    assert_eq!(shell.put("a", Ordered(1)), ["satisfied", "1 Written(Ordered(1))"]);
}

#[test]
fn another_value_ends_the_wait_for_unacknowledged() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.send(None);
    let _ = shell.answer(Answer::Unanswered);
    shell.end();
    assert_eq!(shell.put("b", Ordered(1)), [""; 0], "our write cannot succeed any more");
    assert_eq!(shell.put("a", Ordered(2)), ["evidence Some(2)", "1 ByOther"]);
}

#[test]
fn unsatisfactory_change_leaves_the_request() {
    let mut shell = Shell::with("a", Ordered(1));
    shell.request_blindly(1, "", Exactly("a"));
    assert_eq!(shell.put("b", Ordered(2)), [""; 0]);
    assert_eq!(shell.put("a", Ordered(3)), ["evidence Some(3)", "1 ByOther"], "it noted that");
}

#[test]
fn rival_that_fulfils_an_earlier_request_is_alive() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.request(2, "", Exactly("b"));
    shell.request(3, "", Exactly("c"));
    assert_eq!(shell.put("b", Ordered(1)), [""; 0], "the second was never the oldest one");
    assert_eq!(shell.put("a", Ordered(2)), ["discard", "evidence Some(2)", "queue"]);
    assert_eq!(shell.put("a", Ordered(3)), [""; 0], "once");
    assert_eq!(shell.put("c", Ordered(4)), ["evidence Some(4)", "3 ByOther"]);
}

#[test]
fn wish_that_cannot_be_evaluated_keeps_its_request() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    let change = Change::new(Some("a".into()), Ordered(1), shell.now);
    let question = shell.object.question(&change);
    let judgement = question.judge(|_| None, |_| true);
    assert_eq!(judgement.satisfied, None);
    assert_eq!(brief(shell.object.handle_change(change, &question, judgement).unwrap()), [""; 0]);
    assert!(!shell.object.requests().is_empty());
}

#[test]
fn change_with_an_answer_to_another_question_returns() {
    let mut shell = Shell::absent();
    let change = Change::new(Some("a".into()), Ordered(1), shell.now);
    let question = shell.object.question(&change);
    let judgement = question.judge(|_| panic!("nothing is wanted"), |_| panic!("nothing is wanted"));
    shell.request(1, "", Exactly("a"));
    let change = shell.object.handle_change(change, &question, judgement).expect_err("a request came");
    assert_eq!(shell.change(change), ["evidence Some(1)", "1 ByOther"]);
}

#[test]
fn answer_for_a_forgotten_object_is_stale() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    let change = Change::new(Some("a".into()), Ordered(1), shell.now);
    let question = shell.object.question(&change);
    let judgement = question.judge(|wishes| Some(wishes.evaluate(change.value.as_ref())), |_| true);
    shell.object.handle_removal();
    assert!(shell.object.is_blank());
    let mut anew = Shell::absent();
    anew.request(2, "", Exactly("b"));
    assert!(
        anew.object.handle_change(change, &question, judgement).is_err(),
        "another request has its place"
    );
}

// --- ahead of the watch ---

#[test]
fn past_of_a_deleted_object_clears_nothing() {
    let mut shell = Shell::with("old", Ordered(1));
    shell.request(1, "", Exactly("a"));
    for _ in 0..2 {
        // The first attempt, and a retry that finds the same.
        shell.send(None);
        let _ = shell.answer(Answer::Conflict);
        shell.end();
    }
    assert_eq!(shell.put("a", Ordered(2)), [""; 0], "that was before the deletion that we saw");
    assert_eq!(shell.delete(Ordered(3)), [""; 0]);
    assert_eq!(shell.put("a", Ordered(4)), ["evidence Some(4)", "1 ByOther"]);
}

#[test]
fn unordered_watch_behind_our_read_clears_nothing() {
    let mut shell = Shell::with("old", Opaque(1));
    shell.request(1, "", Exactly("a"));
    shell.send(Some(("now", Opaque(7))));
    let _ = shell.answer(Answer::Conflict);
    shell.end();
    assert_eq!(shell.put("a", Opaque(3)), [""; 0], "it may be old");
    assert_eq!(shell.put("now", Opaque(7)), ["assess"], "the watch has caught up");
    assert_eq!(shell.put("a", Opaque(8)), ["evidence None", "1 ByOther"]);
}

/// A store that was set back has forgotten our write, so that the watch never reports it.
#[test]
fn unordered_watch_catches_up_with_a_read() {
    let mut shell = Shell::with("old", Opaque(1));
    shell.request(1, "", Exactly("a"));
    shell.send(Some(("lost", Opaque(7))));
    let _ = shell.answer(Answer::Conflict);
    shell.end();
    assert_eq!(shell.put("now", Opaque(3)), [""; 0], "it may be old");
    shell.send(Some(("now", Opaque(3))));
    let _ = shell.answer(Answer::Conflict);
    shell.end();
    assert_eq!(shell.put("a", Opaque(4)), ["evidence None", "1 ByOther"]);
}

#[test]
fn unordered_watch_catches_up_with_a_listing() {
    let mut shell = Shell::with("old", Opaque(1));
    shell.request(1, "", Exactly("a"));
    shell.send(Some(("now", Opaque(7))));
    let _ = shell.answer(Answer::Conflict);
    shell.end();
    assert_eq!(shell.list(Some(("other", Opaque(3)))), [""; 0]);
    assert_eq!(shell.put("a", Opaque(4)), ["evidence None", "1 ByOther"]);
}

// --- behind the watch ---

#[test]
fn read_behind_the_watch_is_stale() {
    let stale = |shell: &Shell, read| shell.object.is_stale_read(entry(read).as_ref());
    let mut shell = Shell::with("b", Ordered(5));
    assert!(stale(&shell, Some(("a", Ordered(4)))));
    assert!(!stale(&shell, Some(("b", Ordered(5)))));
    assert!(!stale(&shell, Some(("a", Ordered(6)))));
    assert!(!stale(&shell, None), "a read of nothing has no version");
    shell.delete(Ordered(6));
    assert!(stale(&shell, Some(("b", Ordered(5)))));
    let opaque = Shell::with("b", Opaque(5));
    assert!(!stale(&opaque, Some(("a", Opaque(4)))), "they have no order");
}

/// The cache may hold a value that satisfied an earlier request, while the caller has seen what
/// somebody made of it.
#[test]
fn read_behind_what_the_caller_has_seen_is_stale() {
    let mut shell = Shell::with("a", Ordered(5));
    shell.request_seen(1, Exactly("a"), Ordered(7));
    let stale = |read| shell.object.is_stale_read(entry(Some(read)).as_ref());
    assert!(stale(("a", Ordered(5))) && stale(("a", Ordered(6))));
    assert!(!stale(("b", Ordered(7))) && !stale(("b", Ordered(8))));
}

#[test]
fn read_that_stays_behind_the_watch_is_no_evidence() {
    let mut shell = Shell::with("b", Ordered(1_000));
    shell.request(1, "", Exactly("a"));
    assert_eq!(shell.read(Some(("a", Ordered(500)))).1, ["1 Satisfied"]);
    shell.end();
    shell.request(2, "", Exactly("c"));
    let (step, _) = shell.read(Some(("a", Ordered(500))));
    assert_eq!(step, Step::Write { value: "c".into(), expected: Some(Ordered(500)) }, "it was restored");
}

// --- listings of older states ---

#[test]
fn listing_with_smaller_revisions_replaces_what_is_known() {
    let mut shell = Shell::with("old", Ordered(1_000));
    assert_eq!(shell.list(Some(("older", Ordered(500)))), [""; 0]);
    shell.request(1, "", Exactly("a"));
    assert_eq!(shell.put("a", Ordered(501)), ["evidence Some(501)", "1 ByOther"]);
}

#[test]
fn listing_with_smaller_revisions_ends_no_request() {
    let mut shell = Shell::with("b", Ordered(1_000));
    shell.request(1, "", Exactly("a"));
    assert_eq!(shell.list(Some(("a", Ordered(500)))), ["assess"], "it may be older than the request");
    assert_eq!(shell.read(Some(("a", Ordered(500)))).1, ["1 Satisfied"]);
}

#[test]
fn write_during_a_listing_outlives_it() {
    let mut shell = Shell::absent();
    shell.object.handle_listing();
    shell.request(1, "", Exactly("a"));
    shell.write(None, Ordered(7));
    assert_eq!(shell.change(Change::listed(None, shell.now)), [""; 0]);
    assert_eq!(shell.object.value().map(|value| &**value), Some("a"));
}

#[test]
fn write_before_an_older_listing_is_no_evidence() {
    let versions: [fn(u64) -> TestVersion; 2] = [Ordered, Opaque];
    for (version, is_listed) in versions.into_iter().flat_map(|version| [(version, false), (version, true)]) {
        let listed = is_listed.then_some(("old", version(1)));
        let returned = || {
            let mut shell = Shell::absent();
            shell.request(1, "", Exactly("a"));
            shell.write(listed, version(2));
            shell.list(listed);
            shell.request(2, "", Exactly("a"));
            shell
        };
        assert_eq!(returned().put("a", version(2)), ["echo 0ns", "satisfied", "2 Satisfied"]);
        assert_eq!(returned().read(Some(("a", version(2)))).1, ["2 Satisfied"]);
    }
}

#[test]
fn older_listing_hides_no_write_of_ours() {
    let versions: [fn(u64) -> TestVersion; 2] = [Ordered, Opaque];
    for version in versions {
        let returned = || {
            let mut shell = Shell::absent();
            shell.request(1, "", Exactly("a"));
            shell.write(None, version(2));
            shell.request(2, "", Exactly("a b"));
            shell.write(Some(("a", version(2))), version(3));
            shell.list(None);
            shell.request(3, "", Word("a"));
            shell
        };
        assert_eq!(returned().read(Some(("a c", version(4)))).1, ["3 Satisfied"], "an edit of ours");
        let mut shell = returned();
        assert_eq!(shell.put("a", version(2)), ["satisfied", "3 Satisfied"]);
        shell.request(4, "", Word("b"));
        assert_eq!(shell.put("a b", version(3)), ["echo 0ns", "satisfied", "4 Satisfied"]);
        shell.put("", version(4));
        shell.request(5, "", Word("c"));
        assert_eq!(shell.put("c", version(5)).last().unwrap(), "5 ByOther", "all of ours are back");
    }
}

#[test]
fn change_past_our_write_ends_the_wait_for_it() {
    let mut shell = Shell::absent();
    shell.request(1, "", Exactly("a"));
    shell.write(None, Ordered(2));
    shell.list(None);
    assert_eq!(shell.put("b", Ordered(3)), [""; 0]);
    shell.request(2, "", Exactly("a"));
    assert_eq!(shell.put("a", Ordered(4)), ["evidence Some(4)", "2 ByOther"]);
}

// --- writes without an answer ---

/// The object had the value "b" at version 1, and our write of "a" got no answer.
fn unanswered() -> Shell {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "", Word("a"));
    shell.send(Some(("b", Ordered(1))));
    let _ = shell.answer(Answer::Unanswered);
    shell.end();
    shell
}

#[test]
fn next_satisfactory_change_may_be_our_unanswered_write() {
    let mut shell = unanswered();
    assert_eq!(shell.put("default: a", Ordered(2)), ["satisfied", "1 Satisfied"]);
    shell.put("", Ordered(3));
    shell.request(2, "", Word("a"));
    assert_eq!(shell.put("a", Ordered(4)), ["evidence Some(4)", "2 ByOther"], "only the next one");
}

#[test]
fn next_satisfactory_read_may_be_our_unanswered_write() {
    let mut shell = unanswered();
    assert_eq!(shell.read(Some(("default: a", Ordered(2)))).1, ["1 Satisfied"]);
    let mut shell = unanswered();
    shell.send(Some(("b", Ordered(1))));
    let _ = shell.answer(Answer::Conflict);
    shell.end();
    assert_eq!(shell.read(Some(("default: a", Ordered(2)))).1, ["1 Satisfied"], "that refused the second");
}

#[test]
fn newer_request_leaves_the_unanswered_write_in_doubt() {
    let mut shell = unanswered();
    shell.request(2, "", Word("c"));
    assert_eq!(shell.put("default: a", Ordered(2)), [""; 0], "no evidence for the earlier request");
    assert_eq!(shell.put("c", Ordered(3)), ["evidence Some(3)", "2 ByOther", "discard"]);
}

#[test]
fn read_of_another_version_ends_the_wait_for_unanswered() {
    let mut shell = unanswered();
    shell.send(Some(("c", Ordered(2))));
    let _ = shell.answer(Answer::Conflict);
    shell.end();
    assert_eq!(shell.read(Some(("b a", Ordered(3)))).1, ["1 ByOther", "evidence Some(3)"]);
}

#[test]
fn older_listing_leaves_the_unanswered_write_in_doubt() {
    let mut shell = Shell::absent();
    shell.request(1, "", Word("a"));
    shell.send(None);
    let _ = shell.answer(Answer::Unanswered);
    shell.end();
    shell.list(None);
    assert_eq!(shell.put("default: a", Ordered(2)), ["satisfied", "1 Satisfied"]);
}

// --- absence ---

#[test]
fn existing_object_is_deleted_at_its_version() {
    let mut shell = Shell::with("b", Ordered(1));
    assert_eq!(shell.request_absence(1), ["assess", "queue"]);
    let (step, effects) = shell.read(Some(("b", Ordered(1))));
    assert_eq!((step, effects), (Step::Delete { expected: Ordered(1) }, Vec::new()));
    assert_eq!(shell.answer(Answer::Deleted), (Outcome::Written.done(), vec!["1 Deleted".into()]));
    shell.end();
    assert_eq!(shell.object.value(), None);
    assert_eq!(shell.delete(Ordered(2)), [""; 0], "our own deletion comes back");
    assert!(shell.object.is_blank());
}

#[test]
fn absent_object_satisfies_a_request_for_absence() {
    assert_eq!(Shell::absent().request_absence(1), ["assess", "satisfied", "1 Satisfied"]);
    let mut shell = Shell { object: Object::new(false), ..Shell::absent() };
    shell.request_absence(1);
    let (step, effects) = shell.read(None);
    assert_eq!((step, effects), (Step::Finish(Outcome::Unchanged.done()), vec!["1 Satisfied".into()]));
}

#[test]
fn last_request_decides_whether_the_object_is_to_exist() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request(1, "left", Word("l"));
    shell.request(2, "right", Word("r"));
    let effects = shell.request_absence(3);
    assert_eq!(effects, ["1 Superseded", "2 Superseded", "queue", "assess"]);
    assert_eq!(shell.request(4, "left", Word("l")), ["3 Superseded", "queue", "assess"]);
    assert_eq!(shell.request(5, "right", Word("r")), ["queue", "assess"], "parts share a write again");
}

#[test]
fn foreign_deletion_is_evidence_where_absence_is_wanted() {
    let mut shell = Shell::with("b", Ordered(1));
    shell.request_absence(1);
    assert_eq!(shell.delete(Ordered(2)), ["evidence Some(2)", "1 ByOther"]);

    let mut shell = Shell::with("b", Ordered(1));
    shell.request_absence(1);
    assert_eq!(shell.read(None).1, ["1 ByOther", "evidence None"]);

    let mut shell = Shell::with("b", Ordered(1));
    shell.request_absence(1);
    assert_eq!(shell.list(None), ["satisfied", "1 Satisfied", "deleted"], "a listing is no evidence");

    let mut shell = Shell::with("b", Ordered(1));
    shell.request_absence(1);
    shell.request(2, "", AtMost("a"));
    assert_eq!(shell.delete(Ordered(2)), ["satisfied", "2 Satisfied", "discard", "deleted"]);
}

#[test]
fn deletions_are_refused_and_repeated_as_writes_are() {
    for (answer, verdict) in [
        (Answer::Conflict, Outcome::Conflict.retry()),
        (Answer::Fenced, Outcome::WrittenByOther.retry()),
        (Answer::Unanswered, Outcome::Failed.retry()),
    ] {
        let mut shell = Shell::with("b", Ordered(1));
        shell.request_absence(1);
        shell.read(Some(("b", Ordered(1))));
        assert_eq!(shell.answer(answer), (verdict, Vec::new()));
        shell.end();
        assert_eq!(shell.read(Some(("c", Ordered(2)))).0, Step::Delete { expected: Ordered(2) });
    }
}

#[test]
fn deletion_without_an_answer_is_ours() {
    let unanswered = || {
        let mut shell = Shell::with("b", Ordered(1));
        shell.request_absence(1);
        shell.read(Some(("b", Ordered(1))));
        let _ = shell.answer(Answer::Unanswered);
        shell.end();
        shell
    };
    assert_eq!(unanswered().delete(Ordered(2)), ["satisfied", "1 Deleted"]);
    assert_eq!(unanswered().read(None).1, ["1 Deleted"]);
    let mut shell = unanswered();
    assert_eq!(shell.put("c", Ordered(2)), [""; 0], "ours cannot succeed any more");
    assert_eq!(shell.delete(Ordered(3)), ["evidence Some(3)", "1 ByOther"]);
}

#[test]
fn deletion_before_an_older_listing_is_no_evidence() {
    let versions: [fn(u64) -> TestVersion; 2] = [Ordered, Opaque];
    for version in versions {
        let mut shell = Shell::with("b", version(2));
        shell.request_absence(1);
        shell.read(Some(("b", version(2))));
        let _ = shell.answer(Answer::Deleted);
        shell.end();
        shell.list(Some(("a", version(1))));
        shell.request_absence(2);
        assert_eq!(shell.delete(version(3)), ["satisfied", "2 Satisfied", "deleted"]);
    }
}

// --- forgetting ---

#[test]
fn object_without_requests_that_is_absent_is_blank() {
    let mut shell = Shell::absent();
    assert!(shell.object.is_blank());
    shell.request(1, "", Exactly("a"));
    assert!(!shell.object.is_blank());
    shell.write(None, Ordered(1));
    assert!(!shell.object.is_blank());
    shell.delete(Ordered(2));
    assert!(shell.object.is_blank());
    shell.object.handle_attempt();
    assert!(!shell.object.is_blank(), "an attempt may come for a request that was withdrawn");
    shell.end();
    assert!(shell.object.is_blank());
    shell.request(2, "", Exactly("a"));
    shell.send(None);
    let _ = shell.answer(Answer::Unanswered);
    shell.end();
    let _ = shell.object.handle_removal();
    assert!(!shell.object.is_blank(), "our write may still come");
}
