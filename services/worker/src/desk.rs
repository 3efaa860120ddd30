//! Answers about this worker: the NATS service `usersync-worker`, every worker for itself.

use std::collections::{BTreeSet, HashMap};

use async_nats::Client;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    nats_service::{About, NatsService, Request},
    target::TargetName,
    user_id::UserId,
};

use crate::fleet::Routes;

/// Serves the questions until `shutdown`; a worker of another target stays silent. One that serves a single target of `names`
/// listens for that alone: its login may be for nothing else.
///
/// # Errors
/// When the service can't be started.
pub(crate) async fn run(
    client: Client,
    worker: String,
    names: &BTreeSet<TargetName>,
    routes: Routes,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let target = match names.first() {
        Some(name) if names.len() == 1 => name.as_ref(),
        _ => "*",
    };
    let about = About {
        name: "usersync-worker",
        version: env!("CARGO_PKG_VERSION"),
        description: "Delivers the newest state of every user to its targets",
        // Everybody answers, not one of them.
        queue_group: &worker,
    };
    let service = NatsService::start(client, about).await?;
    let endpoint = |name: &'static str| {
        let subject = format!("usersync.worker.{name}.{target}");
        service.endpoint(name, subject, HashMap::new())
    };
    let mut status = endpoint("status").await?;
    let mut task = endpoint("task").await?;
    loop {
        let (request, answer): (Request, Option<Value>) = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(request) = status.next() => {
                let answer = status_of(&routes, &request);
                (request, answer)
            }
            Some(request) = task.next() => {
                let answer = task_of(&routes, &request);
                (request, answer)
            }
            else => break,
        };
        if let Some(mut answer) = answer {
            answer["worker"] = json!(worker);
            request.respond(Ok(answer.to_string().into())).await;
        }
    }
    Ok(())
}

fn target_of(request: &Request) -> Option<TargetName> {
    request.message.subject.rsplit('.').next()?.parse().ok()
}

/// How one target stands here.
fn status_of(routes: &Routes, request: &Request) -> Option<Value> {
    let route = routes.of(&target_of(request)?)?;
    let breaker = route.breaker();
    let recent = route.recent();
    let rates = recent.rates(Instant::now());
    Some(json!({
        "target": route.config.name,
        "breaker": { "state": breaker.state(), "reason": breaker.reason() },
        "failing": route.failures().len(),
        "dead_letters": route.letters.count(),
        "attempts_per_second": rates.attempts_per_second,
        "failures_per_second": rates.failures_per_second,
        "last_failure": recent.last_failure(),
    }))
}

/// The user that a body names: as JSON, or else as the bare id.
fn user_of(body: &[u8]) -> Option<UserId> {
    let body = body.trim_ascii();
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let named = json.and_then(|value| UserId::try_from(&value).ok());
    named.or_else(|| std::str::from_utf8(body).ok()?.parse().ok())
}

/// What is known of the delivery of one user, named in the body.
fn task_of(routes: &Routes, request: &Request) -> Option<Value> {
    let route = routes.of(&target_of(request)?)?;
    let user = user_of(&request.message.payload);
    let (failing, others) = {
        let failures = route.failures();
        (failures.of(&user?).cloned(), failures.len())
    };
    let mut answer = serde_json::to_value(&failing).unwrap_or_default();
    if failing.is_none() {
        answer = json!({});
    }
    answer["held"] = failing.is_some().into();
    // So that who asks can tell whether anybody fails whom no worker knows of.
    answer["failing"] = others.into();
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_as_json_or_by_the_bare_id() {
        let of = |body: &str| user_of(body.as_bytes()).map(|user| user.to_string());
        for (body, user) in [
            ("42", "42"),
            (" \"42\" ", "42"),
            ("auth0|6f", "auth0|6f"),
            ("\"auth0|6f\"", "auth0|6f"),
            ("\"1e3\"", "1e3"),
            ("1e3", "1e3"),
            ("{}", "{}"),
            ("\"\\\"a\\\"\"", "\"a\""),
            ("null", "null"),
        ] {
            assert_eq!(of(body).as_deref(), Some(user), "{body}");
        }
        assert_eq!(of("a b"), None);
    }
}
