//! Stands before a gRPC service: nothing of a call is read before its caller is known.
//!
//! Put around every service by the app. Asynchronous, since another party may have to be asked; that is what it has over
//! tonic's interceptors.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, FutureExt as _};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::Authenticator;

/// A service whose callers have proved themselves.
#[derive(Clone, Debug)]
pub struct Guard<S> {
    service: S,
    authenticator: Authenticator,
}

impl<S> Guard<S> {
    /// Lets those callers through whom `authenticator` knows.
    pub const fn new(service: S, authenticator: Authenticator) -> Self {
        Self {
            service,
            authenticator,
        }
    }
}

impl<S: NamedService> NamedService for Guard<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Guard<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The one that is ready is the one that is used.
        let clone = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, clone);
        let authenticator = self.authenticator.clone();
        async move {
            let header = request.headers().get(http::header::AUTHORIZATION).cloned();
            let header = header.as_ref().and_then(|value| value.to_str().ok());
            let caller = match authenticator.authenticate(header).await {
                Ok(caller) => caller,
                Err(status) => return Ok(status.into_http()),
            };
            // What a client sends cannot be in the extensions; they are made in this process.
            request.extensions_mut().insert(caller);
            service.call(request).await
        }
        .boxed()
    }
}
