//! The contract every kind of target keeps, against its real server.
//!
//! A new kind is one file that implements [`peer::Peer`] and one test here.

mod checks;
mod clauses;
mod deliveries;
mod failures;
mod hand_over;
mod http;
mod http_conflicts;
mod mysql;
mod neo4j;
mod numbers;
mod peer;
mod postgres;
mod redis;
mod tables;
mod tables_checked;
mod tombstones;
mod written;

use anyhow::Result;

#[tokio::test]
async fn http_keeps_the_contract() -> Result<()> {
    clauses::hold(&mut http::Http::start(true).await?).await
}

#[tokio::test]
async fn http_without_a_guard_keeps_the_contract() -> Result<()> {
    clauses::hold(&mut http::Http::start(false).await?).await
}

#[tokio::test]
async fn redis_keeps_the_contract() -> Result<()> {
    clauses::hold(&mut redis::Redis::start().await?).await
}

#[tokio::test]
async fn mysql_keeps_the_contract() -> Result<()> {
    clauses::hold(&mut mysql::MySql::start().await?).await
}

#[tokio::test]
async fn postgres_keeps_the_contract() -> Result<()> {
    clauses::hold(&mut postgres::Postgres::start().await?).await
}

#[tokio::test]
async fn neo4j_keeps_the_contract() -> Result<()> {
    clauses::hold(&mut neo4j::Neo4j::start().await?).await
}
