//! Deliveries as a worker would make them.

use serde_json::{Value, json};
use usersync_core::{
    event::{Change, EventType},
    fields::Members,
};
use usersync_targets::{Action, Delivery};

use crate::peer::Held;

/// A whole user.
pub(crate) fn user(id: &str, version: u64, name: &str) -> Delivery {
    Delivery {
        task_id: format!("contract:{id}:{version}"),
        user_id: id.parse().expect("a user id"),
        version,
        action: Action::Upsert,
        partial: false,
        event_type: EventType::Updated,
        timestamp: jiff::Timestamp::UNIX_EPOCH,
        source: Some("contract".to_owned()),
        members: Members {
            username: Change::Set(name.to_owned()),
            email: Change::Set(format!("{id}@example.com")),
            status: Change::Set("active".to_owned()),
            data: Change::Set(json!({"phone": "1", "status": "active"})),
        },
        trace: None,
    }
}

/// What a server holds of [`user`].
pub(crate) fn whole(id: &str, name: &str) -> Held {
    Held {
        username: Some(name.to_owned()),
        email: Some(format!("{id}@example.com")),
        status: Some("active".to_owned()),
        data: json!({"phone": "1", "status": "active"}),
    }
}

/// A deleted user.
pub(crate) fn deleted(id: &str, version: u64) -> Delivery {
    Delivery {
        action: Action::Delete,
        event_type: EventType::Deleted,
        members: Members {
            username: Change::Clear,
            email: Change::Clear,
            status: Change::Clear,
            data: Change::Clear,
        },
        ..user(id, version, "")
    }
}

/// A user to be disabled.
pub(crate) fn disabled(id: &str, version: u64) -> Delivery {
    Delivery {
        action: Action::Disable,
        partial: true,
        members: Members {
            status: Change::Set("disabled".to_owned()),
            data: Change::Set(json!({"status": "disabled"})),
            ..Members::default()
        },
        ..user(id, version, "")
    }
}

/// A user of whom only the name is known.
pub(crate) fn partial(id: &str, version: u64, name: &str) -> Delivery {
    Delivery {
        partial: true,
        members: Members {
            username: Change::Set(name.to_owned()),
            ..Members::default()
        },
        ..user(id, version, name)
    }
}

/// The same with another email.
pub(crate) fn email(mut delivery: Delivery, email: &str) -> Delivery {
    delivery.members.email = Change::Set(email.to_owned());
    delivery
}

/// The same with other data.
pub(crate) fn data(mut delivery: Delivery, data: Value) -> Delivery {
    delivery.members.data = Change::Set(data);
    delivery
}
