//! The benchmarks, one file each, and the taking of turns.

mod check;
mod check_states;
mod end_to_end;
mod http_ingest;
mod intake;
mod load;
mod loud_caller;
mod many_targets;
mod relay;
mod trigger;
mod worker_cluster;
mod worker_http;
mod worker_life;
mod worker_redis;
mod worker_rules;
mod worker_sql;

use std::fmt::{self, Display, Formatter};

use anyhow::Result;
use clap::ValueEnum;

pub(crate) use loud_caller::{ShoutArgs, shout};

use crate::drain::Drained;
use crate::options::Options;
use crate::quiet::{alone, undisturbed};
use crate::report::{Row, median, number};
use crate::upserts::Server;

/// Everything that can be measured, in the order in which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Benchmark {
    /// A worker empties a full USER_STATE into an HTTP endpoint that guards by version
    WorkerHttp,
    /// The same into an endpoint without a guard
    WorkerHttpUnguarded,
    /// A worker empties a full USER_STATE into Redis
    WorkerRedis,
    /// The same into a Redis Cluster of three masters, beside one server
    WorkerRedisCluster,
    /// A worker empties a full USER_STATE into a table in MariaDB
    WorkerMysql,
    /// A worker empties a full USER_STATE into a table in PostgreSQL
    WorkerPostgres,
    /// A worker and an endpoint where every call takes 20 ms
    WorkerSlow,
    /// A worker and an endpoint where one call in 500 takes 2 s
    WorkerStalls,
    /// What filter, projection, mask and signature cost over HTTP
    WorkerHttpRules,
    /// What signature and TLS cost over HTTP
    WorkerHttpSecure,
    /// What metrics and logs cost over HTTP, and traces that are off
    WorkerObserved,
    /// What filter, projection and mask cost to Redis
    WorkerRedisRules,
    /// What the delivery log costs
    WorkerLog,
    /// One worker with 100 targets, one of which hangs and one is down
    ManyTargets,
    /// Intake of events of 5,000 known users
    IntakeKnown,
    /// Intake of one event each of many users that are not in the gateway's cache
    IntakeCold,
    /// POST /v1/events with one event each
    HttpIngestSingle,
    /// POST /v1/events with 500 events each
    HttpIngestArray,
    /// A caller's events beside another who posts at ten times its rate
    LoudCaller,
    /// Main database against target, both tables: with 0, 100 and 10,000 differences
    Check,
    /// Everybody that Redis holds, in digests
    CheckRedis,
    /// The states against a table of the main database, and a target against the states, nothing different
    CheckStates,
    /// A full outbox in MariaDB is published; from commit to event at 200 changes/s
    RelayMysql,
    /// The same in PostgreSQL
    RelayPostgres,
    /// What the outbox' trigger adds to a change of a row in MariaDB
    TriggerMysql,
    /// The same in PostgreSQL
    TriggerPostgres,
    /// A table in MariaDB is loaded into USER_STATE: empty, and when all is equal
    LoadMysql,
    /// The same in PostgreSQL
    LoadPostgres,
    /// From publishing an event to its arrival at an HTTP endpoint, at 500 events/s
    EndToEnd,
}

impl Benchmark {
    /// As `--only` takes it.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Runs it: all runs, ours and the limit in turns.
    pub(crate) async fn run(self, options: &Options) -> Result<Vec<Row>> {
        let name = self.name();
        match self {
            Self::WorkerHttp => worker_http::run(options, &name, "guarded").await,
            Self::WorkerHttpUnguarded => worker_http::run(options, &name, "unguarded").await,
            Self::WorkerRedis => worker_redis::run(options, &name).await,
            Self::WorkerRedisCluster => worker_cluster::run(options, &name).await,
            Self::WorkerMysql => worker_sql::mysql(options, &name).await,
            Self::WorkerPostgres => worker_sql::postgres(options, &name).await,
            Self::WorkerSlow => worker_life::run(options, &name, "slow", 15_000.0).await,
            Self::WorkerStalls => worker_life::run(options, &name, "stalls", 20_000.0).await,
            Self::WorkerHttpRules => worker_rules::http(options, &name).await,
            Self::WorkerHttpSecure => worker_rules::secure(options, &name).await,
            Self::WorkerObserved => worker_rules::observed(options, &name).await,
            Self::WorkerRedisRules => worker_rules::redis(options, &name).await,
            Self::WorkerLog => worker_rules::log(options, &name).await,
            Self::ManyTargets => many_targets::run(options, &name).await,
            Self::IntakeKnown => intake::known(options, &name).await,
            Self::IntakeCold => intake::cold(options, &name).await,
            Self::HttpIngestSingle => http_ingest::single(options, &name).await,
            Self::HttpIngestArray => http_ingest::array(options, &name).await,
            Self::LoudCaller => loud_caller::run(options, &name).await,
            Self::Check => check::tables(options, &name).await,
            Self::CheckRedis => check::redis(options, &name).await,
            Self::CheckStates => check_states::run(options, &name).await,
            Self::RelayMysql => relay::run(options, &name, Server::Mysql).await,
            Self::RelayPostgres => relay::run(options, &name, Server::Postgres).await,
            Self::TriggerMysql => trigger::run(options, &name, Server::Mysql).await,
            Self::TriggerPostgres => trigger::run(options, &name, Server::Postgres).await,
            Self::LoadMysql => load::run(options, &name, Server::Mysql).await,
            Self::LoadPostgres => load::run(options, &name, Server::Postgres).await,
            Self::EndToEnd => end_to_end::run(options, &name).await,
        }
    }
}

/// The figures of ours and of the limit, turn by turn.
struct Contest<O, L> {
    against: &'static str,
    ours: Vec<O>,
    limit: Vec<L>,
}

impl<O: Display, L: Display> Contest<O, L> {
    /// Has both take turns: ours, limit, limit, ours in each run, so that the machine's becoming slower or
    /// faster falls on both alike.
    async fn hold(
        options: &Options,
        name: &str,
        against: &'static str,
        mut ours: impl AsyncFnMut() -> Result<O>,
        mut limit: impl AsyncFnMut() -> Result<L>,
    ) -> Result<Self> {
        let mut contest = Self {
            against,
            ours: Vec::new(),
            limit: Vec::new(),
        };
        {
            // Not counted: servers are slower at their first.
            let _alone = alone().await?;
            limit().await?;
        }
        for run in 1..=options.runs() {
            let turns = async || {
                let first = (ours().await?, limit().await?);
                let then = limit().await?;
                Ok([first, (ours().await?, then)])
            };
            for (our, limit) in undisturbed(options, name, turns).await? {
                eprintln!("{name} run {run}: ours {our}; {against} {limit}");
                contest.ours.push(our);
                contest.limit.push(limit);
            }
        }
        Ok(contest)
    }

    /// One more limit: a turn of it in each run, beside the median of ours.
    async fn beside(
        &self,
        options: &Options,
        name: &str,
        against: &'static str,
        mut limit: impl AsyncFnMut() -> Result<Rate>,
        our: fn(&O) -> f64,
    ) -> Result<Row> {
        let mut limits = Vec::new();
        for run in 1..=options.runs() {
            let rate = undisturbed(options, name, &mut limit).await?;
            eprintln!("{name} run {run}: {against} {rate}");
            limits.push(rate.0);
        }
        let ours: Vec<f64> = self.ours.iter().map(our).collect();
        let (ours, limit) = ([median(&ours)], [median(&limits)]);
        Ok(Row::of(name, "1/s", &ours).against(against, &ours, &limit))
    }

    /// One figure of both sides.
    fn row(
        &self,
        name: impl Into<String>,
        unit: &'static str,
        our: fn(&O) -> f64,
        limit: fn(&L) -> f64,
    ) -> Row {
        let ours: Vec<f64> = self.ours.iter().map(our).collect();
        let limits: Vec<f64> = self.limit.iter().map(limit).collect();
        Row::of(name, unit, &ours).against(self.against, &ours, &limits)
    }
}

impl Contest<Drained, Drained> {
    /// The rows of throughput, CPU and memory, without aims.
    fn rows(&self, name: &str, unit: &'static str) -> [Row; 3] {
        let row = |name, unit, figure: fn(&Drained) -> f64| self.row(name, unit, figure, figure);
        [
            row(name.to_owned(), unit, |drained| drained.rate),
            row(format!("{name}-cpu"), "CPU s per 1,000", |drained| {
                drained.cpu
            }),
            row(format!("{name}-rss"), "MB", |drained| drained.rss_mb),
        ]
    }
}

/// Something per second.
#[derive(Clone, Copy)]
struct Rate(f64);

impl Display for Rate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", number(self.0))
    }
}
