//! One direction of a connection.

use std::{collections::VecDeque, future::pending, io, sync::atomic::Ordering, time::Duration};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{ReadHalf, WriteHalf},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Open,
    connection::{Answers, Broken, Line},
    strike::{Hit, Tail},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// Reads the bytes of one side as they arrive, and delivers them to the other side in order, when
/// they are due.
///
/// It also reads while delivery is held up, so that it notices when a client has closed, and so
/// that delays of chunks do not add up.
pub struct Pump {
    direction: Direction,
    line: Line,
    /// Dropped when the client has closed; only in the direction that notices.
    open: Option<Open>,
    /// Each item, with its due time if it is delayed.
    queue: VecDeque<(Option<Instant>, Item)>,
    queued: usize,
    /// Set when there is nothing more to read.
    ended: bool,
    tail: Tail,
    buffer: Box<[u8]>,
}

enum Item {
    Bytes(Bytes),
    /// The end of a struck request.
    Request,
    End,
    Break(Broken),
}

impl Pump {
    pub fn new(direction: Direction, line: Line, open: Option<Open>) -> Self {
        let (queue, tail, buffer) = (VecDeque::new(), Tail::default(), vec![0; 1 << 16].into());
        Self { direction, line, open, queue, queued: 0, ended: false, tail, buffer }
    }

    /// Reads without delivering, until delivery is possible.
    pub async fn hold(&mut self, reader: &mut ReadHalf<'_>) -> Result<(), Broken> {
        while !self.line.flows()? {
            self.turn(reader, None).await?;
        }
        Ok(())
    }

    /// Reads and delivers, until the end has been delivered too.
    pub async fn run(&mut self, reader: &mut ReadHalf<'_>, writer: &mut WriteHalf<'_>) -> Result<(), Broken> {
        loop {
            // Look each time, also after a read: bytes that arrive after the start of a fault must
            // not be delivered.
            let writer = if self.line.flows()? { Some(&mut *writer) } else { None };
            if self.turn(reader, writer).await? {
                return Ok(());
            }
        }
    }

    /// Takes one step. Returns whether it was the last.
    async fn turn(
        &mut self,
        reader: &mut ReadHalf<'_>,
        writer: Option<&mut WriteHalf<'_>>,
    ) -> Result<bool, Broken> {
        tokio::select! {
            biased;
            // `Line::flows` notices when the proxy is gone.
            _ = self.line.control.changed() => Ok(false),
            delivered = deliver(self.queue.front(), writer) => self.handle_delivered(delivered),
            read = reader.read(&mut self.buffer), if !self.ended && self.queued < QUEUE => {
                self.handle_read(read).await?;
                Ok(false)
            }
        }
    }

    async fn handle_read(&mut self, read: io::Result<usize>) -> Result<(), Broken> {
        let length = match read {
            Ok(0) => {
                self.end(Item::End);
                return Ok(());
            }
            Err(_) => {
                self.end(Item::Break(Broken::Cut));
                return Ok(());
            }
            Ok(length) => length,
        };
        if self.line.is_silent() {
            return Ok(());
        }
        let mut chunk = Bytes::copy_from_slice(&self.buffer[..length]);
        match self.direction {
            Direction::ToServer => match self.line.shared.strikes.hit(&mut self.tail, &chunk) {
                None => self.push(Item::Bytes(chunk)),
                Some(Hit::CutAt(middle)) => {
                    chunk.truncate(middle);
                    self.push(Item::Bytes(chunk));
                    self.push(Item::Break(Broken::Struck));
                    // No client would send anything after a cut.
                    self.ended = true;
                }
                Some(Hit::LoseAnswer) => {
                    self.line.set_answers(Answers::Swallowed);
                    self.push(Item::Bytes(chunk));
                    self.push(Item::Request);
                }
            },
            Direction::ToClient => match self.line.answers() {
                Answers::Passed => self.push(Item::Bytes(chunk)),
                Answers::Swallowed => {}
                Answers::Awaited => {
                    sleep(SETTLE).await;
                    return Err(Broken::Struck);
                }
            },
        }
        Ok(())
    }

    fn handle_delivered(&mut self, delivered: io::Result<usize>) -> Result<bool, Broken> {
        let Ok(written) = delivered else {
            return match self.direction {
                // Bytes that the server sent before it closed may still be in transit; the other
                // direction sees their end.
                Direction::ToServer => Ok(true),
                Direction::ToClient => Err(Broken::Cut),
            };
        };
        let counter = match self.direction {
            Direction::ToServer => &self.line.shared.to_server,
            Direction::ToClient => &self.line.shared.to_clients,
        };
        counter.fetch_add(written as u64, Ordering::SeqCst);
        self.queued -= written;
        let (_, item) = self.queue.front_mut().expect("it was delivered");
        match item {
            Item::Bytes(chunk) => {
                chunk.advance(written);
                if !chunk.is_empty() {
                    return Ok(false);
                }
            }
            Item::Request => self.line.set_answers(Answers::Awaited),
            Item::End => return Ok(true),
            Item::Break(broken) => return Err(*broken),
        }
        self.queue.pop_front();
        Ok(false)
    }

    fn end(&mut self, item: Item) {
        self.ended = true;
        self.open = None;
        self.push(item);
    }

    fn push(&mut self, item: Item) {
        let delay = match self.direction {
            Direction::ToServer => Duration::ZERO,
            Direction::ToClient => self.line.delay(),
        };
        let due = (!delay.is_zero()).then(|| Instant::now() + delay);
        if let Item::Bytes(chunk) = &item {
            if chunk.is_empty() {
                return;
            }
            self.queued += chunk.len();
        }
        self.queue.push_back((due, item));
    }
}

/// Delivers the item, or a part of it, when it is due. Dropping this future loses nothing.
async fn deliver(
    item: Option<&(Option<Instant>, Item)>,
    writer: Option<&mut WriteHalf<'_>>,
) -> io::Result<usize> {
    let (Some((due, item)), Some(writer)) = (item, writer) else { return pending().await };
    if let Some(due) = due {
        sleep_until(*due).await;
    }
    match item {
        Item::Bytes(chunk) => writer.write(chunk).await,
        Item::End => writer.shutdown().await.map(|()| 0),
        Item::Request | Item::Break(_) => Ok(0),
    }
}

/// The most bytes read ahead of delivery.
const QUEUE: usize = 4 << 20;
/// The time from the server's first bytes after a struck request until the reset. They need not be
/// the answer: they may answer an earlier request, or be part of the protocol, such as a window
/// update of HTTP/2.
const SETTLE: Duration = Duration::from_millis(100);
