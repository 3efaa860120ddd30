//! Redis' side of the contract.

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use redis::AsyncTypedCommands as _;
use serde_json::{Value, json};
use usersync_core::user_id::UserId;
use usersync_stack::{Directory, RedisServer, Signal, free_port};
use usersync_targets::Delivery;

use crate::{
    deliveries::user,
    peer::{Can, Held, Peer, connect},
};

const RIGHT: &str = "a p@ss/word";

pub(crate) struct Redis {
    server: RedisServer,
    dir: Directory,
}

impl Redis {
    /// What is in it survives a restart; the user `sync` has the password in the file `right`.
    pub(crate) async fn start() -> Result<Self> {
        let dir = Directory::temporary()?;
        for (file, password) in [("right", RIGHT), ("wrong", "wrong")] {
            std::fs::write(dir.path().join(file), password)?;
        }
        let password = format!(">{RIGHT}");
        let args = ["--appendonly", "yes", "--appendfsync", "no"];
        let user = ["--user", "sync", "on", "~user:*", &password];
        // As docs/TARGETS.md says.
        let rights = ["+@read", "+@write", "+@scripting", "+ping"];
        let args = [args.as_slice(), &user, &rights].concat();
        let server = RedisServer::start_with(dir.path(), free_port()?, &args).await?;
        Ok(Self { server, dir })
    }

    pub(crate) async fn client(&self) -> Result<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.server.url())?;
        Ok(client.get_multiplexed_async_connection().await?)
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
        redis::cmd("FLUSHALL")
            .exec_async(&mut self.client().await?)
            .await?;
        Ok(())
    }

    fn entry(&self, _place: &str, right: bool) -> Value {
        let secret = self.dir.path().join(if right { "right" } else { "wrong" });
        json!({
            "url": format!("redis://sync@127.0.0.1:{}", self.server.port()),
            "secret": format!("file:{}", secret.display()),
        })
    }

    async fn held(&mut self, _place: &str, id: &str) -> Result<Option<Held>> {
        let Some(text) = self.client().await?.get(format!("user:{id}")).await? else {
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
        let (mut client, key) = (self.client().await?, format!("user:{id}"));
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
        self.client().await?.del(format!("user:{id}")).await?;
        Ok(())
    }

    async fn refused(&mut self, _place: &str, id: &str) -> Result<Delivery> {
        self.client()
            .await?
            .lpush(format!("user:{id}"), "no document")
            .await?;
        Ok(user(id, 5, "refused"))
    }

    async fn kill(&mut self) -> Result<()> {
        self.server.kill9().await;
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        self.server.restart().await
    }

    async fn pause(&mut self, paused: bool) -> Result<()> {
        match paused {
            true => self.server.process().freeze().await,
            false => self.server.process().signal(Signal::SIGCONT),
        }
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
