//! The content of a scenario's objects: readable text that the final check can add up.

use std::fmt;

use bytes::Bytes;

/// The content of one object. The default is that of an object never written.
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
    /// Round of the desired state that the object holds; the field that replicas write.
    pub round: u64,
    /// Number of writes of replicas so far.
    pub writes: u64,
    /// Number of the replica that wrote last.
    pub by: usize,
    /// Number of edits of another field by users.
    pub edits: u64,
}

impl Value {
    /// Parses the text form. Fields that cannot be parsed have their default.
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

    /// Returns the content that replica `by` writes to bring the object to `round`; `None` if the
    /// object has reached `round`.
    pub fn wanted(&self, round: u64, by: usize) -> Option<Bytes> {
        // Saturating: an object in the store may hold any number.
        let writes = self.writes.saturating_add(1);
        (self.round < round).then(|| Self { round, writes, by, edits: self.edits }.into())
    }

    /// Returns the content after a user's edit of another field.
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
