//! The HTTP API.

mod login;
mod users;

use axum::{
    Router,
    routing::{get, post},
};
use sqlx::SqlitePool;
use usersync_example_support::{password::Passwords, replica::Replica, unpublished::Unpublished};

/// What the handlers work with.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) pool: SqlitePool,
    pub(crate) replica: Replica,
    pub(crate) passwords: Passwords,
    pub(crate) unpublished: Unpublished,
}

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/api/v1/auth/login", post(login::login))
        .route("/api/v1/users", get(users::list))
        .route("/api/v1/users/{id}", get(users::show))
        .with_state(app)
}
