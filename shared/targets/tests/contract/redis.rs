//! Redis' side of the contract, also on Valkey and on a cluster.

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use redis::AsyncTypedCommands as _;
use serde_json::{Value, json};
use usersync_core::{refill::Mark, user_id::UserId};
use usersync_stack::{Directory, RedisCluster, RedisServer, Signal, free_port};
use usersync_targets::{Delivery, Outcome, Standing};

use crate::{
    clauses::one,
    deliveries::user,
    peer::{Can, Held, Peer, connect},
};

const SOON: std::time::Duration = std::time::Duration::from_secs(15);
const RIGHT: &str = "a p@ss/word";
/// The same as the server's settings say it.
const PASSWORD: &str = ">a p@ss/word";

pub(crate) struct Redis {
    pub(crate) server: Server,
    dir: Directory,
}

pub(crate) enum Server {
    Alone(Box<RedisServer>),
    Cluster(RedisCluster),
}

/// What is in it survives a restart; the user `sync` has the password in the file `right`. The rights are those that
/// docs/TARGETS.md names.
const ARGS: &str = "--appendonly yes --appendfsync no --enable-protected-configs yes";
const USER: &str = "--user sync on ~user:*";
const RIGHTS: &str = "+@read +@write +@scripting";
const CLUSTER_RIGHTS: &str = "+cluster|slots";

impl Redis {
    /// On Redis itself.
    pub(crate) async fn start() -> Result<Self> {
        let dir = directory()?;
        let server = RedisServer::start_with(dir.path(), free_port()?, &args(&[])).await?;
        let server = Server::Alone(Box::new(server));
        Ok(Self { server, dir })
    }

    pub(crate) async fn valkey() -> Result<Self> {
        let dir = directory()?;
        let server = RedisServer::start_valkey_with(dir.path(), free_port()?, &args(&[])).await?;
        let server = Server::Alone(Box::new(server));
        Ok(Self { server, dir })
    }

    /// On three masters.
    pub(crate) async fn cluster() -> Result<Self> {
        let dir = directory()?;
        let server = RedisCluster::start(dir.path(), &args(&[CLUSTER_RIGHTS])).await?;
        let server = Server::Cluster(server);
        Ok(Self { server, dir })
    }

    /// The same of Valkey.
    pub(crate) async fn valkey_cluster() -> Result<Self> {
        let dir = directory()?;
        let server = RedisCluster::start_valkey(dir.path(), &args(&[CLUSTER_RIGHTS])).await?;
        let server = Server::Cluster(server);
        Ok(Self { server, dir })
    }

    /// A client of the server that has the keys of a user.
    async fn client_for(&self, id: &str) -> Result<redis::aio::MultiplexedConnection> {
        let Server::Cluster(cluster) = &self.server else {
            return self.client().await;
        };
        for master in cluster.masters() {
            let client = redis::Client::open(master.url())?;
            let mut client = client.get_multiplexed_async_connection().await?;
            if client.exists(format!("user:{id}")).await.is_ok() {
                return Ok(client);
            }
        }
        bail!("no master has the slot of user {id}")
    }

    pub(crate) async fn client(&self) -> Result<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.server.all()[0].url())?;
        Ok(client.get_multiplexed_async_connection().await?)
    }
}

fn directory() -> Result<Directory> {
    let dir = Directory::temporary()?;
    for (file, password) in [("right", RIGHT), ("wrong", "wrong")] {
        std::fs::write(dir.path().join(file), password)?;
    }
    Ok(dir)
}

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let words = [ARGS, USER].into_iter().flat_map(str::split_whitespace);
    let rights = RIGHTS.split_whitespace();
    words
        .chain([PASSWORD])
        .chain(rights)
        .chain(more.iter().copied())
        .collect()
}

impl Server {
    fn all(&self) -> &[RedisServer] {
        match self {
            Self::Alone(server) => std::slice::from_ref(&**server),
            Self::Cluster(cluster) => cluster.masters(),
        }
    }
}

#[async_trait(?Send)]
impl Peer for Redis {
    fn can(&self) -> Can {
        Can {
            guard: true,
            // A document is replaced as a whole.
            keep: false,
            merge: false,
            disable: true,
            unique_email: false,
            verify: true,
        }
    }

    /// There is one place, and keys of a clause are as good as new for the next.
    async fn prepare(&mut self, _place: &str) -> Result<()> {
        for server in self.server.all() {
            let client = redis::Client::open(server.url())?;
            let mut client = client.get_multiplexed_async_connection().await?;
            redis::cmd("FLUSHALL").exec_async(&mut client).await?;
        }
        Ok(())
    }

    fn entry(&self, _place: &str, right: bool) -> Value {
        let secret = self.dir.path().join(if right { "right" } else { "wrong" });
        json!({
            "url": format!("redis://sync@127.0.0.1:{}", self.server.all()[0].port()),
            "secret": format!("file:{}", secret.display()),
        })
    }

    async fn held(&mut self, _place: &str, id: &str) -> Result<Option<Held>> {
        let mut client = self.client_for(id).await?;
        let Some(text) = client.get(format!("user:{id}")).await? else {
            return Ok(None);
        };
        let document: Value = serde_json::from_str(&text)?;
        let shown: UserId = serde_json::from_value(document["user_id"].clone())?;
        ensure!(shown.to_string() == id, "{document}");
        let text = |name: &str| document[name].as_str().map(str::to_owned);
        Ok(Some(Held {
            username: text("username"),
            email: text("email"),
            status: text("status"),
            data: document["data"].clone(),
        }))
    }

    async fn tamper(&mut self, _place: &str, id: &str) -> Result<()> {
        let (mut client, key) = (self.client_for(id).await?, format!("user:{id}"));
        let text = client.get(&key).await?.unwrap_or_default();
        let mut document: Value = serde_json::from_str(&text)?;
        document["username"] = json!("mallory");
        // The version stays at the head.
        let version = document
            .as_object_mut()
            .and_then(|members| members.remove("version"));
        let rest = document.to_string();
        let text = format!(
            "{{\"version\":{},{}",
            version.unwrap_or_default(),
            &rest[1..]
        );
        client.set(&key, text).await?;
        Ok(())
    }

    async fn remove(&mut self, _place: &str, id: &str) -> Result<()> {
        let mut client = self.client_for(id).await?;
        client.del(format!("user:{id}")).await?;
        Ok(())
    }

    async fn refused(&mut self, _place: &str, id: &str) -> Result<Delivery> {
        self.client_for(id)
            .await?
            .lpush(format!("user:{id}"), "no document")
            .await?;
        Ok(user(id, 5, "refused"))
    }

    async fn kill(&mut self) -> Result<()> {
        for server in self.server.all() {
            server.kill9().await;
        }
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        match &mut self.server {
            Server::Alone(server) => server.restart().await,
            Server::Cluster(cluster) => cluster.restart().await,
        }
    }

    async fn pause(&mut self, paused: bool) -> Result<()> {
        for server in self.server.all() {
            match paused {
                true => server.process().freeze().await?,
                false => server.process().signal(Signal::SIGCONT)?,
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_replica_that_says_so_is_not_compared() -> Result<()> {
    let redis = Redis::start().await?;
    let target = connect(&redis, "ours", json!({}))?;
    let mut client = redis.client().await?;
    for command in ["REPLICAOF 127.0.0.1 1", "ACL SETUSER sync +role"] {
        target.holdings().await?;
        let mut words = command.split(' ');
        let mut call = redis::cmd(words.next().context("a command")?);
        words.for_each(|word| _ = call.arg(word));
        let _: () = call.query_async(&mut client).await?;
    }
    let refused = target.holdings().await.err().context("it is compared")?;
    ensure!(refused.to_string().contains("replica"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_version_that_no_user_can_have_keeps_nobody_away() -> Result<()> {
    /// Above anything, and one that doesn't fit.
    const VERSIONS: [&str; 2] = ["9007199254740991", "18446744073709551616"];
    for redis in [Redis::start().await?, Redis::cluster().await?] {
        let target = connect(&redis, "ours", json!({}))?;
        for (at, version) in VERSIONS.iter().enumerate() {
            let [left, held] = [1, 2].map(|kind| format!("{kind}{at}"));
            let tombstone = format!("user: deleted:{{user:{left}}}:{left}");
            let mut client = redis.client_for(&left).await?;
            client.set(tombstone, version).await?;
            let document = format!("{{\"version\":{version},\"username\":\"mallory\"}}");
            let mut client = redis.client_for(&held).await?;
            let key = format!("user:{held}");
            client.set(key, document).await?;
            for id in [left, held] {
                let delivery = user(&id, 5, "ann");
                let found = target.compare(std::slice::from_ref(&delivery)).await;
                match found.context("nobody is compared")?.as_slice() {
                    // It is damage: a repair forgets it before it delivers.
                    [Standing::Newer(found)] => {
                        ensure!(found.to_string() == *version, "{found}");
                        target.forget_version(&delivery.user_id, *found).await?;
                    }
                    [Standing::Missing | Standing::Different(_)] if at == 1 => {}
                    other => bail!("{id}: {other:?}"),
                }
                let outcome = one(&*target, delivery).await;
                ensure!(
                    outcome == Outcome::Delivered { guarded: true },
                    "{id}: {outcome:?}"
                );
                let outcome = one(&*target, user(&id, 4, "older")).await;
                ensure!(outcome == Outcome::AlreadyNewer, "{id}: {outcome:?}");
            }
        }
    }
    Ok(())
}

/// What takes the documents takes the mark; a snapshot brings an older one back.
#[tokio::test]
async fn a_mark_tells_that_something_was_lost() -> Result<()> {
    let started = [
        Redis::start().await?,
        Redis::valkey().await?,
        Redis::cluster().await?,
    ];
    for redis in started {
        let target = connect(&redis, "ours", json!({}))?;
        let first = target.mark(Mark::default()).await?;
        let second = target.mark(first).await?;
        ensure!(second.made == first.made && second.count > first.count);
        // Another worker counts, too.
        let third = target.mark(Mark::default()).await?;
        ensure!(third.made == first.made && third.count > second.count);

        let key = "user: mark:*";
        let mut client = redis.client().await?;
        let keys: Vec<String> = client.keys(key).await?;
        let key = keys.first().context("no mark")?;
        let held = client.get(key).await?.context("no mark")?;
        client.del(key).await?;
        let lost = target.mark(third).await?;
        ensure!(lost.made > third.made, "{lost:?} after {third:?}");
        ensure!(target.mark(lost).await?.made == lost.made, "once is enough");
        // It is back, as it was when the snapshot was taken.
        client.set(key, held).await?;
        let older = target.mark(lost).await?;
        ensure!(older.made > lost.made, "{older:?} after {lost:?}");
        client.set(key, format!("{} 0", older.made)).await?;
        let fewer = Mark { count: 99, ..older };
        ensure!(target.mark(fewer).await?.made > older.made);
        client.set(key, "something else").await?;
        ensure!(target.mark(older).await?.made > older.made);
    }
    Ok(())
}

#[tokio::test]
async fn a_right_that_was_not_needed_yet_is_missed_by_the_test_of_the_connection() -> Result<()> {
    for redis in [Redis::start().await?, Redis::valkey().await?] {
        let target = connect(&redis, "ours", json!({}))?;
        // From here on the server knows the scripts.
        target.probe().await?;
        target.probe_reading().await?;
        let mut client = redis.client().await?;
        for (lost, command) in [("-script", "script"), ("-scan", "scan")] {
            let set = |rights: &[&str]| {
                let mut set = redis::cmd("ACL");
                set.arg("SETUSER").arg("sync").arg(rights);
                set
            };
            set(&[lost]).exec_async(&mut client).await?;
            let (written, read) = (target.probe().await, target.probe_reading().await);
            let (missed, fine) = match command {
                "script" => (written, read),
                _ => (read, written),
            };
            let said = missed.err().context(lost)?.to_string();
            ensure!(said.contains(&format!("`{command}")), "{said}");
            ensure!(fine.is_ok(), "{lost}: {fine:?}");
            set(&["+script", "+scan"]).exec_async(&mut client).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_takes_no_writes_is_a_matter_of_no_user() -> Result<()> {
    for redis in [Redis::start().await?, Redis::valkey().await?] {
        let target = connect(&redis, "ours", json!({}))?;
        let delivered = Outcome::Delivered { guarded: true };
        ensure!(one(&*target, user("1", 5, "ann")).await == delivered);
        let mut client = redis.client().await?;
        let gone = redis.dir.path().join("gone");
        std::fs::create_dir(&gone)?;
        let gone = gone.to_str().context("no text")?;
        let home = redis.dir.path().to_str().context("no text")?;
        // Words that end it, words that let it go on, and what is said.
        let cases: [(&[&str], &[&str], &str); 3] = [
            (
                &["min-replicas-to-write", "1"],
                &["min-replicas-to-write", "0"],
                "min-replicas-to-write",
            ),
            (
                &["maxmemory", "1", "maxmemory-policy", "noeviction"],
                &["maxmemory", "0"],
                "maxmemory",
            ),
            (
                &["save", "3600 1", "dir", gone],
                &["dir", home],
                "can't save",
            ),
        ];
        for (ends, mends, said) in cases {
            let set = |words: &[&str]| {
                let mut set = redis::cmd("CONFIG");
                set.arg("SET").arg(words);
                set
            };
            set(ends).exec_async(&mut client).await?;
            if ends.contains(&gone) {
                std::fs::remove_dir(gone)?;
                redis::cmd("BGSAVE").exec_async(&mut client).await?;
            }
            let refused = usersync_stack::eventually(SOON, async || {
                match one(&*target, user("1", 6, "anna")).await {
                    Outcome::Down(failure) | Outcome::Fault(failure) => Ok(failure),
                    other => bail!("{said}: {other:?}"),
                }
            });
            ensure!(refused.await?.reason.contains(said));
            let probed = target.probe().await.err().context("it is well")?;
            ensure!(probed.to_string().contains(said), "{probed}");
            set(mends).exec_async(&mut client).await?;
            if ends.contains(&gone) {
                redis::cmd("BGSAVE").exec_async(&mut client).await?;
            }
            usersync_stack::eventually(SOON, async || {
                let outcome = one(&*target, user("1", 6, "anna")).await;
                ensure!(outcome == delivered, "{said}: {outcome:?}");
                Ok(())
            })
            .await?;
            // The next one is another version.
            redis.client().await?.del("user:1").await?;
        }
    }
    Ok(())
}
