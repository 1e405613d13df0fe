//! The sandbox's trace: recorded where the configuration wants it, and sent while the sandbox lives on.

use std::sync::Arc;
use std::time::Duration;

use kata_config::Config;
use kata_network::Netns;
use kata_trace::{Collector, Connect, Tracer};
use tokio::task::JoinHandle;

/// How long a sandbox's end waits for a collector.
const LAST_WITHIN: Duration = Duration::from_secs(1);

/// What is recorded and where it goes; or nothing.
pub(super) struct Traces(Option<Recorded>);

struct Recorded {
    tracer: Tracer,
    collector: Collector,
    following: JoinHandle<()>,
}

impl Traces {
    /// As the configuration says. To be called before the daemon goes into its sandbox's network: the collector is in the
    /// host's.
    ///
    /// # Errors
    /// An endpoint that is none.
    pub fn begin(config: &Config, sandbox: &str) -> Result<Traces, String> {
        let runtime = &config.runtime;
        if !runtime.enable_tracing {
            return Ok(Traces(None));
        }
        let host = Netns::current().map_err(|e| e.to_string())?;
        let connect: Connect =
            Arc::new(move |to| host.run(|| kata_trace::connect(to)).map_err(std::io::Error::other).flatten());
        let collector =
            Collector::new(&runtime.jaeger_endpoint, connect).map_err(|e| format!("runtime.jaeger_endpoint: {e}"))?;
        let tracer = Tracer::new(sandbox, config.agent.kata.enable_tracing);
        let following = tokio::spawn(collector.clone().follow(tracer.clone()));
        Ok(Traces(Some(Recorded { tracer, collector, following })))
    }

    /// The recorder, where there is one.
    pub fn tracer(&self) -> Option<&Tracer> {
        self.0.as_ref().map(|recorded| &recorded.tracer)
    }

    /// Sends what is left.
    pub async fn end(self) {
        let Some(Recorded { tracer, collector, following }) = self.0 else { return };
        // Behind what is being sent.
        if tokio::time::timeout(LAST_WITHIN, collector.send(&tracer)).await.is_err() {
            tracing::warn!("the last of a trace was not sent: the collector does not answer");
        }
        following.abort();
    }
}
