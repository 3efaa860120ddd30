//! The main database, as usersync reads it: which table holds the users, the outbox beside it, and
//! the users themselves.
//!
//! `config` is what the settings say, `layout` how that fits the table that is there. `Database`
//! is one connection; `mysql`, `postgres` and `sqlite` speak to each server, behind the one trait
//! in `session`. `outbox` installs, `database` reads. Knows nothing of NATS.

mod column;
mod config;
mod database;
mod document;
mod error;
mod layout;
mod mysql;
mod outbox;
mod postgres;
mod session;
mod sqlite;
mod value;

pub use column::{Kind, Live, LiveColumn};
pub use config::{OutboxConfig, Server, SourceConfig, SourceName, read};
pub use database::{Database, RowsUnderWay};
pub use error::SourceError;
pub use layout::{Column, Layout, TableName};
pub use outbox::{InstallPlan, Standing, Watched, shipped};
pub use session::{About, Failure, Lag, OutboxRow, Payload, RowChange, Stamp, UserRow};
