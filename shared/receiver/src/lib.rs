//! What a Rust service mounts to become a target of usersync.
//!
//! The kit checks the signature, parses the delivery within bounds and hands it to the service's
//! own [`UserStore`]; the store decides by version whether it is newer than what it holds. What
//! comes in here is never published again: the kit has no connection to NATS.
//!
//! ```no_run
//! use usersync_receiver::{Applied, Delivery, Options, Senders, StoreError, UserStore};
//!
//! struct Users;
//!
//! impl UserStore for Users {
//!     async fn apply(&self, delivery: Delivery) -> Result<Applied, StoreError> {
//!         // INSERT … ON CONFLICT (user_id) DO UPDATE … WHERE excluded.version >= users.version
//!         # let _ = delivery;
//!         Ok(Applied::Stored)
//!     }
//! }
//!
//! # fn app() -> Result<axum::Router, Box<dyn std::error::Error>> {
//! let secret = std::env::var("USERSYNC_SECRET")?;
//! let senders = Senders::Signed(vec![secret.into()]);
//! let sync = usersync_receiver::router(Users, Options::new(senders))?;
//! Ok(axum::Router::new().nest("/api/v1/users/sync", sync))
//! # }
//! ```

mod delivery;
mod digests;
mod problem;
mod router;
mod signature;
mod store;

pub use delivery::Delivery;
pub use problem::{Fault, Problem};
pub use router::{GUARD_BY_VERSION, GUARD_HEADER, InvalidSenders, Options, Senders, router};
pub use store::{Applied, HeldUser, StoreError, UserStore};
pub use usersync_core::{
    event::{Change, EventType},
    signature::InvalidSecret,
    user_id::UserId,
};
