//! What the copy holds, without the password hashes.

use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use serde::Serialize;
use usersync_example_support::{
    database::unavailable,
    page::Page,
    replica::StoredUser,
    request::{self, no_such_user},
};
use usersync_receiver::Problem;

use super::App;

const PASSWORD_HASH: &str = "password_hash";

/// A user as it is shown.
#[derive(Clone, Debug, Serialize)]
pub(super) struct View {
    #[serde(flatten)]
    user: StoredUser,
    has_password: bool,
}

impl From<StoredUser> for View {
    fn from(mut user: StoredUser) -> Self {
        let has_password = hash_of(&user).is_some();
        if let Some(data) = user.data.as_object_mut() {
            data.remove(PASSWORD_HASH);
        }
        Self { user, has_password }
    }
}

/// The hash to verify passwords with, where the sync brought one.
pub(super) fn hash_of(user: &StoredUser) -> Option<String> {
    user.data.get(PASSWORD_HASH)?.as_str().map(str::to_owned)
}

/// `GET /api/v1/users?after=ID&limit=N`, in the order of the ids as text.
pub(super) async fn list(State(app): State<App>, page: Page) -> Result<Response, Problem> {
    let users = app.replica.list(&page).await.map_err(unavailable)?;
    let views = users.into_iter().map(View::from).collect();
    Ok(page.answer(views, |view: &View| view.user.user_id.clone()))
}

/// `GET /api/v1/users/{id}`
pub(super) async fn show(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<View>, Problem> {
    let user = app
        .replica
        .get(&request::user_id(&id)?)
        .await
        .map_err(unavailable)?;
    user.map(View::from).map(Json).ok_or_else(no_such_user)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_hash_is_not_shown() {
        let user = StoredUser {
            user_id: 42.into(),
            username: Some("ann".to_owned()),
            email: None,
            status: None,
            data: json!({"password_hash": "$argon2id$…", "phone": "1"}),
            version: 7,
        };
        let shown = json!(View::from(user));
        assert_eq!(shown["data"], json!({"phone": "1"}));
        assert_eq!(shown["has_password"], json!(true));
        assert!(!shown.to_string().contains("argon2"));
    }
}
