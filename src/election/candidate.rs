//! Between an elector's handles and its task.

use std::sync::Arc;

use tokio::sync::{
    mpsc::{self, UnboundedReceiver, UnboundedSender},
    oneshot,
};
use tokio_util::sync::CancellationToken;

use super::{error::ElectionError, leadership::Leadership, publisher::Office};

/// What the handles of an elector share. When it is dropped, the task ends as if it was closed.
#[derive(Debug)]
pub(crate) struct Desk<C> {
    pub identity: Arc<str>,
    pub office: Office,
    commands: UnboundedSender<C>,
    stop: CancellationToken,
}

/// What the task has of its handles.
pub(crate) struct Orders<C> {
    commands: UnboundedReceiver<C>,
    stop: CancellationToken,
    /// Says so if the task ends in any other way than it should.
    _witness: Witness,
}

/// What a task is to do next.
pub(crate) enum Order<C> {
    Command(C),
    Stop,
}

struct Witness(Office);

impl<C> Desk<C> {
    pub fn new(identity: Arc<str>, office: Office) -> (Self, Orders<C>) {
        let (sender, commands) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let orders = Orders { commands, stop: stop.clone(), _witness: Witness(office.clone()) };
        (Self { identity, office, commands: sender, stop }, orders)
    }

    /// Sends a command and waits for the answer.
    pub async fn ask<R>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<R, ElectionError>>) -> C,
    ) -> Result<R, ElectionError> {
        let (sender, answer) = oneshot::channel();
        // Either fails only if the task is gone.
        let _ = self.commands.send(command(sender));
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(self.office.end().await),
        }
    }

    pub async fn close(&self) {
        self.stop.cancel();
        self.office.ended().await;
    }
}

impl<C> Orders<C> {
    pub async fn next(&mut self) -> Order<C> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Order::Stop,
            // The handles go together with the token's last guard.
            command = self.commands.recv() => command.map_or(Order::Stop, Order::Command),
        }
    }
}

impl<C> Drop for Desk<C> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.set(Leadership::Failed(Arc::new(ElectionError::Died)));
    }
}
