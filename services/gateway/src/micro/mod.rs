//! The control plane as a NATS service (ADR-32): `usersync.<group>.<operation>`, JSON in and out.

use std::{
    collections::HashMap,
    future::{Future, ready},
    sync::Arc,
    time::Duration,
};

use async_nats::Client;
use axum::http::StatusCode;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::select_all};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    nats_service::{About, NatsService, Refused, Request},
    subjects,
};

use crate::{
    api::extract::parse,
    control::{
        Control, alerts, breakers, changes, checks, dead_letters, erase, jobs, preview, refused,
        repairs, status, targets, users, why,
    },
    problem::Problem,
};

/// Requests under way at once.
const UNDER_WAY: usize = 64;
/// How long a request may take, as over HTTP.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The bytes that an answer's headers may take.
const HEADERS: usize = 1024;

type Answer = Result<Vec<u8>, Problem>;
type Run = Box<dyn Fn(Arc<Control>, Vec<u8>) -> BoxFuture<'static, Answer> + Send + Sync>;

/// One operation: where it is asked for, and what answers.
struct Operation {
    group: &'static str,
    name: &'static str,
    /// For `nats micro info`: an example of what goes in.
    request: &'static str,
    run: Run,
}

/// A request that says nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Makes an operation of a function that takes the control plane and a request.
fn operation<T, R, F>(
    group: &'static str,
    name: &'static str,
    request: &'static str,
    run: impl Fn(Arc<Control>, T) -> F + Send + Sync + 'static,
) -> Operation
where
    T: DeserializeOwned,
    R: Serialize,
    F: Future<Output = Result<R, Problem>> + Send + 'static,
{
    let run: Run = Box::new(move |control, body| match parse(&body) {
        Err(problem) => ready(Err(problem)).boxed(),
        Ok(request) => run(control, request)
            .map(|answer| {
                serde_json::to_vec(&answer?)
                    .map_err(|_| Problem::unprocessable("the answer can't be written as JSON"))
            })
            .boxed(),
    });
    Operation {
        group,
        name,
        request,
        run,
    }
}

/// Everything that can be asked for.
fn operations() -> Vec<Operation> {
    vec![
        operation("status", "", "{}", |control, Nothing {}| async move {
            status::status(&control).await
        }),
        operation("targets", "list", "{}", |control, Nothing {}| async move {
            targets::list(&control).await
        }),
        operation("targets", "schema", "{}", |_, Nothing {}| async {
            Ok(targets::schema())
        }),
        operation(
            "targets",
            "show",
            r#"{"name":"t"}"#,
            |control, named| async move { targets::show(&control, named).await },
        ),
        operation(
            "targets",
            "put",
            r#"{"name":"t","entry":{"url":"http://…"},"revision":7,"test":false,"dry_run":false}"#,
            |control, put| async move { changes::put(&control, put).await },
        ),
        operation(
            "targets",
            "delete",
            r#"{"name":"t","revision":7,"consumers":"keep","dry_run":false}"#,
            |control, delete| async move { changes::delete(&control, delete).await },
        ),
        operation(
            "targets",
            "pause",
            r#"{"name":"t","note":"…"}"#,
            |control, switch| async move { changes::pause(&control, switch).await },
        ),
        operation(
            "targets",
            "resume",
            r#"{"name":"t"}"#,
            |control, switch| async move { changes::resume(&control, switch).await },
        ),
        operation(
            "targets",
            "test",
            r#"{"name":"t"}"#,
            |control, named| async move { targets::test(&control, named).await },
        ),
        operation(
            "targets",
            "preview",
            r#"{"name":"t","user_id":42}"#,
            |control, preview| async move { preview::preview(&control, preview).await },
        ),
        operation(
            "users",
            "show",
            r#"{"user_id":42}"#,
            |control, by| async move { users::show(&control, by).await },
        ),
        operation(
            "users",
            "targets",
            r#"{"user_id":42}"#,
            |control, by| async move { users::tasks(&control, by).await },
        ),
        operation(
            "users",
            "why",
            r#"{"user_id":42,"target":"t"}"#,
            |control, of| async move { why::why(&control, of).await },
        ),
        operation(
            "users",
            "erase",
            r#"{"user_id":42,"dry_run":true}"#,
            |control, erase| async move { erase::start(&control, erase).await },
        ),
        operation(
            "dead",
            "list",
            r#"{"target":"t","class":"permanent","reason":"…","from":1,"limit":100}"#,
            |control, list| async move { dead_letters::list(&control, list).await },
        ),
        operation(
            "dead",
            "show",
            r#"{"target":"t","user_id":42}"#,
            |control, one| async move { dead_letters::show(&control, one).await },
        ),
        operation(
            "dead",
            "replay",
            r#"{"target":"t","class":"transient","dry_run":true}"#,
            |control, replay| async move { dead_letters::replay(&control, replay).await },
        ),
        operation(
            "dead",
            "discard",
            r#"{"target":"t","user_id":42,"dry_run":true}"#,
            |control, discard| async move { dead_letters::discard(&control, discard).await },
        ),
        operation(
            "refused",
            "list",
            r#"{"limit":100}"#,
            |control, list| async move { refused::list(&control, list).await },
        ),
        operation(
            "refused",
            "show",
            r#"{"seq":7}"#,
            |control, one| async move { refused::show(&control, one).await },
        ),
        operation(
            "refused",
            "discard",
            r#"{"seq":7}"#,
            |control, discard| async move { refused::discard(&control, discard).await },
        ),
        operation(
            "repair",
            "start",
            r#"{"target":"t","all":true,"per_second":2000}"#,
            |control, repair| async move { repairs::start(&control, repair).await },
        ),
        operation(
            "repair",
            "status",
            r#"{"id":"…"}"#,
            |control, by| async move { jobs::status(&control, by).await },
        ),
        operation("repair", "list", "{}", |control, Nothing {}| async move {
            jobs::list(&control).await
        }),
        operation(
            "repair",
            "cancel",
            r#"{"id":"…"}"#,
            |control, by| async move { jobs::cancel(&control, by).await },
        ),
        operation(
            "breakers",
            "list",
            r#"{"target":"t"}"#,
            |control, list| async move { breakers::list(&control, list).await },
        ),
        operation(
            "breakers",
            "reset",
            r#"{"target":"t"}"#,
            |control, reset| async move { breakers::reset(&control, reset).await },
        ),
        operation(
            "check",
            "",
            r#"{"target":"t","user_id":42,"from":1,"to":1000,"dry_run":true}"#,
            |control, run| async move { checks::run(&control, run).await },
        ),
        operation(
            "check",
            "approve",
            r#"{"target":"t"}"#,
            |control, of| async move { checks::approve(&control, of).await },
        ),
        operation(
            "check",
            "show",
            r#"{"target":"t"}"#,
            |control, of| async move { checks::show(&control, of).await },
        ),
        operation("alerts", "list", "{}", |control, Nothing {}| async move {
            alerts::list(&control).await
        }),
        operation("check", "list", "{}", |control, Nothing {}| async move {
            checks::list(&control).await
        }),
        operation(
            "check",
            "pause",
            r#"{"target":"t"}"#,
            |control, of| async move { checks::pause(&control, of).await },
        ),
        operation(
            "check",
            "resume",
            r#"{"target":"t"}"#,
            |control, of| async move { checks::resume(&control, of).await },
        ),
    ]
}

/// Answers until `shutdown`; several gateways share the requests.
///
/// # Errors
/// When the client is closed.
pub(crate) async fn serve(
    client: Client,
    control: Arc<Control>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let about = About {
        name: subjects::CONTROL,
        version: env!("CARGO_PKG_VERSION"),
        description: "The control plane of usersync: targets, users, dead letters, repairs, breakers, checks, alerts, status",
        queue_group: subjects::CONTROL,
    };
    let service = NatsService::start(client, about).await?;
    let mut endpoints = Vec::new();
    for operation in operations() {
        let Operation { group, name, .. } = operation;
        let about = HashMap::from([("request".to_owned(), operation.request.to_owned())]);
        let endpoint = format!("{group}-{name}");
        let endpoint = endpoint.trim_end_matches('-');
        let subject = subjects::control(group, name);
        let requests = service.endpoint(endpoint, subject, about).await?;
        let run = Arc::new(operation.run);
        endpoints.push(requests.map(move |request| (run.clone(), request)));
    }
    let mut requests = select_all(endpoints);
    let room = Arc::new(Semaphore::new(UNDER_WAY));
    let answering = async {
        while let Some((run, request)) = requests.next().await {
            let place = room.clone().acquire_owned().await;
            let control = control.clone();
            tokio::spawn(async move {
                let body = request.message.payload.to_vec();
                let answer = tokio::time::timeout(TIMEOUT, run(control.clone(), body)).await;
                let late = |_| Err(Problem::unavailable("it took too long; try again"));
                let answer = answer.unwrap_or_else(late);
                let most = control.jetstream.client().max_payload();
                respond(&request, answer.and_then(|answer| fit(answer, most))).await;
                drop(place);
            });
        }
    };
    shutdown.run_until_cancelled(answering).await;
    // With its end requests go to the other gateways.
    Ok(())
}

/// Refuses an answer that the server wouldn't take, which would leave the one who asked without any.
fn fit(answer: Vec<u8>, most: usize) -> Answer {
    if answer.len() + HEADERS <= most {
        return Ok(answer);
    }
    let length = answer.len();
    let detail = format!(
        "the answer has {length} bytes and NATS takes {most}; ask for less with limit, or over HTTP"
    );
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
}

async fn respond(request: &Request, answer: Answer) {
    let answer = answer.map(Into::into).map_err(|problem| Refused {
        code: problem.status.as_u16(),
        detail: problem.detail.into_owned(),
    });
    request.respond(answer).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_too_long_for_nats_becomes_an_error() {
        assert!(fit(vec![0; 1024], 2048).is_ok());
        let refused = fit(vec![0; 1025], 2048).unwrap_err();
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn the_examples_are_json() {
        for operation in operations() {
            let request: Result<serde_json::Value, _> = serde_json::from_str(operation.request);
            assert!(request.is_ok(), "{} {}", operation.group, operation.name);
        }
    }
}
