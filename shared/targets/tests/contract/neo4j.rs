//! Neo4j's side of the contract, on ArcadeDB, which speaks Bolt and openCypher.

use anyhow::{Result, ensure};
use async_trait::async_trait;
use neo4rs::{BoltType, ConfigBuilder, Graph, query};
use serde_json::{Value, json};
use usersync_stack::{ArcadeDbServer, Directory, Signal};
use usersync_targets::Delivery;

use crate::{
    deliveries::user,
    peer::{Can, Held, Peer, connect},
};

pub(crate) struct Neo4j {
    server: ArcadeDbServer,
    dir: Directory,
}

impl Neo4j {
    pub(crate) async fn start() -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("right"), ArcadeDbServer::PASSWORD)?;
        std::fs::write(dir.path().join("wrong"), "another password")?;
        let server = ArcadeDbServer::start(dir.path()).await?;
        Ok(Self { server, dir })
    }

    /// A client that isn't ours.
    async fn client(&self) -> Result<Graph> {
        let url = self.server.url();
        let (address, database) = url.rsplit_once('/').unwrap_or((&url, ""));
        let config = ConfigBuilder::default()
            .uri(address.replace("root@", ""))
            .user("root")
            .password(ArcadeDbServer::PASSWORD)
            .db(database)
            .build()?;
        Ok(Graph::connect(config).await?)
    }

    async fn run(&self, statement: &str) -> Result<()> {
        Ok(self.client().await?.run(query(statement)).await?)
    }
}

fn id_of(id: &str) -> BoltType {
    match id.parse::<i64>() {
        Ok(number) if number.to_string() == id && number >= 0 => number.into(),
        _ => id.into(),
    }
}

#[async_trait(?Send)]
impl Peer for Neo4j {
    fn can(&self) -> Can {
        Can {
            guard: true,
            keep: true,
            // The whole of `data` is a text there.
            merge: false,
            disable: true,
            unique_email: true,
            verify: true,
        }
    }

    async fn prepare(&mut self, place: &str) -> Result<()> {
        connect(self, place, json!({}))?.init().await?;
        self.run(&format!(
            "CREATE CONSTRAINT {place}_email IF NOT EXISTS FOR (u:{place}) REQUIRE u.email IS UNIQUE"
        ))
        .await
    }

    fn entry(&self, place: &str, right: bool) -> Value {
        let secret = self.dir.path().join(if right { "right" } else { "wrong" });
        json!({
            "url": self.server.url(),
            "secret": format!("file:{}", secret.display()),
            "table": {"name": place},
        })
    }

    async fn held(&mut self, place: &str, id: &str) -> Result<Option<Held>> {
        let statement = format!("MATCH (u:{place} {{id: $id}}) RETURN properties(u) AS held");
        let graph = self.client().await?;
        let mut rows = graph
            .execute(query(&statement).param("id", id_of(id)))
            .await?;
        let mut all: Vec<Value> = Vec::new();
        while let Some(row) = rows.next().await? {
            all.push(row.get("held")?);
        }
        ensure!(all.len() < 2, "user {id} has {} nodes", all.len());
        let Some(held) = all.pop() else {
            return Ok(None);
        };
        if held["sync_deleted"] == true {
            let rest: Vec<_> = held
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| name)
                .collect();
            ensure!(rest.len() == 3, "a deleted user keeps {rest:?}");
            return Ok(None);
        }
        let text = |name: &str| held[name].as_str().map(str::to_owned);
        Ok(Some(Held {
            username: text("username"),
            email: text("email"),
            status: text("status"),
            data: text("data").map_or(Ok(Value::Null), |data| serde_json::from_str(&data))?,
        }))
    }

    async fn tamper(&mut self, place: &str, id: &str) -> Result<()> {
        let statement = format!("MATCH (u:{place} {{id: $id}}) SET u.username = 'mallory'");
        let tampering = query(&statement).param("id", id_of(id));
        Ok(self.client().await?.run(tampering).await?)
    }

    async fn remove(&mut self, place: &str, id: &str) -> Result<()> {
        let statement = format!("MATCH (u:{place} {{id: $id}}) DETACH DELETE u");
        let removing = query(&statement).param("id", id_of(id));
        Ok(self.client().await?.run(removing).await?)
    }

    /// Nodes take anything, but no version beyond their integers.
    async fn refused(&mut self, _place: &str, id: &str) -> Result<Delivery> {
        Ok(user(id, u64::MAX, "refused"))
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
