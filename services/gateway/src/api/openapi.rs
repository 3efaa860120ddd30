//! The OpenAPI document: what the routes say of themselves, and the routes every binary has.

use axum::http::Method;
use utoipa::{
    OpenApi,
    openapi::{
        Components, ContentBuilder, OpenApi as Described, PathItem, Ref, ResponseBuilder,
        path::Operation,
        security::{
            ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
        },
    },
};

use usersync_core::signature::header;

use crate::access::{Scope, scope_of};

/// The name of the security scheme of every operation.
const SCHEME: &str = "key";
/// The name of the one that publishing also takes.
const SIGNATURE: &str = "signature";

/// What holds for the whole document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "usersync gateway",
        description = "Events in, states out, and the control plane. The same operations are a NATS service: see docs/CLI.md.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/")),
    tags(
        (name = "events", description = "What happened to users"),
        (name = "users", description = "The newest states, and how targets stand with them"),
        (name = "targets", description = "Where states go"),
        (name = "dead letters", description = "What could not be delivered"),
        (name = "refused events", description = "What could not be taken in"),
        (name = "repairs", description = "Deliveries asked for"),
        (name = "checks", description = "Targets compared with the newest states"),
        (name = "breakers", description = "Targets that are left alone for a while"),
        (name = "alerts", description = "What is wrong now"),
        (name = "status", description = "How everything stands"),
        (name = "admin", description = "How this gateway is"),
    )
)]
pub(super) struct Document;

/// Adds what the guard asks for: the scheme, the scope of every operation, and its refusals.
pub(super) fn secure(document: &mut Described) {
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A key with the scope that the operation names: docs/SECURITY.md. A gateway without keys, on a loopback \
             address, asks for none.",
        ))
        .build();
    let signature = ApiKeyValue::with_description(
        header::SIGNATURE,
        "Standard Webhooks: `v1,` and the base64 of HMAC-SHA256(secret, `id.timestamp.body`), with `webhook-id` and \
         `webhook-timestamp` beside it, and the caller's name in the query.",
    );
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme(SCHEME, SecurityScheme::Http(key));
    let signature = SecurityScheme::ApiKey(ApiKey::Header(signature));
    components.add_security_scheme(SIGNATURE, signature);
    let paths = document.paths.paths.iter_mut();
    for (path, item) in paths.filter(|(path, _)| path.starts_with("/v1/")) {
        for (method, operation) in operations(item) {
            let Some(scope) = scope_of(&method, path) else {
                continue;
            };
            let key = SecurityRequirement::new(SCHEME, [scope.as_str()]);
            let signed = SecurityRequirement::new::<_, [&str; 0], &str>(SIGNATURE, []);
            let also = (scope == Scope::Publish).then_some(signed);
            operation.security = Some([key].into_iter().chain(also).collect());
            for (status, description) in [
                ("401", "No key, or none that is known"),
                (
                    "403",
                    "The key hasn't this scope, or isn't bound to this source",
                ),
                (
                    "429",
                    "The caller asks for too much: send it again after Retry-After",
                ),
            ] {
                let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem")));
                let refused = ResponseBuilder::new()
                    .description(description)
                    .content("application/problem+json", problem.build());
                let responses = &mut operation.responses.responses;
                responses.insert(status.to_owned(), refused.build().into());
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let all = [
        (Method::GET, &mut item.get),
        (Method::PUT, &mut item.put),
        (Method::POST, &mut item.post),
        (Method::DELETE, &mut item.delete),
    ];
    all.into_iter()
        .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}
