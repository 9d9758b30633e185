//! Faults that hit one request, found by its bytes.

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    CutInRequest,
    LoseAnswer,
}

/// The armed strike, if any, and whether the last one has happened.
#[derive(Debug, Default)]
pub struct Strikes {
    armed: Mutex<Option<(Kind, Bytes)>>,
    pub struck: watch::Sender<bool>,
}

/// The action on a chunk that a strike hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hit {
    /// Pass on this number of bytes, then reset the connection.
    CutAt(usize),
    /// Pass the chunk on and swallow the answers.
    LoseAnswer,
}

impl Strikes {
    pub fn arm(&self, kind: Kind, pattern: &[u8]) {
        assert!((1..=TAIL).contains(&pattern.len()), "a pattern has 1 to {TAIL} bytes");
        self.struck.send_replace(false);
        *self.armed.lock() = Some((kind, Bytes::copy_from_slice(pattern)));
    }

    pub fn disarm(&self) {
        *self.armed.lock() = None;
    }

    /// Returns the action on this chunk, the next that a client sent. Disarms the strike if it
    /// hits.
    pub fn hit(&self, tail: &mut Tail, chunk: &[u8]) -> Option<Hit> {
        let mut armed = self.armed.lock();
        let found = armed.as_ref().and_then(|(kind, pattern)| Some((*kind, tail.find(pattern, chunk)?)));
        tail.add(chunk);
        let (kind, middle) = found?;
        *armed = None;
        Some(match kind {
            Kind::CutInRequest => Hit::CutAt(middle),
            Kind::LoseAnswer => Hit::LoseAnswer,
        })
    }
}

/// The last bytes that a connection's client has sent, because a pattern may arrive in two chunks.
#[derive(Debug, Default)]
pub struct Tail(Vec<u8>);

impl Tail {
    /// Returns the position of the pattern's middle in the chunk that the pattern ends in.
    fn find(&self, pattern: &[u8], chunk: &[u8]) -> Option<usize> {
        // One byte less than the pattern: a complete pattern before this chunk has been passed on.
        let before = &self.0[self.0.len().saturating_sub(pattern.len() - 1)..];
        let sent = [before, chunk].concat();
        let start = sent.windows(pattern.len()).position(|window| window == pattern)?;
        Some((start + pattern.len() / 2).saturating_sub(before.len()))
    }

    fn add(&mut self, chunk: &[u8]) {
        self.0.extend_from_slice(&chunk[chunk.len().saturating_sub(TAIL)..]);
        self.0.drain(..self.0.len().saturating_sub(TAIL));
    }
}

/// The longest pattern.
const TAIL: usize = 256;
