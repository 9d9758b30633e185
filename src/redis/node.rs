//! One server, and the connection to it that all requests share.

use std::sync::Arc;

use parking_lot::Mutex;
use redis::{ConnectionInfo, RedisResult, aio::MultiplexedConnection};

use super::access::{Access, Listening};

pub(super) struct Node {
    /// Its address as text.
    pub name: Arc<str>,
    /// `None` for the master that the sentinels know.
    pub address: Option<ConnectionInfo>,
    current: Mutex<Current>,
    /// Locked while somebody connects, so that the others wait.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Current {
    /// The number of the last connection.
    number: u64,
    /// `None` before the first request and after a failed one.
    connection: Option<MultiplexedConnection>,
}

impl Node {
    pub fn at(address: ConnectionInfo) -> Self {
        Self::new(address.addr().to_string(), Some(address))
    }

    pub fn master() -> Self {
        Self::new(String::new(), None)
    }

    fn new(name: String, address: Option<ConnectionInfo>) -> Self {
        Self {
            name: name.into(),
            address,
            current: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    pub fn is_connected(&self) -> bool {
        self.current.lock().connection.is_some()
    }

    /// Returns the current connection and its number. The first caller makes it.
    pub async fn connection(
        &self,
        access: &Access,
        listening: Option<&Listening>,
    ) -> RedisResult<(u64, MultiplexedConnection)> {
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let number = self.current.lock().number + 1;
        let id = (&self.name, number);
        let connection = match &self.address {
            Some(address) => access.connect(address, id, listening).await?,
            None => access.connect_to_master(id, listening).await?,
        };
        *self.current.lock() = Current { number, connection: Some(connection.clone()) };
        Ok((number, connection))
    }

    fn current(&self) -> Option<(u64, MultiplexedConnection)> {
        let current = self.current.lock();
        Some((current.number, current.connection.clone()?))
    }

    /// Drops the connection with that number. Returns whether it was the current one: the number
    /// guards against dropping the successor that another caller already made.
    pub fn forget(&self, number: u64) -> bool {
        let mut current = self.current.lock();
        current.number == number && current.connection.take().is_some()
    }
}
