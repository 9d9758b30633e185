//! Keys as names of nodes: printable ASCII stays, all other bytes are percent-encoded.

use std::fmt::Write;

/// Returns the name of a key's node. Besides the other bytes it encodes `/`, `%` and the space, and
/// the keys `.` and `..`, which ZooKeeper does not accept as names.
pub(crate) fn encode(key: &str) -> String {
    let dots = matches!(key, "." | "..");
    let mut name = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'/' | b'%' | 0..=b' ' | 0x7f.. => {
                write!(name, "%{byte:02X}").expect("writing to a string succeeds")
            }
            b'.' if dots => name.push_str("%2E"),
            _ => name.push(byte.into()),
        }
    }
    name
}

/// Returns the key of a node; `None` for a name that [`encode`] never returns.
pub(crate) fn decode(name: &str) -> Option<String> {
    let (mut key, mut rest) = (Vec::with_capacity(name.len()), name.as_bytes());
    while let [byte, after @ ..] = rest {
        rest = after;
        key.push(match byte {
            b'%' => {
                let hex = rest.split_off(..2)?;
                u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?
            }
            byte => *byte,
        });
    }
    String::from_utf8(key).ok().filter(|key| !key.is_empty() && encode(key) == name)
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn plain_keys_stay_readable() {
        for (key, name) in [
            ("route-1", "route-1"),
            ("default/my-route", "default%2Fmy-route"),
            (".", "%2E"),
            ("..", "%2E%2E"),
            ("...", "..."),
            ("a b%", "a%20b%25"),
            ("ä\u{1}", "%C3%A4%01"),
        ] {
            assert_eq!(encode(key), name);
            assert_eq!(decode(name).as_deref(), Some(key));
        }
    }

    #[test]
    fn foreign_names_decode_to_no_key() {
        for name in ["", "%deletions", "%", "%2", "%2f", "%zz", "%+1", "%FF", "a b", "%41", "."] {
            assert_eq!(decode(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn each_key_has_a_valid_name_of_its_own(key in ".+") {
            let name = encode(&key);
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') && name != "." && name != "..");
            prop_assert_eq!(decode(&name), Some(key));
        }
    }
}
