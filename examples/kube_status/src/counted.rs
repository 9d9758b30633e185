//! A client that reports the result of each status update when its answer arrives.

use std::task::{Context, Poll};

use futures_util::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response, StatusCode};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
};
use tower::{Service, layer::layer_fn};

use crate::counts::{Event, OnEvent};

/// Creates a client that calls `on_event` for each status update.
pub fn client(config: Config, on_event: OnEvent) -> kube::Result<Client> {
    let layer = layer_fn(move |inner| Counted { inner, on_event: on_event.clone() });
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer).build())
}

struct Counted<S> {
    inner: S,
    on_event: OnEvent,
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
        let on_event = self.on_event.clone();
        async move {
            let answer = answer.await;
            on_event(match answer.as_ref().map(Response::status) {
                Ok(StatusCode::OK) => Event::Succeeded,
                Ok(StatusCode::CONFLICT) => Event::Refused,
                _ => Event::Failed,
            });
            answer
        }
        .boxed()
    }
}
