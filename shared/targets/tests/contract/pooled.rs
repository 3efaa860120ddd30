//! PostgreSQL behind a pooler that lends connections for one transaction, shared with others.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use usersync_stack::PgBouncerServer;
use usersync_targets::{Delivery, Standing, Target};

use crate::{
    checks::differing,
    clauses::is_delivered,
    deliveries::{data, deleted, user},
    peer::{Peer as _, connect},
    postgres::Postgres,
};

fn users(range: std::ops::Range<u32>, version: u64) -> Vec<Delivery> {
    range
        .map(|id| user(&id.to_string(), version, "ann"))
        .collect()
}

async fn deliver(target: &dyn Target, batch: &[Delivery]) -> Result<()> {
    for outcome in target.deliver(batch).await {
        is_delivered(&outcome)?;
    }
    Ok(())
}

/// Several targets and a client that isn't ours, through two connections to the server: none hits another's statement.
async fn clients_share_two_connections(peer: &Postgres) -> Result<()> {
    const ROUNDS: u64 = 12;
    for place in ["one", "two"] {
        connect(peer, place, json!({}))?.init().await?;
    }
    let clients = (0..6).map(async |client: u32| {
        let place = ["one", "two"][client as usize % 2];
        let target = connect(peer, place, json!({"timeout": "20s"}))?;
        target.probe().await?;
        let mine = client * 100..client * 100 + 40;
        for version in 1..=ROUNDS {
            let mut batch = users(mine.clone(), version);
            batch[0] = deleted(&mine.start.to_string(), version);
            deliver(&*target, &batch).await?;
            let standings = target.compare(&batch).await.context("it compares")?;
            ensure!(
                standings.iter().all(|standing| *standing == Standing::Same),
                "{standings:?}"
            );
        }
        anyhow::Ok(())
    });
    let strangers = AtomicU32::new(0);
    let stranger = async {
        let mut client = peer.stranger().await?;
        for _ in 0..100 {
            // Simple, as pgbench does it.
            client.execute("SELECT count(*) FROM one").await?;
            strangers.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    };
    let (clients, stranger) = tokio::join!(try_join_all(clients), stranger);
    clients?;
    stranger?;
    ensure!(strangers.load(Ordering::Relaxed) == 100);
    for (place, clients) in [("one", [0, 2, 4]), ("two", [1, 3, 5])] {
        let target = connect(peer, place, json!({}))?;
        let all: Vec<Delivery> = clients
            .into_iter()
            .flat_map(|client| users(client * 100 + 1..client * 100 + 40, ROUNDS))
            .collect();
        let found = differing(&*target, &all).await?;
        ensure!(found.is_empty(), "{place}: {found:?}");
    }
    Ok(())
}

/// Nothing of ours stays with the server's connections, which are other clients' next.
async fn nothing_is_left_behind(peer: &Postgres) -> Result<()> {
    let mut client = peer.stranger().await?;
    for _ in 0..20 {
        let left = "SELECT current_setting('statement_timeout'), current_setting('jit'), \
                    COALESCE(current_setting('usersync.apply', true), ''), \
                    (SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'sqlx%')::text";
        let row = client.fetch_one(left).await?;
        let left: Vec<String> = (0..4).map(|at| row.try_get(at)).collect::<Result<_, _>>()?;
        ensure!(left == ["0", "on", "", "0"], "{left:?}");
    }
    Ok(())
}

#[tokio::test]
async fn several_clients_share_two_connections() -> Result<()> {
    if PgBouncerServer::is_left_out()? {
        return Ok(());
    }
    // With a pooler that knows nothing of prepared statements; one that does; one that overlooks settings it doesn't know.
    for more in [
        ["", ""],
        ["max_prepared_statements = 100", ""],
        ["ignore_startup_parameters = extra_float_digits,options", ""],
    ] {
        let peer = Postgres::behind_pgbouncer(&more).await?;
        let shared = clients_share_two_connections(&peer).await;
        shared.with_context(|| format!("{more:?}"))?;
        nothing_is_left_behind(&peer)
            .await
            .with_context(|| format!("{more:?}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn a_table_with_numbers_and_an_outbox_is_read_as_without_a_pooler() -> Result<()> {
    if PgBouncerServer::is_left_out()? {
        return Ok(());
    }
    let peer = Postgres::behind_pgbouncer(&[]).await?;
    peer.run(
        "ALTER DATABASE postgres SET extra_float_digits = 0;\
         CREATE TABLE wide (id uuid PRIMARY KEY, n double precision, seen timestamptz, \
         sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0);\
         CREATE TABLE user_outbox (id bigserial PRIMARY KEY, user_id text, state int NOT NULL DEFAULT 0);\
         CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF current_setting('usersync.apply', true) IS DISTINCT FROM 'on' THEN INSERT INTO user_outbox (user_id) VALUES (NEW.id); END IF; \
         RETURN NEW; END $$;\
         CREATE TRIGGER user_outbox AFTER INSERT OR UPDATE ON wide FOR EACH ROW EXECUTE FUNCTION noted()",
    )
    .await?;
    let columns = json!({"n": "data.n", "seen": "data.seen"});
    let target = connect(
        &peer,
        "wide",
        json!({"table": {"name": "wide", "columns": columns}}),
    )?;
    let one = |last: u32, n: f64| {
        let id = format!("0198c0de-0000-7000-8000-{last:012x}");
        data(
            user(&id, 5, "ann"),
            json!({"n": n, "seen": "2026-03-29T02:30:00Z"}),
        )
    };
    let all = [one(1, 0.1 + 0.2), one(2, 1e22 / 3.0), one(3, -5.0e-324)];
    deliver(&*target, &all).await?;
    let standings = target.compare(&all).await.context("it compares")?;
    ensure!(
        standings.iter().all(|standing| *standing == Standing::Same),
        "{standings:?}"
    );
    let found = differing(&*target, &all).await?;
    ensure!(found.is_empty(), "{found:?}");
    let mut client = PgConnection::connect(&peer.server.url_with_password()).await?;
    let noted = client.fetch_one("SELECT count(*) FROM user_outbox").await?;
    ensure!(
        noted.try_get::<i64, _>(0)? == 0,
        "what was applied is noted"
    );
    Ok(())
}

#[tokio::test]
async fn statements_keep_no_names_where_the_url_says_so() -> Result<()> {
    let peer = Postgres::start().await?;
    connect(&peer, "plain", json!({}))?.init().await?;
    let mut entry: Value = peer.entry("plain", true);
    entry["url"] = json!(format!("{}?statement-cache-capacity=0", peer.server.url()));
    let target = crate::peer::open(entry, json!({}))?;
    deliver(&*target, &users(0..50, 5)).await?;
    ensure!(differing(&*target, &users(0..50, 5)).await?.is_empty());
    Ok(())
}
