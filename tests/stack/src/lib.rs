//! Starts the real servers and our own binaries, on free ports and in a directory of their own, and
//! leaves nothing behind: what the end-to-end tests, the bench, `cargo xtask demo` and `up` stand on.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use usersync_stack::{Stack, eventually, http};
//!
//! let stack = Stack::builder().workers("unified-auth", 2).start().await?;
//! let user = format!("{}/v1/users/42", stack.gateway().url());
//! eventually(Duration::from_secs(5), async || {
//!     let status = http::client().get(&user).send().await?.status();
//!     anyhow::ensure!(status == 200, "{user} answers {status}");
//!     Ok(())
//! })
//! .await?;
//! # Ok(())
//! # }
//! ```

mod arcadedb;
mod builder;
mod catalogue;
mod certificates;
mod collector;
mod directory;
mod egress;
pub mod http;
mod launch;
mod mariadb;
mod metrics;
mod mysql;
mod nats;
mod pgbouncer;
mod port;
mod postgres;
mod postgres_front;
mod process;
mod prometheus;
mod redis;
mod redis_cluster;
mod roles;
mod secret;
mod service;
mod signature;
mod smtp;
mod stack;
pub mod support;
mod switch;
mod template;
pub mod tools;
pub mod types;
mod wait;

pub use arcadedb::ArcadeDbServer;
pub use builder::{Endpoints, StackBuilder};
pub use certificates::{Authorities, Certificates};
pub use collector::{CollectedSpan, Collector};
pub use directory::Directory;
pub use egress::egress;
pub use launch::Launch;
pub use mariadb::MariaDbServer;
pub use metrics::Metrics;
pub use mysql::MySqlServer;
pub use nats::{NatsBuilder, NatsServer, Routes, subscribe};
pub use nix::sys::signal::Signal;
pub use pgbouncer::PgBouncerServer;
pub use port::{free_port, free_port_or};
pub use postgres::PostgresServer;
pub use postgres_front::PostgresFront;
pub use process::Process;
pub use prometheus::{Alertmanager, Prometheus};
pub use redis::RedisServer;
pub use redis_cluster::RedisCluster;
pub use roles::{ROLES, connect};
pub use service::Service;
pub use signature::signed_by;
pub use smtp::SmtpServer;
pub use stack::Stack;
pub use switch::Switch;
pub use tools::Profile;
pub use wait::eventually;
