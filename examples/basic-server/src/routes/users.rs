//! Reading, changing and deleting users.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};
use usersync_example_support::{
    database::{self, unavailable},
    page::Page,
    request::{Body, no_such_user},
};
use usersync_receiver::{Problem, UserId};

use super::App;
use crate::{
    accounts::{self, Account},
    validate::Check,
};

/// `GET /api/v1/users?after=ID&limit=N`, ids ascending.
pub(super) async fn list(State(app): State<App>, page: Page) -> Result<Response, Problem> {
    let after = match page.after {
        None => 0,
        Some(UserId::Number(id)) => i64::try_from(id).unwrap_or(i64::MAX),
        Some(UserId::Text(_)) => {
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "after: must be an integer",
            ));
        }
    };
    let accounts = accounts::list(&app.pool, after, page.limit).await?;
    Ok(page.answer(accounts, |account| account.id.unsigned_abs().into()))
}

/// `GET /api/v1/users/{id}`
pub(super) async fn show(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Account>, Problem> {
    let mut connection = app.pool.acquire().await.map_err(unavailable)?;
    let account = accounts::get(&mut connection, parse(&id)?).await?;
    account.map(Json).ok_or_else(no_such_user)
}

/// The body of a change: what is absent stays; a phone of null is removed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Changes {
    username: Option<String>,
    email: Option<String>,
    password: Option<SecretString>,
    #[serde(default, deserialize_with = "present")]
    phone: Option<Option<String>>,
    status: Option<String>,
}

/// Tells null (`Some(None)`) from absent (`None`).
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// `PUT /api/v1/users/{id}`: 200 with the user as it is now.
pub(super) async fn change(
    State(app): State<App>,
    Path(id): Path<String>,
    Body(body): Body<Changes>,
) -> Result<Json<Account>, Problem> {
    let id = parse(&id)?;
    body.check()?;
    let hash = match body.password {
        Some(password) => Some(app.passwords.hash(password).await?),
        None => None,
    };

    let mut change = database::write(&app.pool).await?;
    let before = accounts::get(&mut change, id)
        .await?
        .ok_or_else(no_such_user)?;
    let after = Account {
        id,
        username: body.username.unwrap_or_else(|| before.username.clone()),
        email: body.email.unwrap_or_else(|| before.email.clone()),
        password_hash: hash.unwrap_or_else(|| before.password_hash.clone()),
        phone: body.phone.unwrap_or_else(|| before.phone.clone()),
        status: body.status.unwrap_or_else(|| before.status.clone()),
    };
    accounts::update(&mut change, &after).await?;
    change.commit().await.map_err(unavailable)?;
    tracing::info!(user.id = id, "changed a user");
    Ok(Json(after))
}

impl Changes {
    fn check(&self) -> Result<(), Problem> {
        let mut check = Check::default();
        if let Some(username) = &self.username {
            check.username(username);
        }
        if let Some(email) = &self.email {
            check.email(email);
        }
        if let Some(password) = &self.password {
            check.password(password);
        }
        if let Some(phone) = &self.phone {
            check.phone(phone.as_deref());
        }
        if let Some(status) = &self.status {
            check.status(status);
        }
        check.finish()
    }
}

/// `DELETE /api/v1/users/{id}`: 204.
pub(super) async fn delete(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id = parse(&id)?;
    let mut change = database::write(&app.pool).await?;
    if !accounts::delete(&mut change, id).await? {
        return Err(no_such_user());
    }
    change.commit().await.map_err(unavailable)?;
    tracing::info!(user.id = id, "deleted a user");
    Ok(StatusCode::NO_CONTENT)
}

fn parse(id: &str) -> Result<i64, Problem> {
    id.parse().map_err(|_| no_such_user())
}
