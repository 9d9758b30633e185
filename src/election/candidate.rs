//! The one run loop of all candidates, and the handle to it.
//!
//! The promises 3 to 5 of [`election`](super) are kept here, for every server: a candidate stops
//! leading before its server learns of it, it leaves nothing behind, and its end is visible.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::{
    mpsc::{self, UnboundedReceiver, UnboundedSender},
    oneshot, watch,
};
use tokio_util::sync::CancellationToken;

use super::{
    Elector,
    error::ElectionError,
    leadership::{Events, Leadership},
    publisher::LeadershipPublisher,
};
use crate::clock;

/// One candidate, as its server sees it.
///
/// It shares a [`LeadershipPublisher`] with the loop and publishes there that it leads or follows.
pub(crate) trait Candidate: Sized + Send + 'static {
    /// The commands that it takes.
    type Command: From<Resign> + Send + 'static;

    /// Competes, and leads when elected, until the candidacy is lost; then it competes anew. A
    /// command drops the future at any of its awaits, and the next call goes on from the
    /// candidate's state.
    ///
    /// # Errors
    ///
    /// The reason why the elector fails for good.
    fn serve(&mut self) -> impl Future<Output = Result<(), ElectionError>> + Send;

    /// Returns whether a command changes nothing, so that a leader leads on.
    fn is_moot(&self, command: &Self::Command) -> bool {
        let _ = command;
        false
    }

    /// Takes a command, and returns whether the candidate has to withdraw.
    fn obey(&mut self, command: Self::Command) -> bool;

    /// Gives up all that the server holds of the candidate. Afterwards the candidate holds nothing,
    /// even if the server did not answer.
    fn withdraw(&mut self) -> impl Future<Output = Result<(), ElectionError>> + Send;

    /// Withdraws for good.
    fn end(mut self) -> impl Future<Output = Result<(), ElectionError>> + Send {
        async move { self.withdraw().await }
    }
}

/// The command that every candidate takes: it lets others win before it competes again.
#[derive(Debug)]
pub(crate) struct Resign;

/// The handle to a candidate's task. Dropping it closes the candidate in the background.
#[derive(Debug)]
pub(crate) struct CandidateHandle<C> {
    identity: Arc<str>,
    publisher: LeadershipPublisher,
    requests: UnboundedSender<Request<C>>,
    stop: CancellationToken,
}

/// The task's side of a handle.
struct Commands<C> {
    requests: UnboundedReceiver<Request<C>>,
    stop: CancellationToken,
}

/// A command, and the way back for its result.
struct Request<C> {
    command: C,
    answer: oneshot::Sender<Result<(), ElectionError>>,
}

/// The next step of a candidate's task.
enum NextStep<C> {
    Obey(Request<C>),
    CompeteAnew,
    End(ElectionError),
}

/// Publishes that the task died, unless it has published another end.
struct FailOnDrop(LeadershipPublisher);

impl<C: From<Resign> + Send + 'static> CandidateHandle<C> {
    /// Starts a candidate's task.
    pub fn start(
        identity: impl Into<Arc<str>>,
        publisher: LeadershipPublisher,
        candidate: impl Candidate<Command = C>,
    ) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let commands = Commands { requests, stop: stop.clone() };
        tokio::spawn(run(candidate, commands, FailOnDrop(publisher.clone())));
        Self { identity: identity.into(), publisher, requests: sender, stop }
    }

    /// Sends a command and waits for its result.
    pub async fn ask(&self, command: C) -> Result<(), ElectionError> {
        let (answer, result) = oneshot::channel();
        // Sending fails only if the task is gone, and then the answer never comes.
        let _ = self.requests.send(Request { command, answer });
        match result.await {
            Ok(result) => result,
            Err(_) => Err(self.publisher.end().await),
        }
    }

    #[cfg(feature = "etcd")]
    pub fn publisher(&self) -> &LeadershipPublisher {
        &self.publisher
    }
}

impl<C: From<Resign> + Send + 'static> Elector for CandidateHandle<C> {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.publisher.leadership()
    }

    fn state(&self) -> Leadership {
        self.publisher.state()
    }

    fn events(&self) -> Events {
        self.publisher.events()
    }

    async fn resign(&self) -> Result<(), ElectionError> {
        self.ask(Resign.into()).await
    }

    async fn close(&self) {
        self.stop.cancel();
        self.publisher.ended().await;
    }
}

/// Runs a candidate until its handle stops it or its elector fails.
///
/// The guard is an argument because a runtime that shuts down may drop the task before its first
/// poll.
async fn run<C: Candidate>(mut candidate: C, mut commands: Commands<C::Command>, guard: FailOnDrop) {
    let publisher = &guard.0;
    let mut pause = Duration::ZERO;
    let reason = loop {
        let mut began = None;
        let serve = async {
            tokio::time::sleep(pause).await;
            began = Some(clock::now());
            candidate.serve().await
        };
        let step = tokio::select! {
            biased;
            step = commands.next() => step,
            served = serve => served.map_or_else(NextStep::End, |()| NextStep::CompeteAnew),
        };
        let step = match step {
            NextStep::Obey(Request { command, answer }) if candidate.is_moot(&command) => {
                // The caller may have stopped waiting.
                let _ = answer.send(Ok(()));
                // The candidate may lead, and has to renew soon.
                pause = Duration::ZERO;
                continue;
            }
            step => step,
        };
        // Promise 3: the server learns of it only after this.
        publisher.set(Leadership::Unknown);
        match step {
            NextStep::Obey(Request { command, answer }) => {
                let withdrawn = if candidate.obey(command) { candidate.withdraw().await } else { Ok(()) };
                // The caller may have stopped waiting.
                let _ = answer.send(withdrawn);
            }
            NextStep::CompeteAnew => {
                // A candidacy that ends soon each time, because somebody deletes its key, must not
                // begin anew in haste.
                let lasted = began.is_some_and(|began| clock::now() - began >= LONGEST_PAUSE);
                pause = if lasted { Duration::ZERO } else { (2 * pause).clamp(FIRST_PAUSE, LONGEST_PAUSE) };
                // If the server does not answer, the session expires there.
                drop(candidate.withdraw().await);
            }
            NextStep::End(reason) => break reason,
        }
    };
    if let Err(error) = candidate.end().await {
        tracing::warn!(candidate = publisher.name(), %error, "the candidate's key or node is left to expire");
    }
    publisher.set(Leadership::Failed(Arc::new(reason)));
}

impl<C> Commands<C> {
    async fn next(&mut self) -> NextStep<C> {
        let request = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            // The handle cancels the token when it is dropped, and so closes both.
            request = self.requests.recv() => request,
        };
        request.map_or(NextStep::End(ElectionError::Closed), NextStep::Obey)
    }
}

impl<C> Drop for CandidateHandle<C> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Drop for FailOnDrop {
    fn drop(&mut self) {
        self.0.set(Leadership::Failed(Arc::new(ElectionError::Died)));
    }
}

/// The pause after the first candidacy that ended soon; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause. A candidacy that lasts as long starts again without one.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The longest TTL that a candidate may ask for: a year. Servers refuse much longer ones.
#[cfg(any(feature = "etcd", feature = "lab", feature = "redis"))]
pub(crate) const LONGEST_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use parking_lot::Mutex;

    use super::*;
    use crate::{clock::Moment, store::Fence};

    type Log = Arc<Mutex<Vec<String>>>;

    /// Leads until `lost` says otherwise, and logs the state that its readers see at each call.
    struct Fake {
        publisher: LeadershipPublisher,
        log: Log,
        lost: UnboundedReceiver<Result<(), ElectionError>>,
        /// Commands change nothing.
        idle: bool,
    }

    impl Fake {
        fn log(&self, call: &str) {
            let state = match &*self.publisher.leadership().borrow() {
                Leadership::Unknown => "unknown",
                Leadership::Leader { .. } => "leader",
                _ => "other",
            };
            self.log.lock().push(format!("{call} while {state}"));
        }
    }

    impl Candidate for Fake {
        type Command = Resign;

        async fn serve(&mut self) -> Result<(), ElectionError> {
            let until = Moment::now() + std::time::Duration::from_secs(10);
            self.publisher.lead(Fence::new("test", "election", 1), until);
            match self.lost.recv().await {
                Some(lost) => lost,
                None => std::future::pending().await,
            }
        }

        fn is_moot(&self, _: &Resign) -> bool {
            self.idle
        }

        fn obey(&mut self, _: Resign) -> bool {
            self.log("obey");
            true
        }

        async fn withdraw(&mut self) -> Result<(), ElectionError> {
            self.log("withdraw");
            Ok(())
        }
    }

    fn start() -> (CandidateHandle<Resign>, UnboundedSender<Result<(), ElectionError>>, Log) {
        start_fake(false)
    }

    fn start_fake(idle: bool) -> (CandidateHandle<Resign>, UnboundedSender<Result<(), ElectionError>>, Log) {
        let (publisher, log) = (LeadershipPublisher::new("test"), Log::default());
        let (lose, lost) = mpsc::unbounded_channel();
        let fake = Fake { publisher: publisher.clone(), log: log.clone(), lost, idle };
        (CandidateHandle::start("one", publisher, fake), lose, log)
    }

    async fn leads(handle: &CandidateHandle<Resign>) {
        let mut leadership = handle.leadership();
        assert!(leadership.wait_for(Leadership::is_leader).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn candidates_stop_leading_before_they_withdraw() {
        let (handle, lose, log) = start();
        leads(&handle).await;
        handle.resign().await.expect("it withdraws");
        leads(&handle).await;
        lose.send(Ok(())).expect("it serves");
        while log.lock().len() < 3 {
            tokio::task::yield_now().await;
        }
        leads(&handle).await;
        handle.close().await;
        let withdrawn = "withdraw while unknown";
        assert_eq!(*log.lock(), ["obey while unknown", withdrawn, withdrawn, withdrawn]);
        assert!(matches!(handle.resign().await, Err(ElectionError::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn commands_that_change_nothing_leave_the_leader_alone() {
        let (handle, lose, log) = start_fake(true);
        // A leader that has rested before must not do so again.
        lose.send(Ok(())).expect("it serves");
        tokio::time::sleep(LONGEST_PAUSE / 2).await;
        leads(&handle).await;
        let (asked, events) = (clock::now(), handle.events());
        for _ in 0..3 {
            handle.resign().await.expect("it has no effect");
            leads(&handle).await;
        }
        assert_eq!(clock::now(), asked);
        assert_eq!(*log.lock(), ["withdraw while unknown"]);
        handle.close().await;
        let events: Vec<_> = events.map(|event| format!("{event:?}")).collect().await;
        assert_eq!(events, ["Elected { token: 1 }", "Retired { token: 1 }", "Failed(Closed)"]);
    }

    #[tokio::test(start_paused = true)]
    async fn candidacies_that_end_soon_begin_anew_with_pauses() {
        let (handle, lose, log) = start();
        (0..100_000).for_each(|_| lose.send(Ok(())).expect("it serves"));
        let second = Duration::from_secs(1);
        tokio::time::sleep(10 * second).await;
        let withdrawn = log.lock().len();
        assert!((5..=10).contains(&withdrawn), "{withdrawn} candidacies in ten seconds");
        tokio::time::sleep(50 * second).await;
        assert!(log.lock().len() <= withdrawn + 11, "{} in a minute", log.lock().len());
        // It obeys during a pause.
        let asked = clock::now();
        handle.close().await;
        assert_eq!(clock::now(), asked);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_withdraw_and_end_with_their_reason() {
        let (handle, lose, log) = start();
        leads(&handle).await;
        lose.send(Err(ElectionError::SessionExpired)).expect("it serves");
        let mut leadership = handle.leadership();
        let ended = |state: &Leadership| match state {
            Leadership::Failed(error) => matches!(**error, ElectionError::SessionExpired),
            _ => false,
        };
        assert!(leadership.wait_for(ended).await.is_ok());
        assert_eq!(*log.lock(), ["withdraw while unknown"]);
    }

    #[test]
    fn tasks_that_die_with_their_runtime_are_visible() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // The task is dropped before its first poll.
        let handle = runtime.block_on(async { start().0 });
        drop(runtime);
        let state = handle.leadership().borrow().clone();
        assert!(matches!(state, Leadership::Failed(error) if matches!(*error, ElectionError::Died)));
    }
}
