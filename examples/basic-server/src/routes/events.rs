//! What is published of an account.

use serde_json::{Map, Value, json};
use usersync_publisher::{Change, User, UserChanges, UserId};

use crate::accounts::Account;

/// The id of an account as the other services know it.
pub(super) fn user_id(id: i64) -> UserId {
    id.unsigned_abs().into()
}

/// A new account, whole.
pub(super) fn user(account: &Account) -> User {
    let mut data = json!({"status": account.status, "password_hash": account.password_hash});
    if let Some(phone) = &account.phone {
        data["phone"] = json!(phone);
    }
    User {
        user_id: user_id(account.id),
        username: Some(account.username.clone()),
        email: Some(account.email.clone()),
        data: Some(data),
    }
}

/// What differs between two versions of an account.
pub(super) fn changes(before: &Account, after: &Account) -> UserChanges {
    let text = |before: &String, after: &String| {
        if before == after {
            Change::Keep
        } else {
            Change::Set(after.clone())
        }
    };
    let mut data = Map::new();
    if before.password_hash != after.password_hash {
        data.insert("password_hash".to_owned(), json!(after.password_hash));
    }
    if before.phone != after.phone {
        data.insert("phone".to_owned(), json!(after.phone));
    }
    if before.status != after.status {
        data.insert("status".to_owned(), json!(after.status));
    }
    UserChanges {
        username: text(&before.username, &after.username),
        email: text(&before.email, &after.email),
        data: if data.is_empty() {
            Change::Keep
        } else {
            Change::Set(Value::Object(data))
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ann() -> Account {
        Account {
            id: 7,
            username: "ann".to_owned(),
            email: "ann@example.com".to_owned(),
            password_hash: "h1".to_owned(),
            phone: Some("1".to_owned()),
            status: "active".to_owned(),
        }
    }

    #[test]
    fn only_what_changed_is_published() {
        assert!(changes(&ann(), &ann()).is_empty());
        let after = Account {
            email: "a@example.com".to_owned(),
            phone: None,
            ..ann()
        };
        let expected = UserChanges {
            username: Change::Keep,
            email: Change::Set("a@example.com".to_owned()),
            data: Change::Set(json!({"phone": null})),
        };
        assert_eq!(changes(&ann(), &after), expected);
    }

    #[test]
    fn a_new_user_without_a_phone_has_no_such_member() {
        let user = user(&Account {
            phone: None,
            ..ann()
        });
        assert_eq!(
            user.data,
            Some(json!({"status": "active", "password_hash": "h1"}))
        );
    }
}
