//! A client that notes each update of a status as it is answered.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response, StatusCode};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
};
use tower::{Service, layer::layer_fn};

/// What became of an update of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    Landed,
    /// Somebody else was first.
    Refused,
    Failed,
}

/// Called for each.
pub type Pen = Arc<dyn Fn(Note) + Send + Sync>;

pub fn client(config: Config, pen: Pen) -> kube::Result<Client> {
    let layer = layer_fn(move |inner| Counted { inner, pen: pen.clone() });
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer).build())
}

struct Counted<S> {
    inner: S,
    pen: Pen,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_update = request.method() == Method::PUT && request.uri().path().ends_with("/status");
        let answer = self.inner.call(request);
        if !is_update {
            return answer.boxed();
        }
        let pen = self.pen.clone();
        async move {
            let answer = answer.await;
            pen(match answer.as_ref().map(Response::status) {
                Ok(StatusCode::OK) => Note::Landed,
                Ok(StatusCode::CONFLICT) => Note::Refused,
                _ => Note::Failed,
            });
            answer
        }
        .boxed()
    }
}
