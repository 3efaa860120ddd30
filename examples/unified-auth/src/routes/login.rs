//! Log-in with the password hash that came with the sync.

use axum::{Json, extract::State, http::StatusCode};
use secrecy::SecretString;
use serde::Deserialize;
use usersync_example_support::{database::unavailable, request::Body};
use usersync_receiver::Problem;

use super::{
    App,
    users::{View, hash_of},
};
use crate::failures::{self, LOCKED};

/// The body of a log-in.
#[derive(Debug, Deserialize)]
pub(super) struct Login {
    username: String,
    password: SecretString,
}

/// `POST /api/v1/auth/login`: 200 with the user, 401, or 423 when the account is locked.
pub(super) async fn login(
    State(app): State<App>,
    Body(body): Body<Login>,
) -> Result<Json<View>, Problem> {
    let users = app
        .replica
        .with_name(&body.username)
        .await
        .map_err(unavailable)?;
    if users.is_empty() {
        app.passwords.verify(body.password, None).await?;
        return Err(wrong());
    }
    let (locked, open): (Vec<_>, Vec<_>) = users
        .into_iter()
        .partition(|user| user.status.as_deref() == Some(LOCKED));
    if open.is_empty() && !locked.is_empty() {
        return Err(Problem::new(StatusCode::LOCKED, "the account is locked"));
    }
    // More than one only while two users swap their names: the password tells who it is.
    for user in &open {
        if app
            .passwords
            .verify(body.password.clone(), hash_of(user))
            .await?
        {
            failures::forget(&app.pool, &user.user_id).await?;
            return Ok(Json(View::from(user.clone())));
        }
    }
    for user in &open {
        failures::count(&app.pool, &app.unpublished, user).await?;
    }
    Err(wrong())
}

fn wrong() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "wrong user name or password")
}
