//! Registration and log-in.

use axum::{Json, extract::State, http::StatusCode};
use secrecy::SecretString;
use serde::Deserialize;
use usersync_example_support::{
    database::{self, unavailable},
    request::Body,
};
use usersync_receiver::Problem;

use super::App;
use crate::{
    accounts::{self, Account},
    validate::Check,
};

/// The body of a registration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registration {
    username: String,
    email: String,
    password: SecretString,
    phone: Option<String>,
}

/// `POST /api/v1/auth/register`: 201 with the user, 400, or 409 when name or address are taken.
pub(super) async fn register(
    State(app): State<App>,
    Body(body): Body<Registration>,
) -> Result<(StatusCode, Json<Account>), Problem> {
    let mut check = Check::default();
    check.username(&body.username);
    check.email(&body.email);
    check.password(&body.password);
    check.phone(body.phone.as_deref());
    check.finish()?;

    let account = Account {
        id: 0,
        username: body.username,
        email: body.email,
        password_hash: app.passwords.hash(body.password).await?,
        phone: body.phone,
        status: "active".to_owned(),
    };
    let mut change = database::write(&app.pool).await?;
    let account = accounts::insert(&mut change, &account).await?;
    change.commit().await.map_err(unavailable)?;
    tracing::info!(user.id = account.id, "registered a user");
    Ok((StatusCode::CREATED, Json(account)))
}

/// The body of a log-in.
#[derive(Debug, Deserialize)]
pub(super) struct Login {
    username: String,
    password: SecretString,
}

/// `POST /api/v1/auth/login`: 200 with the user, or 401.
pub(super) async fn login(
    State(app): State<App>,
    Body(body): Body<Login>,
) -> Result<Json<Account>, Problem> {
    let account = accounts::with_name(&app.pool, &body.username).await?;
    let hash = account
        .as_ref()
        .map(|account| account.password_hash.clone());
    let right = app.passwords.verify(body.password, hash).await?;
    let account = account.filter(|_| right).map(Json);
    account.ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "wrong user name or password"))
}
