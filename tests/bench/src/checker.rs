//! Comparisons of two copies, each in a process of its own: ours by digests, and what it is measured by.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use futures_util::{Stream, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{
    AssertSqlSafe, ColumnIndex, Connection as _, Decode, MySqlConnection, PgConnection, Row, Type,
};
use usersync_core::catalogue;
use usersync_digest::{
    Cut, Extent, Form, Rounding, Stored, Walk,
    sql::{Field, Flavour, Table},
};
use usersync_stack::{Directory, MariaDbServer, PostgresServer};
use usersync_targets::{MainDatabase, MainTable, Target};

/// What a checker's line of figures begins with.
pub(crate) const RESULT: &str = "RESULT ";
/// Columns of both tables, beside the id, and the members they hold.
pub(crate) const COLUMNS: [(&str, &str); 5] = [
    ("username", "username"),
    ("email", "email"),
    ("phone", "data.phone"),
    ("status", "status"),
    ("updated_at", "data.updated_at"),
];
/// Keys of a page of the bare scan.
const PAGE: u32 = 1_000;

/// Compare two copies once.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// How.
    #[arg(long)]
    pub how: How,
    /// The main database in MariaDB.
    #[arg(long, default_value = "")]
    pub main: String,
    /// The target in PostgreSQL, or Redis.
    #[arg(long)]
    pub target: String,
}

/// Ways to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum How {
    /// Ours: digests, and lists where they differ.
    Walk,
    /// Only the sums of both sides, at once: who differs isn't found.
    Total,
    /// Every row of both sides into a file in the order of their ids, both at once, and then diff(1).
    Dump,
    /// The same rows compared as they come.
    Merge,
    /// Ours, of Redis.
    Redis,
    /// Every document of Redis, and nothing made of it.
    RedisBare,
}

/// What a checker writes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Checked {
    pub seconds: f64,
    pub bytes: u64,
    pub differences: u64,
    pub rss_mb: f64,
}

/// Compares, and writes what that took.
pub(crate) async fn run(args: CheckArgs) -> Result<()> {
    let began = Instant::now();
    let (bytes, differences) = match args.how {
        How::Walk => walk(&args).await?,
        How::Total => total(&args).await?,
        How::Dump => dump(&args).await?,
        How::Merge => merge(&args).await?,
        How::Redis => redis(&args).await?,
        How::RedisBare => redis_bare(&args).await?,
    };
    let checked = Checked {
        seconds: began.elapsed().as_secs_f64(),
        bytes,
        differences,
        rss_mb: crate::usage::peak_rss_mb(std::process::id().cast_signed())?,
    };
    println!("{RESULT}{}", serde_json::to_string(&checked)?);
    Ok(())
}

/// The target's entry in a catalogue.
pub(crate) fn target(url: &str, secret: Option<&str>) -> Result<Box<dyn Target>> {
    let columns: serde_json::Map<_, _> = COLUMNS
        .iter()
        .map(|(column, path)| ((*column).to_owned(), json!(path)))
        .collect();
    let mut entry = json!({"url": url, "timeout": "60s"});
    if let Some(secret) = secret {
        entry["secret"] = json!(format!("env:{secret}"));
        entry["table"] = json!({"columns": columns});
    }
    let config = catalogue::entry("bench", entry);
    let config = config.map_err(|problems| anyhow::anyhow!(problems.join("; ")))?;
    usersync_targets::connect(&config, &usersync_stack::egress()).context("the target")
}

/// The environment variable that holds the target's password.
pub(crate) const SECRET: &str = "USERSYNC_TARGET_BENCH";

async fn walk(args: &CheckArgs) -> Result<(u64, u64)> {
    let columns = COLUMNS.map(|(column, path)| (column.to_owned(), path.to_owned()));
    let main = MainDatabase::new(MainTable {
        url: args.main.parse()?,
        password: Some(MariaDbServer::PASSWORD.into()),
        table: "users".to_owned(),
        id: "id".to_owned(),
        columns: columns.into(),
        deleted: None,
    })?;
    let target = target(&args.target, Some(SECRET))?;
    let holdings = target.holdings().await?;
    let side = main
        .side(holdings.fields().context("a table has fields")?)
        .await?;
    let mut walk = Walk::new(&*side, holdings.side()).await?;
    let mut differences = 0;
    while let Some(found) = walk.next().await? {
        differences += found.len() as u64;
    }
    Ok((walk.read().bytes, differences))
}

/// The table as ours sees it.
fn table(flavour: Flavour) -> Table {
    let (text, micros) = (
        Stored::Text {
            padded: false,
            unicode: true,
            most: None,
        },
        Stored::Instant {
            digits: 6,
            rounding: Rounding::Apart,
        },
    );
    let field = |(column, _): (&str, &str)| {
        let stored = if column == "updated_at" { micros } else { text };
        Field {
            column: Some(flavour.quoted(column)),
            stored,
            form: match stored {
                Stored::Instant { .. } => stored.form(),
                _ => Form::TEXT,
            },
        }
    };
    let mut columns = COLUMNS;
    columns.sort_unstable();
    Table {
        name: "users".to_owned(),
        id: "id".to_owned(),
        integer_ids: true,
        counts: (flavour == Flavour::Postgres)
            .then(|| "NOT COALESCE(sync_deleted, FALSE)".to_owned()),
        fields: columns.map(field).into(),
    }
}

async fn connect(args: &CheckArgs) -> Result<(MySqlConnection, PgConnection)> {
    let with = |url: &str, password: &str| url.replacen('@', &format!(":{password}@"), 1);
    let mysql = MySqlConnection::connect(&with(&args.main, MariaDbServer::PASSWORD)).await?;
    let postgres = PgConnection::connect(&with(&args.target, PostgresServer::PASSWORD)).await?;
    Ok((mysql, postgres))
}

async fn total(args: &CheckArgs) -> Result<(u64, u64)> {
    let (mut mysql, mut postgres) = connect(args).await?;
    let statements =
        [Flavour::MySql, Flavour::Postgres].map(|flavour| table(flavour).total(flavour));
    let left = sqlx::query(AssertSqlSafe(statements[0].as_str())).fetch_one(&mut mysql);
    let right = sqlx::query(AssertSqlSafe(statements[1].as_str())).fetch_one(&mut postgres);
    let (left, right) = tokio::try_join!(left, right)?;
    let (left, right): (i64, i64) = (left.try_get(0)?, right.try_get(0)?);
    Ok((0, left.abs_diff(right)))
}

/// Rows as texts, with their lengths added up.
fn texts<'r, R>(
    rows: impl Stream<Item = Result<R, sqlx::Error>> + Unpin + 'r,
) -> impl AsyncFnMut(&mut u64) -> Result<Option<Vec<Option<String>>>> + 'r
where
    R: Row,
    usize: ColumnIndex<R>,
    for<'a> Option<String>: Decode<'a, R::Database> + Type<R::Database>,
{
    let mut rows = rows;
    async move |bytes: &mut u64| {
        let Some(row) = rows.try_next().await? else {
            return Ok(None);
        };
        let texts: Vec<Option<String>> = (0..row.len())
            .map(|at| row.try_get(at))
            .collect::<Result<_, _>>()?;
        *bytes += texts
            .iter()
            .flatten()
            .map(|text| text.len() as u64)
            .sum::<u64>();
        Ok(Some(texts))
    }
}

/// Every row of the main database: times in one form, and everything else as it is.
const LEFT: &str = "SELECT CAST(id AS CHAR), username, email, phone, status, CAST(updated_at AS CHAR) \
    FROM users ORDER BY users.id";
/// The same of the target.
const RIGHT: &str = "SELECT id::text, username, email, phone, status, to_char(updated_at, 'YYYY-MM-DD HH24:MI:SS.US') \
    FROM users WHERE NOT sync_deleted ORDER BY users.id";

async fn dump(args: &CheckArgs) -> Result<(u64, u64)> {
    let (mut mysql, mut postgres) = connect(args).await?;
    let dir = Directory::temporary()?;
    let (left, right) = (dir.path().join("left"), dir.path().join("right"));
    let (read, more) = tokio::try_join!(
        write(&left, texts(sqlx::query(LEFT).fetch(&mut mysql))),
        write(&right, texts(sqlx::query(RIGHT).fetch(&mut postgres))),
    )?;
    let output = tokio::process::Command::new("diff")
        .arg("--speed-large-files")
        .args([left, right])
        .kill_on_drop(true)
        .output()
        .await
        .context("running diff")?;
    let lines = output.stdout.split(|byte| *byte == b'\n');
    let differences = lines.filter(|line| line.starts_with(b">")).count();
    Ok((read + more, differences as u64))
}

/// One line per row, as `mysql --batch` and `COPY` write them.
async fn write(
    path: &Path,
    mut rows: impl AsyncFnMut(&mut u64) -> Result<Option<Vec<Option<String>>>>,
) -> Result<u64> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut read = 0;
    while let Some(row) = rows(&mut read).await? {
        for text in row {
            file.write_all(text.as_deref().unwrap_or("\\N").as_bytes())?;
            file.write_all(b"\t")?;
        }
        file.write_all(b"\n")?;
    }
    file.flush()?;
    Ok(read)
}

async fn merge(args: &CheckArgs) -> Result<(u64, u64)> {
    let (mut mysql, mut postgres) = connect(args).await?;
    let mut left = texts(sqlx::query(LEFT).fetch(&mut mysql));
    let mut right = texts(sqlx::query(RIGHT).fetch(&mut postgres));
    let (mut read, mut more, mut differences) = (0, 0, 0);
    loop {
        // Both sides have the same ids here; who has others isn't needed to see what reading costs.
        let (one, other) = tokio::try_join!(left(&mut read), right(&mut more))?;
        match (one, other) {
            (None, None) => return Ok((read + more, differences)),
            (Some(one), Some(other)) => differences += u64::from(one != other),
            _ => bail!("one side has more users than the other"),
        }
    }
}

async fn redis(args: &CheckArgs) -> Result<(u64, u64)> {
    let target = target(&args.target, None)?;
    let holdings = target.holdings().await?;
    let (cut, buckets) = Cut::first(Extent::Texts, Extent::Texts);
    let all = 0..buckets;
    let answer = holdings
        .side()
        .digest(&cut, std::slice::from_ref(&all))
        .await?;
    let users: u64 = answer.items.iter().map(|(_, digest)| digest.count).sum();
    Ok((answer.bytes, users))
}

async fn redis_bare(args: &CheckArgs) -> Result<(u64, u64)> {
    let client = redis::Client::open(args.target.as_str())?;
    let patient =
        redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&patient)
        .await?;
    let (mut cursor, mut keys): (u64, Vec<Vec<u8>>) = scan(0).query_async(&mut connection).await?;
    let (mut bytes, mut users) = (0, 0);
    while !keys.is_empty() || cursor != 0 {
        let mut page = redis::pipe();
        page.cmd("MGET").arg(&keys);
        if cursor != 0 {
            page.add_command(scan(cursor));
            let documents: Vec<Option<Vec<u8>>>;
            (documents, (cursor, keys)) = page.query_async(&mut connection).await?;
            users += documents.len() as u64;
            bytes += documents.iter().flatten().map(Vec::len).sum::<usize>() as u64;
        } else {
            let (documents,): (Vec<Option<Vec<u8>>>,) = page.query_async(&mut connection).await?;
            users += documents.len() as u64;
            bytes += documents.iter().flatten().map(Vec::len).sum::<usize>() as u64;
            keys.clear();
        }
    }
    ensure!(users > 0, "Redis is empty");
    Ok((bytes, users))
}

fn scan(cursor: u64) -> redis::Cmd {
    let mut scan = redis::cmd("SCAN");
    scan.arg(cursor)
        .arg("MATCH")
        .arg("user:*")
        .arg("COUNT")
        .arg(PAGE);
    scan
}
