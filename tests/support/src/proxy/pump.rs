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

/// Reads what one side sends as it comes, and delivers it to the other when it may and is due, in order.
///
/// It reads also while it delivers nothing, so that it knows when a client has closed, and so that a delay is not one
/// delay per chunk.
pub struct Pump {
    direction: Direction,
    line: Line,
    /// Until the client has closed; only in the direction that learns of it.
    open: Option<Open>,
    /// When it is due, unless at once.
    queue: VecDeque<(Option<Instant>, Item)>,
    queued: usize,
    /// Nothing more is to be read.
    ended: bool,
    tail: Tail,
    buffer: Box<[u8]>,
}

enum Item {
    Bytes(Bytes),
    /// All of the request that was struck is before it.
    Request,
    End,
    Break(Broken),
}

impl Pump {
    pub fn new(direction: Direction, line: Line, open: Option<Open>) -> Self {
        let (queue, tail, buffer) = (VecDeque::new(), Tail::default(), vec![0; 1 << 16].into());
        Self { direction, line, open, queue, queued: 0, ended: false, tail, buffer }
    }

    /// Reads, but delivers nothing; returns as soon as something may be delivered.
    pub async fn hold(&mut self, reader: &mut ReadHalf<'_>) -> Result<(), Broken> {
        while !self.line.flows()? {
            self.turn(reader, None).await?;
        }
        Ok(())
    }

    /// Reads and delivers, until the end has been delivered too.
    pub async fn run(&mut self, reader: &mut ReadHalf<'_>, writer: &mut WriteHalf<'_>) -> Result<(), Broken> {
        loop {
            // Each time, also after something was read: it is what keeps from delivering what came after a fault was
            // switched on.
            let writer = if self.line.flows()? { Some(&mut *writer) } else { None };
            if self.turn(reader, writer).await? {
                return Ok(());
            }
        }
    }

    /// Does one thing; says whether it was the last.
    async fn turn(
        &mut self,
        reader: &mut ReadHalf<'_>,
        writer: Option<&mut WriteHalf<'_>>,
    ) -> Result<bool, Broken> {
        tokio::select! {
            biased;
            // That the proxy is gone is seen by `Line::flows`.
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
                    // Whatever follows would be sent by nobody.
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
                // What the server said before it closed may still be on its way; the other direction will see its end.
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

/// Delivers the item, or some of it, when it is due. Whoever drops this before it is ready has lost nothing.
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

/// How much is read ahead of what was delivered.
const QUEUE: usize = 4 << 20;
/// From the server's first word after a request until the connection is reset. That word need not be the answer: it may be
/// one to an earlier request, or of the protocol itself, such as a window update of HTTP/2.
const SETTLE: Duration = Duration::from_millis(100);
