//! Traces: a span for each step of a user's change, sent to a collector by OTLP over HTTP where the settings name one.
//!
//! Without a collector nothing is recorded, and the trace context that came with an event goes on as it came. Spans
//! hold names of targets, versions and results, and nothing of a user.

mod exporter;
mod settings;
mod span;

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use usersync_core::trace::TraceContext;

pub use opentelemetry::trace::SpanKind;
pub use settings::Settings;
pub use span::Span;

/// How long sending the last spans may take on shutdown.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// What records spans. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Recorder>);

#[derive(Clone, Debug)]
struct Recorder {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Sends what `service` records to the collector of `settings`, in the background; nothing is recorded without one.
    ///
    /// # Errors
    /// When a secret or a certificate that the settings refer to can't be used.
    pub fn start(settings: Option<&Settings>, service: &'static str) -> anyhow::Result<Self> {
        let Some(settings) = settings else {
            return Ok(Self(None));
        };
        let provider = exporter::start(settings, service)?;
        tracing::info!(endpoint = %settings.endpoint, sample = settings.sample, "sending traces");
        let tracer = provider.tracer("usersync");
        Ok(Self(Some(Recorder { provider, tracer })))
    }

    /// Begins a span under `parent`, which ends when it is dropped. Whether one without a parent is recorded is left
    /// to chance (`traces.sample`); others are recorded when their parents are.
    pub fn span(&self, kind: SpanKind, name: &'static str, parent: Option<TraceContext>) -> Span {
        match &self.0 {
            None => Span::passing(parent),
            Some(recorder) => Span::begin(&recorder.tracer, kind, name, parent),
        }
    }

    /// Sends what is left, and ends. Waits for at most two seconds.
    pub async fn end(self) {
        let Some(Recorder { provider, .. }) = self.0 else {
            return;
        };
        // It waits for its thread, so it gets one of its own.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_SPANS));
        match tokio::time::timeout(LAST_SPANS, ended).await {
            Ok(Ok(Ok(()))) => {}
            _ => tracing::warn!("the last spans did not reach the collector"),
        }
    }
}
