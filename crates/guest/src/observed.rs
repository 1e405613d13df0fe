//! Every call of the agent's service: its work knows what it is about, and its phases are told where the host traces it.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};

use crate::logger;
use crate::recording::Recording;
use crate::scope::{self, Scope};

type Handler = Box<dyn MethodHandler + Send + Sync>;

/// The same service, observed.
pub fn observed(service: Service) -> Service {
    let wrap = |(name, inner): (String, Handler)| {
        let handler: Handler = Box::new(Observed { name: name.clone(), inner });
        (name, handler)
    };
    Service { methods: service.methods.into_iter().map(wrap).collect(), streams: service.streams }
}

struct Observed {
    name: String,
    inner: Handler,
}

#[async_trait]
impl MethodHandler for Observed {
    async fn handler(&self, ctx: TtrpcContext, req: Request) -> ttrpc::Result<Response> {
        let traceparent = ctx.metadata.get("traceparent").and_then(|values| values.first());
        let recording = traceparent.and_then(|value| Recording::begin(value));
        let scope = Arc::new(Scope { recording, ..Scope::of(&self.name, &req.payload) });
        let done = scope::within(scope.clone(), self.inner.handler(ctx, req)).await;
        if let Some(recording) = &scope.recording {
            logger::push(recording.line(&self.name));
        }
        done
    }
}
