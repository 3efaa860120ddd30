//! `/v1/targets`: the targets and how they stand. ETags are revisions of the KV bucket.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use usersync_core::target::{TargetConfig, TargetName};

use super::extract::{Body, Params, Target};
use crate::{
    control::{
        Control, Named,
        changes::{self, Consumers, Delete, Deleted, Put, Saved, Switch},
        preview::{self, Preview, Previewed},
        targets::{self, Tested, View, Views},
    },
    problem::Problem,
};

/// A revision that no entry has.
const NONE: u64 = u64::MAX;

/// How to save.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Saving {
    /// Save only if the target answers
    #[serde(default)]
    test: bool,
    /// Check everything and save nothing
    #[serde(default)]
    dry_run: bool,
}

/// How to delete.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Deleting {
    /// What becomes of the target's consumers
    #[serde(default)]
    #[param(inline)]
    consumers: Consumers,
    /// Change nothing
    #[serde(default)]
    dry_run: bool,
}

/// What goes with pausing or resuming.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Switching {
    /// Kept beside the entry, for people
    #[serde(default)]
    note: Option<String>,
}

/// All targets
///
/// With what waits for them, breakers, dead letters and the progress of back-fills.
#[utoipa::path(get, operation_id = "targets.list", path = "/v1/targets", tag = "targets",
    responses(
        (status = 200, description = "All targets", body = Views),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn list(State(control): State<Arc<Control>>) -> Result<Json<Views>, Problem> {
    Ok(Json(targets::list(&control).await?))
}

/// The JSON Schema of a target's entry
#[utoipa::path(get, operation_id = "targets.schema", path = "/v1/targets/schema", tag = "targets",
    responses((status = 200, description = "JSON Schema, draft 2020-12", body = Object, content_type = "application/schema+json")))]
pub(super) async fn schema() -> Response {
    let schema = targets::schema().to_string();
    ([(header::CONTENT_TYPE, "application/schema+json")], schema).into_response()
}

/// One target
#[utoipa::path(get, operation_id = "targets.show", path = "/v1/targets/{name}", tag = "targets",
    params(("name" = TargetName, Path, description = "The target's name")),
    responses(
        (status = 200, description = "The target", body = View, headers(("ETag" = String, description = "The entry's revision"))),
        (status = 400, description = "No name", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such target", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn show(
    State(control): State<Arc<Control>>,
    Target(name): Target,
) -> Result<Response, Problem> {
    let view = targets::show(&control, Named { name }).await?;
    Ok(tagged(StatusCode::OK, view.revision, view))
}

/// Create or replace a target
///
/// The entry is checked, by its kind too. A new target is filled with every user.
#[utoipa::path(put, operation_id = "targets.put", path = "/v1/targets/{name}", tag = "targets",
    params(
        ("name" = TargetName, Path, description = "The target's name"), Saving,
        ("If-Match" = Option<String>, Header, description = "Save only if the ETag still is this"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: save only if there is no such target"),
    ),
    request_body(content = TargetConfig, description = "The entry: see /v1/targets/schema; only `url` is required"),
    responses(
        (status = 200, description = "Replaced, or checked", body = Saved, headers(("ETag" = String, description = "The new revision"))),
        (status = 201, description = "Created", body = Saved, headers(("ETag" = String, description = "The revision"))),
        (status = 400, description = "Not JSON, or no name", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Others keep changing it", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "Not at the expected revision", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The entry is wrong, or its target doesn't answer", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn put(
    State(control): State<Arc<Control>>,
    Target(name): Target,
    Params(saving): Params<Saving>,
    headers: HeaderMap,
    Body(entry): Body<Value>,
) -> Result<Response, Problem> {
    let put = Put {
        revision: expected(&control, &name, &headers).await?,
        name,
        entry,
        test: saving.test,
        dry_run: saving.dry_run,
    };
    let saved = changes::put(&control, put).await?;
    let status = match saved.created && !saved.dry_run {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    };
    Ok(tagged(status, saved.revision, saved))
}

/// Delete a target
#[utoipa::path(delete, operation_id = "targets.delete", path = "/v1/targets/{name}", tag = "targets",
    params(
        ("name" = TargetName, Path, description = "The target's name"), Deleting,
        ("If-Match" = Option<String>, Header, description = "Delete only if the ETag still is this"),
    ),
    responses(
        (status = 200, description = "Deleted, or what would be", body = Deleted),
        (status = 400, description = "No name", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such target", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "Not at the expected revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn delete(
    State(control): State<Arc<Control>>,
    Target(name): Target,
    Params(deleting): Params<Deleting>,
    headers: HeaderMap,
) -> Result<Json<Deleted>, Problem> {
    let delete = Delete {
        revision: expected(&control, &name, &headers).await?,
        name,
        consumers: deleting.consumers,
        dry_run: deleting.dry_run,
    };
    Ok(Json(changes::delete(&control, delete).await?))
}

/// Pause a target
///
/// It gets nothing until it is resumed, and then each user once, in the newest state.
#[utoipa::path(post, operation_id = "targets.pause", path = "/v1/targets/{name}/pause", tag = "targets",
    params(
        ("name" = TargetName, Path, description = "The target's name"),
        ("If-Match" = Option<String>, Header, description = "Only if the ETag still is this"),
    ),
    request_body = Option<Switching>,
    responses(
        (status = 200, description = "Saved", body = Saved, headers(("ETag" = String, description = "The new revision"))),
        (status = 400, description = "No name", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such target", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "Not at the expected revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn pause(
    State(control): State<Arc<Control>>,
    Target(name): Target,
    headers: HeaderMap,
    Body(switching): Body<Switching>,
) -> Result<Response, Problem> {
    let switch = switch(&control, name, &headers, switching).await?;
    let saved = changes::pause(&control, switch).await?;
    Ok(tagged(StatusCode::OK, saved.revision, saved))
}

/// Resume a target
#[utoipa::path(post, operation_id = "targets.resume", path = "/v1/targets/{name}/resume", tag = "targets",
    params(
        ("name" = TargetName, Path, description = "The target's name"),
        ("If-Match" = Option<String>, Header, description = "Only if the ETag still is this"),
    ),
    request_body = Option<Switching>,
    responses(
        (status = 200, description = "Saved", body = Saved, headers(("ETag" = String, description = "The new revision"))),
        (status = 400, description = "No name", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such target", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "Not at the expected revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn resume(
    State(control): State<Arc<Control>>,
    Target(name): Target,
    headers: HeaderMap,
    Body(switching): Body<Switching>,
) -> Result<Response, Problem> {
    let switch = switch(&control, name, &headers, switching).await?;
    let saved = changes::resume(&control, switch).await?;
    Ok(tagged(StatusCode::OK, saved.revision, saved))
}

/// Test the connection to a target
///
/// As this gateway reaches it, with the secrets this gateway has. Changes nothing there. Where the entry's newest
/// value can't be used, `problem` says why, and the last good one is tested.
#[utoipa::path(post, operation_id = "targets.test", path = "/v1/targets/{name}/test", tag = "targets",
    params(("name" = TargetName, Path, description = "The target's name")),
    responses(
        (status = 200, description = "Tested; `reachable` says how it went", body = Tested),
        (status = 400, description = "No name", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such target", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The entry is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn test(
    State(control): State<Arc<Control>>,
    Target(name): Target,
) -> Result<Json<Tested>, Problem> {
    Ok(Json(targets::test(&control, Named { name }).await?))
}

/// What a user would become at a target
///
/// Of a stored user or of a given document, by the saved entry or by one to try.
#[utoipa::path(post, operation_id = "targets.preview", path = "/v1/targets/{name}/preview", tag = "targets",
    params(("name" = TargetName, Path, description = "The target's name")),
    request_body = Preview,
    responses(
        (status = 200, description = "What would be done", body = Previewed),
        (status = 400, description = "Not JSON, or no name", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such target or user", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The user or the entry is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn preview(
    State(control): State<Arc<Control>>,
    Target(name): Target,
    Body(mut preview): Body<Preview>,
) -> Result<Json<Previewed>, Problem> {
    preview.name = Some(name);
    Ok(Json(preview::preview(&control, preview).await?))
}

async fn switch(
    control: &Control,
    name: TargetName,
    headers: &HeaderMap,
    switching: Switching,
) -> Result<Switch, Problem> {
    Ok(Switch {
        revision: expected(control, &name, headers).await?,
        name,
        note: switching.note,
    })
}

/// The revision that a request's conditions ask for (RFC 9110); 0 stands for no target at all.
async fn expected(
    control: &Control,
    name: &TargetName,
    headers: &HeaderMap,
) -> Result<Option<u64>, Problem> {
    let text = |name: header::HeaderName| {
        let mut values = headers.get_all(&name).iter();
        let (value, more) = (values.next(), values.next());
        match (value.map(|value| value.to_str()), more) {
            (None, _) => Ok(None),
            (Some(Ok(text)), None) => Ok(Some(text)),
            // Taken for absent, it would let a write through that was meant to be refused.
            _ => Err(Problem::bad_request(format!(
                "{name}: expected it once, in ASCII"
            ))),
        }
    };
    let conditions = (text(header::IF_MATCH)?, text(header::IF_NONE_MATCH)?);
    let current = async || control.registry().await?.entry(name).await;
    match conditions {
        (None, None) => Ok(None),
        (None, Some("*")) => Ok(Some(0)),
        // Any revision will do, as long as there is one.
        (Some("*"), None) => Ok(Some(current().await?.map_or(NONE, |entry| entry.revision))),
        (Some(list), None) => {
            let tags = list.split(',').map(|tag| revision_of(tag.trim()));
            let tags: Option<Vec<u64>> = tags.collect();
            let tags = tags.ok_or_else(|| {
                Problem::bad_request("If-Match: expected an ETag such as \"7\", or *")
            })?;
            if let [revision] = tags.as_slice() {
                return Ok(Some(*revision));
            }
            let current = current().await?.map(|entry| entry.revision);
            Ok(Some(
                current
                    .filter(|current| tags.contains(current))
                    .unwrap_or(NONE),
            ))
        }
        _ => Err(Problem::bad_request(
            "expected If-Match with an ETag, or If-None-Match with *",
        )),
    }
}

/// The revision of an ETag, `None` for what is none. A weak one never matches (RFC 9110, 13.1.1).
fn revision_of(tag: &str) -> Option<u64> {
    let (weak, tag) = match tag.strip_prefix("W/") {
        Some(tag) => (true, tag),
        None => (false, tag),
    };
    let revision = tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()?;
    Some(if weak { NONE } else { revision })
}

fn tagged(status: StatusCode, revision: u64, body: impl Serialize) -> Response {
    let tag = format!("\"{revision}\"");
    match revision {
        0 => (status, Json(body)).into_response(),
        _ => (status, [(header::ETAG, tag)], Json(body)).into_response(),
    }
}
