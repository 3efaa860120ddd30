//! A trace, from who publishes to the target, as a collector shows it.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use usersync_stack::{CollectedSpan, Collector, Directory, Stack, eventually, http};

use super::{SOMEBODY, USERNAME};
use crate::support::{self, Recorder, SOON, answer};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PUBLISHER: &str = "00f067aa0ba902b7";

/// The one span of that name in the trace of the publisher.
fn only<'a>(spans: &'a [CollectedSpan], name: &str) -> Result<&'a CollectedSpan> {
    let mut named = spans
        .iter()
        .filter(|span| span.name == name && span.trace_id == TRACE_ID);
    let one = named
        .next()
        .with_context(|| format!("no {name:?} among {spans:?}"))?;
    ensure!(named.next().is_none(), "several {name:?}: {spans:?}");
    Ok(one)
}

async fn start(recorder: &Recorder, collector: &Collector) -> Result<Stack> {
    support::only(recorder.target("audit", ""))
        .workers("audit", 1)
        .env("USERSYNC_TRACES__ENDPOINT", collector.url())
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .start()
        .await
}

#[tokio::test]
async fn a_trace_goes_from_the_publisher_to_the_target() -> Result<()> {
    let dir = Directory::temporary()?;
    let collector = Collector::start(dir.path()).await?;
    let recorder = Recorder::start(async |_| answer(204)).await?;
    let stack = start(&recorder, &collector).await?;

    let event = json!({"type": "user.created", "user_id": SOMEBODY, "username": USERNAME,
                       "email": "zaphod@example.com"});
    let response = http::client()
        .post(format!("{}/v1/events", stack.gateway().url()))
        .header("traceparent", format!("00-{TRACE_ID}-{PUBLISHER}-01"))
        .header("tracestate", "vendor=1")
        .json(&event)
        .send()
        .await?;
    ensure!(response.status() == 202, "{}", response.status());

    let spans = eventually(SOON, async || {
        let spans = collector.spans()?;
        only(&spans, "deliver")?;
        only(&spans, "process event")?;
        only(&spans, "POST /v1/events")?;
        Ok(spans)
    })
    .await?;
    let [published, merged, delivered] =
        ["POST /v1/events", "process event", "deliver"].map(|name| only(&spans, name));
    let (published, merged, delivered) = (published?, merged?, delivered?);
    assert_eq!(published.parent_id, PUBLISHER);
    assert_eq!(merged.parent_id, published.id);
    assert_eq!(delivered.parent_id, merged.id);
    for (span, service, kind) in [
        (published, "usersync-gateway", "SPAN_KIND_SERVER"),
        (merged, "usersync-gateway", "SPAN_KIND_CONSUMER"),
        (delivered, "usersync-worker", "SPAN_KIND_CLIENT"),
    ] {
        assert_eq!(
            (span.service.as_str(), span.kind.as_str()),
            (service, kind),
            "{span:?}"
        );
    }
    for (span, part) in [
        (published, "http.response.status_code: Int(202)"),
        (merged, "usersync.result: Str(changed)"),
        (delivered, "usersync.target: Str(audit)"),
        (delivered, "usersync.result: Str(delivered)"),
    ] {
        assert!(span.rest.contains(part), "{part:?} in {span:?}");
    }

    let [call] = recorder
        .calls()
        .try_into()
        .map_err(|calls| anyhow::anyhow!("{calls:?}"))?;
    assert_eq!(
        call.header("traceparent"),
        format!("00-{TRACE_ID}-{}-01", delivered.id)
    );
    assert_eq!(call.header("tracestate"), "vendor=1");

    let log = collector.log()?;
    for part in [USERNAME, &SOMEBODY.to_string(), "example.com"] {
        assert!(!log.contains(part), "{part} is in a trace: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn the_spans_of_failures_say_what_kind_they_are() -> Result<()> {
    let dir = Directory::temporary()?;
    let collector = Collector::start(dir.path()).await?;
    let recorder = Recorder::start(async |_| answer(422)).await?;
    let stack = start(&recorder, &collector).await?;

    let response = http::client()
        .post(format!("{}/v1/events", stack.gateway().url()))
        .header("traceparent", format!("00-{TRACE_ID}-{PUBLISHER}-01"))
        .json(&json!({"type": "user.created", "user_id": 1}))
        .send()
        .await?;
    ensure!(response.status() == 202, "{}", response.status());
    eventually(SOON, async || {
        let spans = collector.spans()?;
        let delivered = only(&spans, "deliver")?;
        let part = "error.type: Str(permanent)";
        ensure!(
            delivered.rest.contains(part),
            "{part:?} isn't in {delivered:?}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_collector_that_is_away_holds_up_nobody() -> Result<()> {
    let dir = Directory::temporary()?;
    let collector = Collector::start(dir.path()).await?;
    let recorder = Recorder::start(async |_| answer(204)).await?;
    let stack = start(&recorder, &collector).await?;
    drop(collector);

    for user in 1..=50 {
        let response = http::client()
            .post(format!("{}/v1/events", stack.gateway().url()))
            .header("traceparent", format!("00-{TRACE_ID}-{PUBLISHER}-01"))
            .json(&json!({"type": "user.created", "user_id": user}))
            .send()
            .await?;
        ensure!(response.status() == 202, "{}", response.status());
    }
    eventually(SOON, async || {
        let calls = recorder.calls().len();
        ensure!(calls == 50, "{calls} of 50 were delivered");
        Ok(())
    })
    .await?;
    // Within the grace period, spans unsent.
    stack.stop().await
}
