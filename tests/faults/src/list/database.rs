//! Redis, PostgreSQL, MariaDB and the Bolt server: killed, frozen, emptied, read-only, locked, without a column.

use std::time::Duration;

use anyhow::Result;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use usersync_stack::Signal;

use crate::{
    fault::{Fault, a_while},
    proxy::Line,
    world::World,
};

pub(crate) const FAULTS: &[Fault] = &[
    Fault::new(40, "postgres-killed", |world, dice| {
        Box::pin(postgres(world, dice))
    }),
    Fault::new(41, "mariadb-killed", |world, dice| {
        Box::pin(mariadb(world, dice))
    }),
    Fault::new(42, "redis-killed", |world, dice| {
        Box::pin(redis(world, dice))
    }),
    Fault::new(43, "redis-flushed", |world, dice| {
        Box::pin(flushed(world, dice))
    })
    .told(&["refill"]),
    Fault::new(44, "bolt-killed", |world, dice| Box::pin(bolt(world, dice))),
    Fault::new(45, "bolt-frozen", |world, dice| {
        Box::pin(bolt_frozen(world, dice))
    }),
    Fault::new(46, "postgres-read-only", |world, dice| {
        Box::pin(read_only(world, dice))
    })
    .told(&["breaker"]),
    Fault::new(47, "rows-locked", |world, dice| {
        Box::pin(locked(world, dice))
    }),
    Fault::new(48, "column-dropped", |world, dice| {
        Box::pin(dropped(world, dice))
    })
    .told(&["breaker"]),
    Fault::new(49, "connections-used-up", |world, dice| {
        Box::pin(used_up(world, dice))
    }),
    Fault::new(50, "postgres-line-black-hole", |world, dice| {
        Box::pin(black_hole(world, dice))
    }),
    Fault::new(51, "postgres-line-cut", |world, dice| {
        Box::pin(cut(world, dice))
    }),
    Fault::new(52, "postgres-line-slow", |world, dice| {
        Box::pin(slow(world, dice))
    }),
];

async fn postgres(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    world.postgres.kill9().await;
    a_while(dice).await;
    world.postgres.restart().await
}

async fn mariadb(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    world.mariadb.kill9().await;
    a_while(dice).await;
    world.mariadb.restart().await
}

async fn redis(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    world.stack.redis.kill9().await;
    a_while(dice).await;
    world.stack.redis.restart().await
}

async fn flushed(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    a_while(dice).await;
    let client = redis::Client::open(world.stack.redis.url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let () = redis::cmd("FLUSHALL").query_async(&mut connection).await?;
    Ok(())
}

async fn bolt(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    world.bolt.kill9().await;
    a_while(dice).await;
    world.bolt.restart().await
}

async fn bolt_frozen(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    world.bolt.process().signal(Signal::SIGSTOP)?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.bolt.process().signal(Signal::SIGCONT)
}

async fn read_only(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    let client = world.postgres_client().await?;
    let set = |on: &'static str| {
        let statement = format!("ALTER SYSTEM SET default_transaction_read_only = {on}");
        let client = client.clone();
        async move {
            // A session that is read-only may still set this.
            sqlx::raw_sql("SET default_transaction_read_only = off")
                .execute(&client)
                .await?;
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&client)
                .await?;
            sqlx::raw_sql("SELECT pg_reload_conf()")
                .execute(&client)
                .await?;
            anyhow::Ok(())
        }
    };
    set("on").await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    set("off").await
}

/// Somebody else holds the table for longer than a call may take.
async fn locked(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    let mut holder = PgConnection::connect(&world.postgres.url_with_password()).await?;
    let mut lock = holder.begin().await?;
    sqlx::raw_sql("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    lock.rollback().await?;
    Ok(())
}

async fn dropped(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    let client = world.mariadb_client().await?;
    sqlx::raw_sql("ALTER TABLE users RENAME COLUMN email TO former_email")
        .execute(&client)
        .await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    sqlx::raw_sql("ALTER TABLE users RENAME COLUMN former_email TO email")
        .execute(&client)
        .await?;
    Ok(())
}

async fn used_up(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    let url = world.postgres.url_with_password();
    let mut held = Vec::new();
    for _ in 0..200 {
        match PgConnection::connect(&url).await {
            Ok(connection) => held.push(connection),
            Err(_) => break,
        }
    }
    // Those that are there break, and find no room.
    world.postgres_line.reset();
    a_while(dice).await;
    a_while(dice).await;
    for connection in held {
        connection.close().await?;
    }
    Ok(())
}

async fn line(world: &mut World, line: Line, dice: &mut fastrand::Rng) -> Result<()> {
    world.postgres_line.is(line);
    a_while(dice).await;
    a_while(dice).await;
    world.postgres_line.is(Line::Good);
    world.postgres_line.reset();
    Ok(())
}

async fn black_hole(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    line(world, Line::BlackHole, dice).await
}

async fn cut(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    line(world, Line::Cut(2_000), dice).await
}

async fn slow(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    line(world, Line::Slow(Duration::from_millis(100)), dice).await
}
