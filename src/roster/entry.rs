//! The text of an entry.

use crate::engine::Member;

/// The longest name, in bytes: that of a Kubernetes object.
pub(super) const LONGEST_NAME: usize = 253;

/// The mark of a member that is suspected.
const SUSPECTED: &str = "suspected";

/// Returns the value of an entry. Later versions may add words.
pub(crate) fn text(member: &Member) -> String {
    let claims = if member.claims > 0 { format!(" claims={}", member.claims) } else { String::new() };
    let mark = if member.is_suspected { format!(" {SUSPECTED}") } else { String::new() };
    format!("v1 weight={}{claims}{mark}", member.weight)
}

/// Returns the member of this name by its entry's value, which anybody may have written; `None` if
/// that could not be meant.
pub(crate) fn member(name: &str, value: &[u8]) -> Option<Member> {
    let mut words = std::str::from_utf8(value).ok()?.split_ascii_whitespace();
    let version = words.next()?.strip_prefix('v')?;
    version.parse::<u32>().ok()?;
    let value = |of| words.clone().find_map(|word| word.strip_prefix(of));
    let weight = value("weight=")?.parse().ok()?;
    let claims = value("claims=").and_then(|claims| claims.parse().ok()).unwrap_or(0);
    let is_suspected = words.any(|word| word == SUSPECTED);
    let is_one = is_name(name) && (1..=Member::MAX_WEIGHT).contains(&weight);
    is_one.then(|| Member { name: name.into(), weight, is_suspected, claims })
}

/// Returns whether a replica may be called this.
pub(super) fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len()) && !name.contains(|c: char| c == '/' || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_this_and_later_versions_are_read() {
        for (is_suspected, claims) in [(false, 0), (false, 9), (true, 0), (true, u32::MAX)] {
            let one = Member { is_suspected, claims, ..Member::new("one", 7) };
            assert_eq!(member("one", text(&one).as_bytes()), Some(one));
        }
        let read = |value| member("one", value).map(|member| (member.weight, member.is_suspected));
        assert_eq!(read(b"v1 weight=100\n"), Some((100, false)));
        assert_eq!(read(b"v2 zone=a weight=3 since=5"), Some((3, false)));
        assert_eq!(read(b"v2 suspected zone=a weight=3 since=5"), Some((3, true)));
    }

    #[test]
    fn hostile_values_are_no_entries() {
        for value in [
            &b""[..],
            b" ",
            b"weight=1",
            b"v1",
            b"v weight=1",
            b"v1 weight=",
            b"v1 weight=0",
            b"v1 weight=101",
            b"v1 weight=-1",
            b"v1 weight=99999999999",
            b"v1 weight=1.5",
            b"\xff\xfe",
            b"vx weight=1",
            b"{}",
        ] {
            assert_eq!(member("one", value), None, "{value:?}");
        }
    }

    #[test]
    fn names_are_short_and_plain() {
        for name in ["a", "replica-1", "app.7d4b9c", "name with spaces", "größer"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a/b", "/", "a\n", "\0", &"x".repeat(254)] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
