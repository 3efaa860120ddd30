//! A real worker empties a full USER_STATE into a table. The limit: a bare loop that pulls, writes batches of
//! the same size with one statement each and without a guard, and acknowledges.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Contest;
use crate::databases::{self, MySqlLike, PASSWORD};
use crate::options::Options;
use crate::report::{Aim, Row};
use crate::rig::Rig;
use crate::states::States;
use crate::upserts::{Pool, Server};

pub(super) async fn mysql(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let server = MySqlLike::start(options.newest, rig.dir()).await?;
    let urls = [server.url(), server.url_with_password()];
    let limits = ("mysql", PASSWORD, urls);
    run(options, name, &rig, Server::Mysql, limits).await
}

pub(super) async fn postgres(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let server = databases::postgres(options.newest, rig.dir()).await?;
    let urls = [server.url(), server.url_with_password()];
    let limits = ("postgres", PASSWORD, urls);
    run(options, name, &rig, Server::Postgres, limits).await
}

async fn run(
    options: &Options,
    name: &str,
    rig: &Rig,
    server: Server,
    (kind, password, [url, with_password]): (&str, &str, [String; 2]),
) -> Result<Vec<Row>> {
    let pool = Pool::open(server, &with_password).await?;
    pool.run(server.table())
        .await
        .context("creating the table")?;
    let secret = rig.dir().join("password");
    std::fs::write(&secret, password).context("writing the password")?;
    let users = options.events();
    let settings = json!({"secret": format!("file:{}", secret.display())});
    let states = States::of(rig, users, &url, settings).await?;

    let deliver = async || {
        let drained = states.worker().await?;
        expect(&pool, users, "the worker").await?;
        Ok(drained)
    };
    let upsert = async || {
        let arguments = ["upsert", "--server", kind, "--url", &with_password];
        let drained = states.bare("bare", &arguments).await?;
        expect(&pool, users, "the bare loop").await?;
        Ok(drained)
    };
    let contest = Contest::hold(options, name, "pull+upsert+ack", deliver, upsert).await?;
    let [rate, cpu, rss] = contest.rows(name, "deliveries/s");
    Ok(vec![rate.aim(Aim::RatioAtLeast(0.7)), cpu, rss])
}

/// Makes sure that the table holds every user, and empties it.
async fn expect(pool: &Pool, users: u64, by: &str) -> Result<()> {
    let held = pool.held().await.context("looking into the table")?;
    ensure!(
        u64::try_from(held) == Ok(users),
        "{by} delivered {users} users, but the table holds {held}"
    );
    pool.run("TRUNCATE TABLE users")
        .await
        .context("emptying the table")
}
