//! The contract every kind of target keeps, against its real servers.
//!
//! A new kind is one file that implements [`peer::Peer`] and one line here; so is another server of a kind.

mod answers;
mod checks;
mod clauses;
mod clusters;
mod column_types;
mod deliveries;
mod failures;
mod hand_over;
mod http;
mod http_conflicts;
mod mysql;
mod neo4j;
mod numbers;
mod peer;
mod pooled;
mod postgres;
mod redis;
mod tables;
mod tables_checked;
mod tombstones;
mod written;

use anyhow::Result;
use usersync_stack::{MySqlServer, PgBouncerServer, PostgresServer, RedisServer, support};

/// One suite per line: its name, the server and its role as docs/SUPPORT.md has them, whether this machine goes without,
/// and the server itself.
macro_rules! suites {
    ($($suite:ident: $server:literal, $role:literal, $left_out:expr, $peer:expr;)+) => {
        $(
            #[tokio::test]
            async fn $suite() -> Result<()> {
                if $left_out {
                    return Ok(());
                }
                clauses::hold(&mut $peer).await
            }
        )+

        #[test]
        fn the_page_of_supported_servers_names_what_is_run_here() -> Result<()> {
            support::page_names("shared/targets", &[$(($server, $role)),+])
        }
    };
}

suites! {
    http_keeps_the_contract:
        "HTTP with the receiver kit", "target", false, http::Http::start(true).await?;
    http_without_a_guard_keeps_the_contract:
        "HTTP without a guard", "target", false, http::Http::start(false).await?;
    redis_keeps_the_contract:
        "Redis", "target", false, redis::Redis::start().await?;
    redis_cluster_keeps_the_contract:
        "Redis", "target, cluster of three masters", false, redis::Redis::cluster().await?;
    valkey_keeps_the_contract:
        "Valkey", "target", RedisServer::valkey_is_left_out()?, redis::Redis::valkey().await?;
    valkey_cluster_keeps_the_contract:
        "Valkey", "target, cluster of three masters", RedisServer::valkey_is_left_out()?, redis::Redis::valkey_cluster().await?;
    mariadb_keeps_the_contract:
        "MariaDB", "target", false, mysql::MySql::start().await?;
    mysql_keeps_the_contract:
        "MySQL", "target", MySqlServer::is_left_out()?, mysql::MySql::itself().await?;
    postgres_keeps_the_contract:
        "PostgreSQL 16", "target", false, postgres::Postgres::start().await?;
    newest_postgres_keeps_the_contract:
        "PostgreSQL 18", "target", PostgresServer::newest_is_left_out()?, postgres::Postgres::newest().await?;
    postgres_behind_pgbouncer_keeps_the_contract:
        "PostgreSQL 16", "target, behind PgBouncer (transaction)", PgBouncerServer::is_left_out()?,
        postgres::Postgres::behind_pgbouncer(&[]).await?;
    neo4j_keeps_the_contract:
        "ArcadeDB, by Bolt", "target", false, neo4j::Neo4j::start().await?;
}
