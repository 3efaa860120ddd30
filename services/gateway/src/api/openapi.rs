//! The OpenAPI document: what the routes say of themselves, and the routes every binary has.

use utoipa::OpenApi;

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
        (name = "status", description = "How everything stands"),
        (name = "admin", description = "How this gateway is"),
    )
)]
pub(super) struct Document;
