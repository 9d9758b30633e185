//! One connection: its state, and its two directions.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::watch};

use super::{
    Control, Open, Shared,
    pump::{Direction, Pump},
};

/// The reason for resetting a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// [`Proxy::cut`](super::Proxy::cut), the end of the proxy, or the reset of one side.
    Cut,
    /// A strike, which is complete then.
    Struck,
}

/// The state of a connection that both directions share.
#[derive(Clone)]
pub struct Line {
    pub control: watch::Receiver<Control>,
    pub shared: Arc<Shared>,
    born: Control,
    answers: Arc<Mutex<Answers>>,
}

/// The treatment of the server's answers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    #[default]
    Passed,
    /// They are lost.
    Swallowed,
    /// They are lost, and the next one may answer the struck request, because the server has
    /// received all of it.
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

    /// Returns whether bytes may be delivered now.
    pub fn flows(&self) -> Result<bool, Broken> {
        let cut = self.control.borrow().cuts > self.born.cuts;
        // It is an error if the proxy is gone.
        if cut || self.control.has_changed().is_err() {
            return Err(Broken::Cut);
        }
        Ok(!self.control.borrow().stalled && !self.is_silent())
    }

    /// Returns whether bytes are lost.
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

/// Passes bytes between client and server until both have closed or the connection is broken.
pub async fn serve(mut client: TcpStream, upstream: SocketAddr, line: Line, open: Open) {
    let shared = line.shared.clone();
    let mut forth = Pump::new(Direction::ToServer, line.clone(), Some(open));
    let mut back = Pump::new(Direction::ToClient, line, None);
    let mut server = None;
    let passing = async {
        // Requests are small and many; collecting them would delay each.
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
    // In this order, so that a test that has waited for the end or for the strike finds the sockets
    // closed.
    drop((client, server));
    drop(forth);
    if ended == Err(Broken::Struck) {
        shared.strikes.struck.send_replace(true);
    }
}

/// Makes closing the stream a reset instead of an orderly end.
pub fn reset_on_close(stream: &TcpStream) {
    // It fails if the other side has reset it already.
    let _ = stream.set_zero_linger();
}
