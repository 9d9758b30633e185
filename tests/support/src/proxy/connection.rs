//! One connection: its state, and its two directions.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::watch};

use super::{
    Control, Open, Shared,
    pump::{Direction, Pump},
};

/// Why a connection is reset, if it doesn't end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// By [`Proxy::cut`](super::Proxy::cut), because the proxy is gone, or because one side was reset itself.
    Cut,
    /// By a strike, which is complete then.
    Struck,
}

/// What both directions of a connection know of it.
#[derive(Clone)]
pub struct Line {
    pub control: watch::Receiver<Control>,
    pub shared: Arc<Shared>,
    born: Control,
    answers: Arc<Mutex<Answers>>,
}

/// What becomes of the server's answers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    #[default]
    Passed,
    /// They get lost.
    Swallowed,
    /// They get lost, and the next one may be that to the request that was struck, since the server has all of it.
    Awaited,
}

impl Line {
    pub fn new(control: watch::Receiver<Control>, shared: Arc<Shared>) -> Self {
        let born = *control.borrow();
        Self { control, shared, born, answers: Arc::default() }
    }

    pub fn refused(&self) -> bool {
        self.born.refusing
    }

    /// Whether what was sent may be delivered now.
    pub fn flows(&self) -> Result<bool, Broken> {
        let cut = self.control.borrow().cuts > self.born.cuts;
        // The error is that the proxy is gone.
        if cut || self.control.has_changed().is_err() {
            return Err(Broken::Cut);
        }
        Ok(!self.control.borrow().stalled && !self.is_silent())
    }

    /// Whether what is sent gets lost.
    pub fn is_silent(&self) -> bool {
        self.control.borrow().silences > self.born.silences
    }

    pub fn delay(&self) -> Duration {
        self.control.borrow().delay
    }

    pub fn answers(&self) -> Answers {
        *self.answers.lock()
    }

    pub fn set_answers(&self, answers: Answers) {
        *self.answers.lock() = answers;
    }
}

/// Passes on what client and server say to each other, until both are done or the connection is broken.
pub async fn serve(mut client: TcpStream, upstream: SocketAddr, line: Line, open: Open) {
    let shared = line.shared.clone();
    let mut forth = Pump::new(Direction::ToServer, line.clone(), Some(open));
    let mut back = Pump::new(Direction::ToClient, line, None);
    let mut server = None;
    let passing = async {
        // Requests are small and many; to collect them would delay each.
        client.set_nodelay(true).map_err(|_| Broken::Cut)?;
        let (mut from_client, mut to_client) = client.split();
        forth.hold(&mut from_client).await?;
        let connected = TcpStream::connect(upstream).await.map_err(|_| Broken::Cut)?;
        connected.set_nodelay(true).map_err(|_| Broken::Cut)?;
        let (mut from_server, mut to_server) = server.insert(connected).split();
        tokio::try_join!(
            forth.run(&mut from_client, &mut to_server),
            back.run(&mut from_server, &mut to_client)
        )
    };
    let ended = passing.await;
    if ended.is_err() {
        reset_on_close(&client);
        server.iter().for_each(reset_on_close);
    }
    // In this order: whoever waits for the connection's end or for the strike finds the sockets closed.
    drop((client, server));
    drop(forth);
    if ended == Err(Broken::Struck) {
        shared.strikes.struck.send_replace(true);
    }
}

/// Makes closing it a reset instead of a goodbye.
pub fn reset_on_close(stream: &TcpStream) {
    // It fails if the other side has reset it already.
    let _ = stream.set_zero_linger();
}
