//! One step of a user's change, and the place in its trace that what follows belongs under.

use opentelemetry::{
    Context, KeyValue, Value,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Span as _, SpanKind, Status, TraceFlags, Tracer as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, Span as Recorded},
};
use usersync_core::trace::{TRACEPARENT, TRACESTATE, TraceContext};

/// A span under way; ends when it is dropped. Where nothing is recorded it hands the context on and costs nothing.
#[derive(Debug)]
pub struct Span {
    recorded: Option<Box<Recorded>>,
    parent: Option<TraceContext>,
}

impl Span {
    /// One that isn't recorded.
    pub(crate) fn passing(parent: Option<TraceContext>) -> Self {
        Self {
            recorded: None,
            parent,
        }
    }

    pub(crate) fn begin(
        tracer: &SdkTracer,
        kind: SpanKind,
        name: &'static str,
        parent: Option<TraceContext>,
    ) -> Self {
        // Not the current context: spans here belong to messages, not to threads.
        let mut context = Context::new();
        if let Some(parent) = &parent {
            context =
                TraceContextPropagator::new().extract_with_context(&context, &Carrier(parent));
        }
        let span = tracer
            .span_builder(name)
            .with_kind(kind)
            .start_with_context(tracer, &context);
        Self {
            recorded: Some(Box::new(span)),
            parent,
        }
    }

    /// Where what follows belongs: under this span, or where it isn't recorded, where this one belongs.
    pub fn context(&self) -> Option<TraceContext> {
        let Some(span) = &self.recorded else {
            return self.parent.clone();
        };
        let context = span.span_context();
        let parent = format!(
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            context.trace_flags() & TraceFlags::SAMPLED
        );
        let state = context.trace_state().header();
        TraceContext::read(|name| match name {
            TRACEPARENT => Some(&parent),
            TRACESTATE => Some(&state),
            _ => None,
        })
    }

    /// Whether anybody will see what is noted.
    pub fn is_recorded(&self) -> bool {
        self.recorded
            .as_ref()
            .is_some_and(|span| span.is_recording())
    }

    /// Notes something about the step: no payload, no personal data.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.recorded {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Notes that the step failed, and what kind of failure it was.
    pub fn fail(&mut self, class: &'static str) {
        if let Some(span) = &mut self.recorded {
            span.set_attribute(KeyValue::new("error.type", class));
            span.set_status(Status::error(class));
        }
    }
}

/// Shows a context to the library that reads headers.
struct Carrier<'a>(&'a TraceContext);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0
            .headers()
            .find_map(|(name, text)| (name == key).then_some(text))
    }

    fn keys(&self) -> Vec<&str> {
        self.0.headers().map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn parent(text: &str) -> Option<TraceContext> {
        TraceContext::read(|name| match name {
            TRACEPARENT => Some(text),
            TRACESTATE => Some("vendor=1"),
            _ => None,
        })
    }

    fn context(sample: f64, of: Option<TraceContext>) -> TraceContext {
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample)));
        let provider = SdkTracerProvider::builder().with_sampler(sampler).build();
        let tracer = provider.tracer("test");
        let span = Span::begin(&tracer, SpanKind::Internal, "step", of);
        span.context().unwrap()
    }

    #[test]
    fn what_follows_is_in_the_same_trace_under_this_span() {
        let context = context(0.0, parent(PARENT));
        assert_eq!(context.parent()[..36], PARENT[..36]);
        assert_ne!(context.parent()[36..52], PARENT[36..52]);
        assert!(context.parent().ends_with("-01"));
        assert_eq!(context.state(), Some("vendor=1"));
    }

    #[test]
    fn who_did_not_record_decides_for_all_that_follows() {
        assert!(context(1.0, parent(UNSAMPLED)).parent().ends_with("-00"));
        assert!(context(1.0, None).parent().ends_with("-01"));
        assert!(context(0.0, None).parent().ends_with("-00"));
    }

    #[test]
    fn without_a_collector_the_context_goes_on_as_it_came() {
        let span = Span::passing(parent(PARENT));
        assert_eq!(span.context(), parent(PARENT));
        assert_eq!(Span::passing(None).context(), None);
    }
}
