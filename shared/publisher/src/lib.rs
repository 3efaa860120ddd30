//! What a Rust service uses to publish user events.
//!
//! Each event gets an id, a time and the service's name, goes to the subject of its type, and
//! counts as published only once JetStream has stored it:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use usersync_publisher::{Change, Publisher, User, UserChanges};
//!
//! let publisher = Publisher::connect("nats://127.0.0.1:4222", "basic-server").await?;
//! let user = User { user_id: 42.into(), username: Some("ann".into()), email: None, data: None };
//! publisher.publish_created(&user).await?;
//!
//! let changes = UserChanges { email: Change::Set("ann@example.com".into()), ..Default::default() };
//! let receipt = publisher.publish_updated(&user.user_id, changes).await?;
//! assert!(!receipt.duplicate);
//! # Ok(())
//! # }
//! ```
//!
//! A service that must not lose an event keeps it beside its own data: take the event from
//! [`Publisher::created`] and its siblings, store it in the transaction of the change, and hand
//! it to [`Publisher::publish`] until that succeeds. The event keeps its id, so repeating is safe.

mod error;
mod publisher;
mod retry;
mod user;

pub use error::{ConnectError, PublishError};
pub use publisher::{Publisher, Receipt};
pub use retry::Retry;
pub use user::{User, UserChanges};
pub use usersync_core::{
    event::{Change, Event, EventType},
    trace::TraceContext,
    user_id::UserId,
};
