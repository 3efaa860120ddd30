//! What our trigger adds to a change of a user. The limit: a trigger that only inserts a row into a table like the
//! outbox. Both beside a table without a trigger.

use std::fmt::{self, Display, Formatter};
use std::time::Instant;

use anyhow::Result;

use super::Contest;
use crate::main_db::MainDb;
use crate::options::Options;
use crate::report::{Aim, Row, number};
use crate::rig::Rig;
use crate::upserts::Server;

const USERS: u64 = 10_000;

/// Microseconds per changed row.
#[derive(Clone, Copy)]
struct Cost(f64);

impl Display for Cost {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} µs a row", number(self.0))
    }
}

pub(super) async fn run(options: &Options, name: &str, server: Server) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let main = MainDb::start(&rig, options.newest, server, USERS).await?;
    main.install_outbox(&rig).await?;
    let like = match server {
        Server::Mysql => "LIKE users",
        Server::Postgres => "(LIKE users INCLUDING ALL)",
    };
    for table in ["plain", "bare"] {
        main.run(&format!("CREATE TABLE {table} {like}")).await?;
        let filled = format!("INSERT INTO {table} SELECT * FROM users");
        main.run(&filled).await?;
    }
    for statement in bare_trigger(server) {
        main.run(statement).await?;
    }
    let rounds = options.events() / USERS;
    let timed = async |table: &str| {
        let began = Instant::now();
        for round in 0..rounds {
            let change = format!("UPDATE {table} SET phone = CONCAT('round ', {round}, ' ', id)");
            main.run(&change).await?;
        }
        let took = began.elapsed();
        for outbox in ["user_outbox", "bare_outbox"] {
            main.run(&format!("TRUNCATE TABLE {outbox}")).await?;
        }
        if server == Server::Postgres {
            main.run(&format!("VACUUM {table}")).await?;
        }
        Ok::<_, anyhow::Error>(took.as_secs_f64() * 1e6 / (rounds * USERS) as f64)
    };
    let added = async |table: &str| {
        let plain = timed("plain").await?;
        Ok::<_, anyhow::Error>(Cost(timed(table).await? - plain))
    };
    let ours = async || added("users").await;
    let bare = async || added("bare").await;
    let contest = Contest::hold(options, name, "a trigger that inserts", ours, bare).await?;
    let row = contest.row(name, "µs", |ours| ours.0, |bare| bare.0);
    Ok(vec![row.aim(Aim::RatioAtMost(1.15))])
}

fn bare_trigger(server: Server) -> &'static [&'static str] {
    match server {
        Server::Mysql => &[
            "CREATE TABLE bare_outbox LIKE user_outbox",
            "CREATE TRIGGER bare AFTER UPDATE ON bare FOR EACH ROW \
             INSERT INTO bare_outbox (user_id, event) VALUES (NEW.id, 'U')",
        ],
        Server::Postgres => &[
            "CREATE TABLE bare_outbox (LIKE user_outbox INCLUDING ALL)",
            "CREATE FUNCTION bare() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             INSERT INTO bare_outbox (user_id, event) VALUES (NEW.id, 'U'); RETURN NULL; END $$",
            "CREATE TRIGGER bare AFTER UPDATE ON bare FOR EACH ROW EXECUTE FUNCTION bare()",
        ],
    }
}
