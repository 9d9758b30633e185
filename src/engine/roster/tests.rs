use super::*;

const ECHO: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(1);

fn at(ms: u64) -> Timestamp {
    Timestamp::from_nanos(ms * 1_000_000)
}

fn member(name: &str) -> Member {
    Member { name: name.into(), weight: 1 }
}

fn members(names: &[&str]) -> Vec<Member> {
    names.iter().map(|name| member(name)).collect()
}

fn roster() -> Roster {
    Roster::new(member("us"), 64)
}

/// A roster with a job, on which these are, since time 0.
fn with(names: &[&str]) -> Roster {
    let mut roster = roster();
    roster.wants_to_join(at(0));
    roster.members(at(0), members(names));
    roster
}

fn struck(name: &str) -> Option<RosterRequest> {
    Some(RosterRequest::StrikeOff(name.into()))
}

/// Returns a shard whose turn is that of a member.
fn shard_of_member(roster: &Roster, name: &str) -> u16 {
    (0..64).find(|shard| &*roster.view.member_of(*shard).unwrap().name == name).unwrap()
}

#[test]
fn first_job_joins_once_roster_is_read() {
    let mut roster = roster();
    assert_eq!((roster.timeout(), roster.poll(at(0))), (None, None));
    roster.members(at(1), vec![]);
    assert_eq!(roster.poll(at(1)), None, "without a job nobody joins");
    roster.wants_to_join(at(2));
    roster.wants_to_join(at(3));
    assert_eq!(roster.poll(at(3)), Some(RosterRequest::Join));
    assert_eq!(roster.poll(at(3)), None);
    roster.members(at(5), members(&["us"]));
    roster.wants_to_join(at(6));
    assert_eq!((roster.timeout(), roster.poll(at(100_000))), (None, None));
}

#[test]
fn join_is_repeated_until_it_shows() {
    let mut roster = with(&[]);
    let mut now = at(0);
    for pause in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 32_000] {
        assert_eq!(roster.poll(now), Some(RosterRequest::Join));
        assert_eq!(roster.poll(now), None);
        assert_eq!(roster.timeout(), Some(now + Duration::from_millis(pause)));
        now = roster.timeout().unwrap();
    }
}

#[test]
fn denied_join_waits_for_a_job_and_a_long_pause() {
    let mut roster = with(&[]);
    assert_eq!(roster.poll(at(0)), Some(RosterRequest::Join));
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
    assert_eq!(roster.members(at(0), vec![]), []);
    let changes = roster.members(at(1), members(&["us"]));
    assert_eq!(changes.len(), 64);
    assert_eq!(changes[63], TurnChange { shard: 63, before: Turn::Open, now: Turn::Us, from_member: false });
    let changes = roster.cannot_read(at(2));
    assert_eq!(changes[63], TurnChange { shard: 63, before: Turn::Us, now: Turn::Open, from_member: false });
    assert!((0..64).all(|shard| roster.turn(shard) == Turn::Open));
    assert_eq!(roster.members(at(3), members(&["us"])).len(), 64, "it can be read again");
}

#[test]
fn changes_name_each_shard_whose_member_changed() {
    let mut roster = with(&["a", "b", "us"]);
    let before: Vec<Turn> = (0..64).map(|shard| roster.turn(shard)).collect();
    assert!(before.contains(&Turn::Us) && before.contains(&Turn::Other));
    assert_eq!(roster.members(at(1), members(&["us", "b", "a"])), []);
    let changes = roster.members(at(2), members(&["b", "c", "us"]));
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
    let wild = |name: &str, weight| Member { name: name.into(), weight };
    roster.members(at(0), vec![wild("b", u16::MAX), wild("us", 0), wild("b", 1), wild("", 7), wild("us", 9)]);
    let seen: Vec<_> =
        roster.view.members.iter().map(|seen| (&*seen.member.name, seen.member.weight)).collect();
    assert_eq!(seen, [("", 7), ("b", 1), ("us", 1)]);
    let crowd: Vec<Member> = (0..5_000).map(|i| member(&format!("m{i:04}"))).collect();
    Roster::new(member("us"), 1).members(at(1), crowd);
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
fn silent_member_is_struck_off() {
    let mut roster = with(&["a", "us"]);
    let shard = shard_of_member(&roster, "a");
    roster.taken_over(at(400), shard, at(400), PATIENCE);
    assert_eq!(roster.poll(at(400)), None, "its entry appeared less than a patience ago");
    assert_eq!(roster.timeout(), Some(at(1_000)));
    assert_eq!(roster.poll(at(1_000)), struck("a"));
    roster.taken_over(at(1_002), shard, at(1002), PATIENCE);
    assert_eq!(roster.poll(at(1_002)), None, "once is enough");
    roster.members(at(1_020), members(&["us"]));
    assert_eq!(roster.timeout(), None);
}

#[test]
fn write_in_any_of_its_shards_spares_a_member() {
    let mut roster = with(&["a", "us"]);
    let of_a: Vec<u16> = (0..64).filter(|shard| roster.turn(*shard) == Turn::Other).collect();
    roster.sign_of_life(at(3_000), of_a[1]);
    roster.taken_over(at(3_500), of_a[0], at(3500), PATIENCE);
    assert_eq!((roster.poll(at(3_500)), roster.timeout()), (None, Some(at(4_000))));
    roster.sign_of_life(at(3_700), of_a[1]);
    assert_eq!(roster.timeout(), None);
    let ours = shard_of_member(&roster, "us");
    roster.sign_of_life(at(9_000), ours);
    roster.taken_over(at(9_500), of_a[0], at(9500), PATIENCE);
    assert_eq!(roster.poll(at(9_500)), struck("a"), "a write in our shard is no sign of the other");
}

#[test]
fn member_that_does_its_other_keys_is_not_struck_off() {
    let mut roster = with(&["a", "us"]);
    let of_a: Vec<u16> = (0..64).filter(|shard| roster.turn(*shard) == Turn::Other).collect();
    roster.sign_of_life(at(5_000), of_a[1]);
    roster.taken_over(at(9_000), of_a[0], at(4_000), PATIENCE);
    assert_eq!(roster.timeout(), None, "it wrote while that key was pending, so it may not want it");
    roster.taken_over(at(9_000), of_a[0], at(5_500), PATIENCE);
    assert_eq!(roster.poll(at(9_000)), struck("a"));
}

#[test]
fn nobody_strikes_itself_off() {
    let mut roster = with(&["us"]);
    roster.taken_over(at(10_000), 0, at(10000), PATIENCE);
    assert_eq!(roster.poll(at(10_000)), None);
    let mut open = with(&[]);
    open.taken_over(at(10_000), 0, at(10000), PATIENCE);
    assert_eq!(open.poll(at(10_000)), Some(RosterRequest::Join));
    assert_eq!(open.poll(at(10_000)), None);
}

#[test]
fn strike_is_repeated_a_few_times() {
    let mut roster = with(&["a", "us"]);
    roster.taken_over(at(2_000), shard_of_member(&roster, "a"), at(2000), PATIENCE);
    let mut asked = 0;
    while let Some(due) = roster.timeout() {
        assert_eq!(roster.poll(due), struck("a"));
        asked += 1;
    }
    assert_eq!(asked, STRIKE_TRIES);
}

#[test]
fn member_that_returns_is_a_new_one() {
    let mut roster = with(&["a", "us"]);
    roster.taken_over(at(2_000), shard_of_member(&roster, "a"), at(2000), PATIENCE);
    roster.poll(at(2_000));
    roster.members(at(2_010), members(&["us"]));
    roster.members(at(3_000), members(&["a", "us"]));
    assert_eq!(roster.timeout(), None);
    roster.taken_over(at(3_900), shard_of_member(&roster, "a"), at(3900), PATIENCE);
    assert_eq!((roster.poll(at(3_900)), roster.timeout()), (None, Some(at(4_000))));
}

#[test]
fn struck_off_alive_joins_again_ever_later() {
    let mut roster = with(&["a", "us"]);
    let mut now = at(1_000);
    for pause in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 32_000] {
        roster.members(now, members(&["a"]));
        assert_eq!(roster.timeout(), None, "without a job it stays away");
        roster.wants_to_join(now);
        let due = now + Duration::from_millis(pause);
        assert_eq!(roster.timeout(), Some(due));
        assert_eq!(roster.poll(due), Some(RosterRequest::Join));
        roster.members(due + ECHO, members(&["a", "us"]));
        now = due + Duration::from_millis(1_000);
    }
    let stayed = now + STAY;
    roster.members(stayed, members(&["a"]));
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
    let mut roster = Roster::new(Member { name: "us".into(), weight: 3 }, 64);
    roster.members(at(0), members(&["a", "us"]));
    roster.wants_to_join(at(1));
    assert_eq!(roster.poll(at(1)), Some(RosterRequest::Join));
    roster.members(at(5), vec![member("a"), Member { name: "us".into(), weight: 3 }]);
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
    roster.members(at(20), members(&["us"]));
    assert_eq!(roster.blocked_until(at(20), ECHO), Some(at(60)));
    roster.members(at(50), members(&["a", "us"]));
    assert_eq!(roster.blocked_until(at(50), ECHO), Some(at(90)), "another one appeared");
    for i in 0..20 {
        let mut all = members(&["a", "us"]);
        all.extend((0..=i).map(|j| member(&format!("b{j}"))));
        roster.members(at(80 + 5 * i), all);
    }
    assert_eq!(roster.blocked_until(at(175), ECHO), Some(at(180)), "but not for ever");
    assert_eq!(roster.blocked_until(at(180), ECHO), None);
}

#[test]
fn join_to_a_group_that_exists_needs_no_settling() {
    let mut roster = with(&["a", "b"]);
    roster.members(at(20), members(&["a", "b", "us"]));
    assert_eq!(roster.blocked_until(at(20), ECHO), None);
    // A second one that joins at the same time is a reason to wait.
    let mut crowd = with(&["a", "b"]);
    crowd.members(at(15), members(&["a", "b", "c"]));
    crowd.members(at(20), members(&["a", "b", "c", "us"]));
    assert_eq!(crowd.blocked_until(at(20), ECHO), Some(at(60)));
}

#[test]
fn only_the_first_entry_settles() {
    let mut roster = with(&[]);
    roster.members(at(20), members(&["us"]));
    roster.members(at(5_000), vec![]);
    roster.wants_to_join(at(5_000));
    assert_eq!(roster.poll(at(5_500)), Some(RosterRequest::Join));
    roster.members(at(5_510), members(&["us"]));
    assert_eq!(roster.blocked_until(at(5_510), ECHO), None);
}

#[test]
fn deleted_roster_is_joined_again() {
    let mut roster = with(&["a", "us"]);
    let changes = roster.members(at(5_000), vec![]);
    assert_eq!(changes.len(), 64);
    assert!(changes.iter().all(|change| change.now == Turn::Open));
    roster.wants_to_join(at(6_000));
    assert_eq!(roster.poll(at(6_000)), Some(RosterRequest::Join));
}
