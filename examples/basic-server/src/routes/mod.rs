//! The HTTP API.

mod auth;
mod users;

use axum::{
    Router,
    routing::{get, post},
};
use sqlx::SqlitePool;
use usersync_example_support::password::Passwords;

/// What the handlers work with.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) pool: SqlitePool,
    pub(crate) passwords: Passwords,
}

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/api/v1/auth/register", post(auth::register))
        .route("/api/v1/auth/login", post(auth::login))
        .route("/api/v1/users", get(users::list))
        .route(
            "/api/v1/users/{id}",
            get(users::show).put(users::change).delete(users::delete),
        )
        .with_state(app)
}
