//! What an object of a scenario holds: text that people can read, and that the check at the end can add up.

use std::fmt;

use bytes::Bytes;

/// The content of one object. The default is that of an object which nobody wrote yet.
///
/// ```
/// use writerlease::lab::Value;
///
/// let value = Value::read(b"round=3 writes=5 by=2 edits=7");
/// assert_eq!((value.round, value.writes, value.by, value.edits), (3, 5, 2, 7));
/// assert_eq!(value.wanted(3, 0), None);
/// assert_eq!(value.wanted(4, 0).unwrap(), "round=4 writes=6 by=0 edits=7");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Value {
    /// The round whose desired state this is; the field that replicas write.
    pub round: u64,
    /// How many writes of replicas made it so.
    pub writes: u64,
    /// The replica that wrote last.
    pub by: usize,
    /// How many times somebody else edited another field.
    pub edits: u64,
}

impl Value {
    /// Reads the text form. What it can't read counts as not written.
    pub fn read(text: &[u8]) -> Self {
        let mut value = Self::default();
        let fields = std::str::from_utf8(text).unwrap_or_default().split(' ');
        for (name, number) in fields.filter_map(|field| field.split_once('=')) {
            let number = number.parse().unwrap_or_default();
            match name {
                "round" => value.round = number,
                "writes" => value.writes = number,
                "by" => value.by = number as usize,
                "edits" => value.edits = number,
                _ => {}
            }
        }
        value
    }

    /// What replica `by` writes to bring the object to `round`; `None` if it is there already.
    pub fn wanted(&self, round: u64, by: usize) -> Option<Bytes> {
        // What it can't count any more somebody else made up.
        let writes = self.writes.saturating_add(1);
        (self.round < round).then(|| Self { round, writes, by, edits: self.edits }.into())
    }

    /// What somebody writes who cares for another field.
    pub fn edited(&self) -> Bytes {
        Self { edits: self.edits.saturating_add(1), ..self.clone() }.into()
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { round, writes, by, edits } = self;
        write!(f, "round={round} writes={writes} by={by} edits={edits}")
    }
}

impl From<Value> for Bytes {
    fn from(value: Value) -> Self {
        value.to_string().into()
    }
}
