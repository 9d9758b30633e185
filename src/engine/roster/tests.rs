use super::{
    doubt::{MAX_TRUST, TRIES, TRUST},
    *,
};

const ECHO: Duration = Duration::from_millis(10);
/// How long a member that is suspected has to answer.
const TIME: Duration = Duration::from_secs(1);

fn at(ms: u64) -> Timestamp {
    Timestamp::from_nanos(ms * 1_000_000)
}

fn member(name: &str) -> Member {
    Member::new(name, 1)
}

fn suspected(name: &str) -> Member {
    Member { is_suspected: true, ..member(name) }
}

fn members(names: &[&str]) -> Vec<Member> {
    names.iter().map(|name| member(name)).collect()
}

fn roster() -> Roster {
    Roster::new(member("us"), 64)
}

/// A roster with a job, on which these are, since time 0.
fn with(names: &[&str]) -> Roster {
    roster_of(members(names))
}

fn roster_of(members: Vec<Member>) -> Roster {
    let mut roster = roster();
    roster.wants_to_join(at(0));
    roster.members(at(0), members, TIME);
    roster
}

fn joins() -> Option<RosterRequest> {
    Some(RosterRequest::Join(member("us")))
}

fn asks(name: &str) -> Option<RosterRequest> {
    Some(RosterRequest::Suspect(name.into()))
}

fn strikes(name: &str) -> Option<RosterRequest> {
    Some(RosterRequest::StrikeOff(name.into()))
}

/// Doubts a member, and sees the mark of its entry.
fn is_suspected(roster: &mut Roster, now: Timestamp, name: &str) {
    roster.doubt(shard_of_member(roster, name), now);
    assert_eq!(roster.poll(now), asks(name));
    roster.members(now, vec![suspected(name), member("us")], TIME);
}

/// Returns a shard whose turn is that of a member.
fn shard_of_member(roster: &Roster, name: &str) -> u16 {
    (0..64).find(|shard| &*roster.view.member_of(*shard).unwrap().name == name).unwrap()
}

#[test]
fn first_job_joins_once_roster_is_read() {
    let mut roster = roster();
    assert_eq!((roster.timeout(), roster.poll(at(0))), (None, None));
    roster.members(at(1), vec![], TIME);
    assert_eq!(roster.poll(at(1)), None, "without a job nobody joins");
    roster.wants_to_join(at(2));
    roster.wants_to_join(at(3));
    assert_eq!(roster.poll(at(3)), joins());
    assert_eq!(roster.poll(at(3)), None);
    roster.members(at(5), members(&["us"]), TIME);
    roster.wants_to_join(at(6));
    assert_eq!((roster.timeout(), roster.poll(at(100_000))), (None, None));
}

#[test]
fn join_is_repeated_until_it_shows() {
    let mut roster = with(&[]);
    let mut now = at(0);
    for pause in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 32_000] {
        assert_eq!(roster.poll(now), joins());
        assert_eq!(roster.poll(now), None);
        assert_eq!(roster.timeout(), Some(now + Duration::from_millis(pause)));
        now = roster.timeout().unwrap();
    }
}

#[test]
fn denied_join_waits_for_a_job_and_a_long_pause() {
    let mut roster = with(&[]);
    assert_eq!(roster.poll(at(0)), joins());
    roster.cannot_join(at(10));
    assert_eq!((roster.timeout(), roster.poll(at(100_000))), (None, None));
    roster.cannot_join(at(100_000));
    roster.wants_to_join(at(100_001));
    assert_eq!(roster.timeout(), Some(at(132_000)));
}

#[test]
fn turns_are_open_without_a_roster() {
    let mut roster = roster();
    assert!((0..64).all(|shard| roster.turn(shard) == Turn::Open));
    assert_eq!(roster.members(at(0), vec![], TIME), []);
    let changes = roster.members(at(1), members(&["us"]), TIME);
    assert_eq!(changes.len(), 64);
    assert_eq!(
        changes[63],
        TurnChange { shard: 63, before: Turn::Open, now: Turn::Us, from_member: false, is_claimed: false }
    );
    let changes = roster.cannot_read(at(2));
    assert_eq!(
        changes[63],
        TurnChange { shard: 63, before: Turn::Us, now: Turn::Open, from_member: false, is_claimed: false }
    );
    assert!((0..64).all(|shard| roster.turn(shard) == Turn::Open));
    assert_eq!(roster.members(at(3), members(&["us"]), TIME).len(), 64, "it can be read again");
}

#[test]
fn changes_name_each_shard_whose_member_changed() {
    let mut roster = with(&["a", "b", "us"]);
    let before: Vec<Turn> = (0..64).map(|shard| roster.turn(shard)).collect();
    assert!(before.contains(&Turn::Us) && before.contains(&Turn::Other));
    assert_eq!(roster.members(at(1), members(&["us", "b", "a"]), TIME), []);
    let changes = roster.members(at(2), members(&["b", "c", "us"]), TIME);
    assert!(changes.iter().any(|change| (change.before, change.now) == (Turn::Other, Turn::Other)));
    for change in &changes {
        assert_eq!(change.before, before[usize::from(change.shard)]);
        assert_eq!(change.now, roster.turn(change.shard));
    }
    let unchanged = (0..64).filter(|shard| changes.iter().all(|change| change.shard != *shard));
    assert!(unchanged.clone().count() > 20);
    unchanged.for_each(|shard| assert_eq!(roster.turn(shard), before[usize::from(shard)]));
}

#[test]
fn hostile_rosters_are_put_right() {
    let mut roster = roster();
    let wild = |name: &str, weight| Member { weight, ..member(name) };
    roster.members(
        at(0),
        vec![wild("b", u16::MAX), wild("us", 0), wild("b", 1), wild("", 7), wild("us", 9)],
        TIME,
    );
    let seen: Vec<_> =
        roster.view.members.iter().map(|seen| (&*seen.member.name, seen.member.weight)).collect();
    assert_eq!(seen, [("", 7), ("b", 1), ("us", 1)]);
    let crowd: Vec<Member> = (0..5_000).map(|i| member(&format!("m{i:04}"))).collect();
    Roster::new(member("us"), 1).members(at(1), crowd, TIME);
}

#[test]
fn other_order_of_members_gives_same_turns() {
    let names = ["a", "b", "c", "d", "us"];
    let mut reversed = names;
    reversed.reverse();
    let (one, other) = (with(&names), with(&reversed));
    assert!((0..64).all(|shard| one.turn(shard) == other.turn(shard)));
}

#[test]
fn member_whose_work_was_taken_over_is_asked_and_then_struck_off() {
    let mut roster = with(&["a", "us"]);
    let shard = shard_of_member(&roster, "a");
    roster.doubt(shard, at(420));
    roster.doubt(shard, at(401));
    assert_eq!((roster.poll(at(419)), roster.timeout()), (None, Some(at(420))));
    assert_eq!(roster.poll(at(420)), asks("a"));
    assert_eq!(roster.poll(at(420)), None, "once is enough");
    assert_eq!(roster.members(at(430), vec![suspected("a"), member("us")], TIME), []);
    roster.doubt(shard, at(440));
    assert_eq!((roster.poll(at(1_429)), roster.timeout()), (None, Some(at(1_430))));
    assert_eq!(roster.poll(at(1_430)), strikes("a"));
    roster.members(at(1_450), members(&["us"]), TIME);
    assert_eq!(roster.timeout(), None);
}

#[test]
fn all_that_see_a_mark_strike_its_member_off() {
    let mut roster = with(&["a", "us"]);
    roster.members(at(430), vec![suspected("a"), member("us")], TIME);
    assert_eq!(roster.poll(roster.timeout().unwrap()), strikes("a"));
    let mut newcomer = roster_of(vec![suspected("a"), member("us")]);
    assert_eq!(newcomer.timeout(), Some(at(1_000)));
    assert_eq!(newcomer.poll(at(1_000)), strikes("a"));
}

#[test]
fn member_that_is_asked_answers_until_it_shows() {
    let mut roster = with(&["a", "us"]);
    let asked = vec![member("a"), suspected("us")];
    assert_eq!(roster.members(at(10), asked.clone(), TIME), []);
    assert_eq!(roster.poll(at(10)), joins());
    assert_eq!((roster.poll(at(10)), roster.timeout()), (None, Some(at(510))));
    roster.members(at(20), asked, TIME);
    assert_eq!(roster.timeout(), Some(at(510)), "the same question");
    assert_eq!(roster.poll(at(510)), joins());
    roster.members(at(520), members(&["a", "us"]), TIME);
    assert_eq!(roster.timeout(), None);
    roster.members(at(530), vec![member("a"), suspected("us")], TIME);
    assert_eq!(roster.poll(at(530)), joins(), "a new question");
    roster.cannot_join(at(540));
    assert_eq!(roster.timeout(), None, "the store denies the answer");
}

#[test]
fn restart_of_a_dead_member_that_was_asked_answers() {
    let mut roster = roster_of(vec![member("a"), suspected("us")]);
    assert_eq!(roster.poll(at(0)), joins());
    assert_eq!(roster.blocked_until(at(0), ECHO), None);
}

#[test]
fn member_that_answered_is_trusted_ever_longer() {
    let mut roster = with(&["a", "us"]);
    let (shard, mut now) = (shard_of_member(&roster, "a"), at(0));
    let answers = |roster: &mut Roster, now| {
        assert_eq!(roster.poll(now), asks("a"));
        roster.members(now, vec![suspected("a"), member("us")], TIME);
        assert_eq!(roster.members(now, members(&["a", "us"]), TIME), [], "it claims nothing back");
        assert_eq!(roster.timeout(), None);
    };
    roster.doubt(shard, now);
    for doublings in [0, 1, 2, 3, 4, 5, 6, 7, 8, 8] {
        answers(&mut roster, now);
        roster.doubt(shard, now);
        now = now + TRUST * (1 << doublings);
        assert_eq!(roster.timeout(), Some(now));
    }
    answers(&mut roster, now);
    // It does its work for as long again.
    now = now + 3 * TRUST * (1 << MAX_TRUST);
    roster.doubt(shard, now);
    answers(&mut roster, now);
    roster.doubt(shard, now);
    assert_eq!(roster.timeout(), Some(now + TRUST));
}

#[test]
fn nobody_asks_itself() {
    let mut roster = with(&["us"]);
    roster.doubt(0, at(10_000));
    assert_eq!(roster.poll(at(10_000)), None);
    let mut open = with(&[]);
    open.doubt(0, at(10_000));
    assert_eq!(open.poll(at(10_000)), joins());
    assert_eq!(open.poll(at(10_000)), None);
}

#[test]
fn write_to_an_entry_is_repeated_a_few_times() {
    let mut roster = with(&["a", "us"]);
    let shard = shard_of_member(&roster, "a");
    let tries =
        |roster: &mut Roster| std::iter::from_fn(|| roster.poll(roster.timeout()?)).collect::<Vec<_>>();
    roster.doubt(shard, at(2_000));
    assert_eq!(tries(&mut roster), vec![asks("a").unwrap(); TRIES as usize]);
    roster.members(at(90_000), vec![suspected("a"), member("us")], TIME);
    assert_eq!(tries(&mut roster), vec![strikes("a").unwrap(); TRIES as usize]);
    roster.doubt(shard, at(200_000));
    assert_eq!(roster.poll(at(200_000)), strikes("a"), "the next one that takes a shard over");
}

#[test]
fn member_that_was_struck_off_and_returns_has_answered_late() {
    for (returns, due) in [(3_000, at(3_000) + TRUST), (700_000, at(700_000))] {
        let mut roster = with(&["a", "us"]);
        is_suspected(&mut roster, at(2_000), "a");
        roster.members(at(2_010), members(&["us"]), TIME);
        roster.members(at(returns), members(&["us"]), TIME);
        roster.members(at(returns), members(&["a", "us"]), TIME);
        assert_eq!(roster.timeout(), None);
        roster.doubt(shard_of_member(&roster, "a"), at(returns));
        assert_eq!(roster.timeout(), Some(due), "it is forgotten after ten minutes");
    }
}

#[test]
fn displaced_member_claims_its_work_back_with_its_answer() {
    let mut roster = with(&["a", "us"]);
    roster.is_displaced();
    assert_eq!(roster.timeout(), None, "not before it is asked");
    roster.members(at(10), vec![member("a"), suspected("us")], TIME);
    let claims = |claims| Member { claims, ..member("us") };
    assert_eq!(roster.poll(at(10)), Some(RosterRequest::Join(claims(1))));
    assert_eq!(roster.poll(at(510)), Some(RosterRequest::Join(claims(1))), "until it shows");
    let changes = roster.members(at(520), vec![member("a"), claims(1)], TIME);
    let ours: Vec<u16> = (0..64).filter(|shard| roster.turn(*shard) == Turn::Us).collect();
    assert_eq!(changes.iter().map(|change| change.shard).collect::<Vec<_>>(), ours);
    let is_claimed = |change: &TurnChange| (change.is_claimed, change.from_member) == (true, true);
    assert!(changes.iter().all(is_claimed));
    roster.members(at(530), vec![member("a"), Member { is_suspected: true, ..claims(1) }], TIME);
    assert_eq!(roster.poll(at(530)), Some(RosterRequest::Join(claims(1))), "nothing was taken since");
}

#[test]
fn struck_off_alive_joins_again_ever_later() {
    let mut roster = with(&["a", "us"]);
    let mut now = at(1_000);
    for pause in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 32_000] {
        roster.members(now, members(&["a"]), TIME);
        assert_eq!(roster.timeout(), None, "without a job it stays away");
        roster.wants_to_join(now);
        let due = now + Duration::from_millis(pause);
        assert_eq!(roster.timeout(), Some(due));
        assert_eq!(roster.poll(due), joins());
        roster.members(due + ECHO, members(&["a", "us"]), TIME);
        now = due + Duration::from_millis(1_000);
    }
    let stayed = now + STAY;
    roster.members(stayed, members(&["a"]), TIME);
    roster.wants_to_join(stayed);
    assert_eq!(roster.timeout(), Some(stayed + FIRST_PAUSE), "a long stay is forgiven");
}

#[test]
fn restart_of_the_same_name_needs_no_write_and_no_wait() {
    let roster = with(&["a", "us"]);
    assert_eq!(roster.timeout(), None);
    assert_eq!(roster.blocked_until(at(0), ECHO), None);
}

#[test]
fn restart_with_another_weight_writes_its_entry() {
    let mut roster = Roster::new(Member { weight: 3, ..member("us") }, 64);
    roster.members(at(0), members(&["a", "us"]), TIME);
    roster.wants_to_join(at(1));
    assert_eq!(roster.poll(at(1)), Some(RosterRequest::Join(Member { weight: 3, ..member("us") })));
    roster.members(at(5), vec![member("a"), Member { weight: 3, ..member("us") }], TIME);
    assert_eq!(roster.timeout(), None);
}

#[test]
fn nobody_probes_before_the_roster_was_read() {
    let mut roster = roster();
    assert_eq!(roster.blocked_until(at(5), ECHO), None, "there is no job");
    roster.wants_to_join(at(10));
    roster.wants_to_join(at(20));
    assert_eq!(roster.blocked_until(at(20), ECHO), Some(at(260)));
    assert_eq!(roster.blocked_until(at(20), ECHO * 10), Some(at(1_610)));
    assert_eq!(roster.blocked_until(at(260), ECHO), None, "it waited for long enough");
    roster.cannot_read(at(30));
    assert_eq!(roster.blocked_until(at(30), ECHO), None);
}

#[test]
fn denied_entry_blocks_nobody() {
    let mut roster = with(&[]);
    roster.cannot_join(at(1));
    assert_eq!(roster.blocked_until(at(1), ECHO), None);
}

#[test]
fn new_group_settles() {
    let mut roster = with(&[]);
    assert_eq!(roster.blocked_until(at(0), ECHO), Some(at(250)), "our entry is on its way");
    assert_eq!(roster.blocked_until(at(250), ECHO), None);
    roster.members(at(20), members(&["us"]), TIME);
    assert_eq!(roster.blocked_until(at(20), ECHO), Some(at(60)));
    roster.members(at(50), members(&["a", "us"]), TIME);
    assert_eq!(roster.blocked_until(at(50), ECHO), Some(at(90)), "another one appeared");
    for i in 0..20 {
        let mut all = members(&["a", "us"]);
        all.extend((0..=i).map(|j| member(&format!("b{j}"))));
        roster.members(at(80 + 5 * i), all, TIME);
    }
    assert_eq!(roster.blocked_until(at(175), ECHO), Some(at(180)), "but not for ever");
    assert_eq!(roster.blocked_until(at(180), ECHO), None);
}

#[test]
fn join_to_a_group_that_exists_needs_no_settling() {
    let mut roster = with(&["a", "b"]);
    roster.members(at(20), members(&["a", "b", "us"]), TIME);
    assert_eq!(roster.blocked_until(at(20), ECHO), None);
    // A second one that joins at the same time is a reason to wait.
    let mut crowd = with(&["a", "b"]);
    crowd.members(at(15), members(&["a", "b", "c"]), TIME);
    crowd.members(at(20), members(&["a", "b", "c", "us"]), TIME);
    assert_eq!(crowd.blocked_until(at(20), ECHO), Some(at(60)));
}

#[test]
fn only_the_first_entry_settles() {
    let mut roster = with(&[]);
    roster.members(at(20), members(&["us"]), TIME);
    roster.members(at(5_000), vec![], TIME);
    roster.wants_to_join(at(5_000));
    assert_eq!(roster.poll(at(5_500)), joins());
    roster.members(at(5_510), members(&["us"]), TIME);
    assert_eq!(roster.blocked_until(at(5_510), ECHO), None);
}

#[test]
fn deleted_roster_is_joined_again() {
    let mut roster = with(&["a", "us"]);
    let changes = roster.members(at(5_000), vec![], TIME);
    assert_eq!(changes.len(), 64);
    assert!(changes.iter().all(|change| change.now == Turn::Open));
    roster.wants_to_join(at(6_000));
    assert_eq!(roster.poll(at(6_000)), joins());
}
