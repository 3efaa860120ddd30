//! Numbers arrive as they were: the same double, the same integer.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_targets::{Delivery, Outcome, Standing, Target};

use crate::{
    checks::differing,
    clauses::is_delivered,
    deliveries::{data, user},
    mysql::MySql,
    peer::{Peer, connect},
    postgres::Postgres,
};

const INTEGERS: [i128; 9] = [
    0,
    -1,
    (1 << 53) - 1,
    1 << 53,
    (1 << 53) + 1,
    -(1 << 53) - 1,
    i64::MIN as i128,
    i64::MAX as i128,
    u64::MAX as i128,
];

/// Doubles that are written in special ways, and some of all.
fn doubles(count: usize) -> Vec<f64> {
    let mut random = fastrand::Rng::with_seed(42);
    let special = [
        0.1,
        -0.0,
        1e15,
        1e16,
        1e17,
        1e21,
        1e22,
        1e23,
        1e300,
        5e-324,
        2.2250738585072014e-308,
        f64::MAX,
        f64::MIN,
        9_007_199_254_740_994.0,
        18_446_744_073_709_551_616.0,
        1.0 / 3.0,
    ];
    let mut all = special.to_vec();
    while all.len() < special.len() + count {
        let any = f64::from_bits(random.u64(..));
        // And those that people have.
        let usual = (random.f64() - 0.5) * 10_f64.powi(random.i32(-3..12));
        all.extend([any, usual].into_iter().filter(|double| double.is_finite()));
    }
    all
}

fn integer(integer: i128) -> Value {
    match u64::try_from(integer) {
        Ok(unsigned) => json!(unsigned),
        Err(_) => json!(integer as i64),
    }
}

/// Whether `held` is the number that was told. Servers may write a double as an integer; many have one zero only.
fn is(told: &Value, held: &Value) -> bool {
    match (told, held) {
        (Value::Number(told), Value::Number(held)) if told.is_f64() => {
            let (told, held) = (told.as_f64(), held.as_f64());
            let zero = told == Some(0.0) && held == Some(0.0);
            zero || told.map(f64::to_bits) == held.map(f64::to_bits)
        }
        (Value::Array(told), Value::Array(held)) => {
            told.len() == held.len() && told.iter().zip(held).all(|(told, held)| is(told, held))
        }
        (Value::Object(told), Value::Object(held)) => {
            told.len() == held.len()
                && told
                    .iter()
                    .all(|(name, told)| held.get(name).is_some_and(|held| is(told, held)))
        }
        (told, held) => told == held,
    }
}

pub(crate) async fn numbers_are_kept(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    let doubles = doubles(300);
    let told = json!({
        "integers": INTEGERS.map(integer),
        "doubles": doubles,
        "nested": [{"x": {"y": [[0.1, -1.5e-300, u64::MAX]]}}],
    });
    let mut batch = vec![data(user("all", 5, "ann"), told)];
    for (number, double) in doubles.iter().take(40).enumerate() {
        batch.push(data(
            user(&format!("d{number}"), 5, "ann"),
            json!({"n": double}),
        ));
    }
    for (number, value) in INTEGERS.map(integer).into_iter().enumerate() {
        batch.push(data(
            user(&format!("i{number}"), 5, "ann"),
            json!({"n": value}),
        ));
    }
    deliver(&*target, &batch).await?;
    for delivery in &batch {
        let id = delivery.user_id.to_string();
        let held = peer.held(place, &id).await?.context("it isn't there")?;
        let usersync_core::event::Change::Set(told) = &delivery.members.data else {
            continue;
        };
        ensure!(is(told, &held.data), "{id}: {told} is {}", held.data);
    }
    let found = differing(&*target, &batch).await?;
    ensure!(found.is_empty(), "{found:?}");
    if let Some(standings) = target.compare(&batch).await {
        let same = standings.iter().all(|standing| *standing == Standing::Same);
        ensure!(same, "{standings:?}");
    }
    Ok(())
}

async fn deliver(target: &dyn Target, batch: &[Delivery]) -> Result<()> {
    for part in batch.chunks(target.limits().batch) {
        for (delivery, outcome) in part.iter().zip(target.deliver(part).await) {
            is_delivered(&outcome).with_context(|| format!("user {}", delivery.user_id))?;
        }
    }
    Ok(())
}

/// As sources tell them of PostgreSQL.
#[tokio::test]
async fn what_is_no_number_is_kept_by_postgres_and_fails_alone_elsewhere() -> Result<()> {
    let table = json!({"name": "odd", "columns": {"d": "data.d", "n": "data.n", "b": "data.b"}});
    let batch: Vec<_> = ["NaN", "Infinity", "-Infinity", "1.5"]
        .iter()
        .enumerate()
        .map(|(place, odd)| {
            let told = json!({"d": odd, "n": odd, "b": "101"});
            data(user(&place.to_string(), 5, "ann"), told)
        })
        .collect();
    for peer in Postgres::all().await? {
        peer.run(&format!(
            "CREATE TABLE odd (id bigint PRIMARY KEY, d float8, n numeric, b bit(3), {SYNC})"
        ))
        .await?;
        let target = connect(&peer, "odd", json!({"verify": true, "table": table}))?;
        deliver(&*target, &batch).await?;
        let found = differing(&*target, &batch).await?;
        ensure!(found.is_empty(), "{found:?}");
        let rows = sqlx::query_scalar("SELECT concat_ws(' ', id, d, n, b) FROM odd ORDER BY id");
        let held: Vec<String> = rows.fetch_all(&peer.client().await?).await?;
        let told = [
            "0 NaN NaN 101",
            "1 Infinity Infinity 101",
            "2 -Infinity -Infinity 101",
            "3 1.5 1.5 101",
        ];
        ensure!(held == told, "{held:?}");
    }
    for peer in MySql::all().await? {
        peer.run(&format!(
            "CREATE TABLE odd (id bigint PRIMARY KEY, d double, n decimal(9, 3), b text, {SYNC})"
        ))
        .await?;
        let target = connect(&peer, "odd", json!({"table": table}))?;
        let outcomes = target.deliver(&batch).await;
        let (fine, odd) = outcomes.split_last().context("nobody")?;
        is_delivered(fine)?;
        for outcome in odd {
            let named = matches!(outcome, Outcome::Permanent(why) if why.reason.contains("`d`"));
            ensure!(named, "{outcome:?}");
        }
    }
    Ok(())
}

const SYNC: &str =
    "sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0";

/// Delivers each number to a column of its own type; answers them, the users' ids being their places.
async fn told_to_columns(peer: &dyn Peer) -> Result<(Vec<f64>, Vec<Value>)> {
    let columns = json!({"d": "data.d", "i": "data.i"});
    let table = json!({"name": "numbers", "columns": columns});
    let target = connect(peer, "numbers", json!({"verify": true, "table": table}))?;
    let doubles = doubles(300);
    let integers = INTEGERS.map(integer);
    let integers: Vec<Value> = (0..doubles.len())
        .map(|place| integers[place % integers.len()].clone())
        .collect();
    let batch: Vec<_> = doubles
        .iter()
        .zip(&integers)
        .enumerate()
        .map(|(place, (double, integer))| {
            let told = json!({"d": double, "i": integer});
            data(user(&place.to_string(), 5, "ann"), told)
        })
        .collect();
    deliver(&*target, &batch).await?;
    let standings = target.compare(&batch).await.context("it isn't read")?;
    let same = standings.iter().all(|standing| *standing == Standing::Same);
    ensure!(same, "{standings:?}");
    Ok((doubles, integers))
}

fn compare(doubles: &[f64], integers: &[Value], held: Vec<(i64, f64, String)>) -> Result<()> {
    ensure!(
        held.len() == doubles.len(),
        "{} of {}",
        held.len(),
        doubles.len()
    );
    for (place, double, integer) in held {
        let place = usize::try_from(place)?;
        let told = doubles[place];
        ensure!(told == double, "{told:e} is {double:e}");
        let told = integers[place].to_string();
        ensure!(told == integer, "{told} is {integer}");
    }
    Ok(())
}

#[tokio::test]
async fn columns_of_mysql_hold_every_double_and_integer() -> Result<()> {
    for peer in MySql::all().await? {
        peer.run(&format!(
            "CREATE TABLE numbers (id bigint PRIMARY KEY, d double, i decimal(20), {SYNC})"
        ))
        .await?;
        let (doubles, integers) = told_to_columns(&peer).await?;
        let rows = sqlx::query_as("SELECT id, d, CAST(i AS CHAR) FROM numbers");
        let held = rows.fetch_all(&peer.client().await?).await?;
        compare(&doubles, &integers, held)?;
    }
    Ok(())
}

#[tokio::test]
async fn columns_of_postgres_hold_every_double_and_integer() -> Result<()> {
    for peer in Postgres::all().await? {
        peer.run(&format!(
            "CREATE TABLE numbers (id bigint PRIMARY KEY, d float8, i numeric(20), {SYNC})"
        ))
        .await?;
        let (doubles, integers) = told_to_columns(&peer).await?;
        let rows = sqlx::query_as("SELECT id, d, i::text FROM numbers");
        let held = rows.fetch_all(&peer.client().await?).await?;
        compare(&doubles, &integers, held)?;
    }
    Ok(())
}
