//! The text of an entry.

use crate::engine::Member;

/// The longest name, in bytes: that of a Kubernetes object.
pub(super) const LONGEST_NAME: usize = 253;

/// Returns the value of an entry. Later versions may add words.
pub(crate) fn text(weight: u16) -> String {
    format!("v1 weight={weight}")
}

/// Returns the weight in an entry's value, which anybody may have written; `None` if there is none
/// that could be meant.
pub(crate) fn weight(value: &[u8]) -> Option<u16> {
    let mut words = std::str::from_utf8(value).ok()?.split_ascii_whitespace();
    let version = words.next()?.strip_prefix('v')?;
    version.parse::<u32>().ok()?;
    let weight = words.find_map(|word| word.strip_prefix("weight="))?.parse().ok()?;
    (1..=Member::MAX_WEIGHT).contains(&weight).then_some(weight)
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
        assert_eq!(weight(text(7).as_bytes()), Some(7));
        assert_eq!(weight(b"v1 weight=100\n"), Some(100));
        assert_eq!(weight(b"v2 zone=a weight=3 since=5"), Some(3));
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
            assert_eq!(weight(value), None, "{value:?}");
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
