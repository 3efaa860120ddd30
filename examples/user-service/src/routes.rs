//! The HTTP API: what the copy holds, and local changes to it.

use axum::{
    Json, Router,
    extract::{Path, State},
    response::Response,
    routing::{get, put},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sqlx::SqlitePool;
use usersync_example_support::{
    database::{self, unavailable},
    page::Page,
    replica::{Replica, StoredUser},
    request::{self, Body, no_such_user},
    unpublished::Unpublished,
};
use usersync_publisher::{Change, Event, UserChanges, UserId};
use usersync_receiver::{Fault, Problem};

/// What the handlers work with.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) pool: SqlitePool,
    pub(crate) replica: Replica,
    pub(crate) unpublished: Unpublished,
}

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/api/v1/users", get(list))
        .route("/api/v1/users/{id}", get(show))
        .route("/api/v1/users/{id}/profile", put(change_profile))
        .route("/api/v1/users/{id}/status", put(change_status))
        .with_state(app)
}

/// `GET /api/v1/users?after=ID&limit=N`, in the order of the ids as text.
async fn list(State(app): State<App>, page: Page) -> Result<Response, Problem> {
    let users = app.replica.list(&page).await.map_err(unavailable)?;
    Ok(page.answer(users, |user| user.user_id.clone()))
}

/// `GET /api/v1/users/{id}`
async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<StoredUser>, Problem> {
    let user = app
        .replica
        .get(&request::user_id(&id)?)
        .await
        .map_err(unavailable)?;
    user.map(Json).ok_or_else(no_such_user)
}

/// `PUT /api/v1/users/{id}/profile`: merges an object into the user's data (RFC 7396).
async fn change_profile(
    State(app): State<App>,
    Path(id): Path<String>,
    Body(profile): Body<Map<String, Value>>,
) -> Result<Json<StoredUser>, Problem> {
    let user_id = request::user_id(&id)?;
    let profile = Value::Object(profile);
    let changes = UserChanges {
        data: Change::Set(profile.clone()),
        ..UserChanges::default()
    };
    let event = app.unpublished.publisher().updated(&user_id, changes);
    app.change(&user_id, &profile, event).await
}

/// The body of a change of status.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewStatus {
    status: String,
}

/// `PUT /api/v1/users/{id}/status`
async fn change_status(
    State(app): State<App>,
    Path(id): Path<String>,
    Body(NewStatus { status }): Body<NewStatus>,
) -> Result<Json<StoredUser>, Problem> {
    if !(1..=32).contains(&status.len()) {
        return Err(Problem::invalid(vec![Fault::new(
            "/status",
            "must have 1 to 32 bytes",
        )]));
    }
    let user_id = request::user_id(&id)?;
    let event = app
        .unpublished
        .publisher()
        .status_changed(&user_id, &status);
    app.change(&user_id, &json!({"status": status}), event)
        .await
}

impl App {
    /// Merges `patch` into the user's data here, and announces it with `event`.
    async fn change(
        &self,
        user_id: &UserId,
        patch: &Value,
        event: Event,
    ) -> Result<Json<StoredUser>, Problem> {
        let mut change = database::write(&self.pool).await?;
        let user = Replica::merge_data(&mut change, user_id, patch)
            .await
            .map_err(unavailable)?;
        let user = user.ok_or_else(no_such_user)?;
        self.unpublished.add(&mut change, &event).await?;
        change.commit().await.map_err(unavailable)?;
        self.unpublished.wake();
        tracing::info!(user.id = %user_id, event.id, "changed a user");
        Ok(Json(user))
    }
}
