//! A Redis Cluster of our own: three masters, each with a third of the slots and no replica.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::{RedisServer, eventually, free_port};

const READY_WITHIN: Duration = Duration::from_secs(30);
/// The slots of each master.
const SLOTS: [(u16, u16); 3] = [(0, 5_460), (5_461, 10_922), (10_923, 16_383)];

/// Three running servers; killed on drop, their data stays in their directory.
#[derive(Debug)]
pub struct RedisCluster {
    masters: Vec<RedisServer>,
}

/// Whose servers.
#[derive(Clone, Copy)]
enum Kind {
    Redis,
    Valkey,
}

impl RedisCluster {
    /// Starts one on free ports, with data and logs in `dir`. `args` are more arguments for each of its servers.
    ///
    /// # Errors
    /// When Redis is not installed, or the cluster not ready in time.
    pub async fn start(dir: &Path, args: &[&str]) -> Result<Self> {
        Self::of(Kind::Redis, dir, args).await
    }

    /// The same of Valkey.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_valkey(dir: &Path, args: &[&str]) -> Result<Self> {
        Self::of(Kind::Valkey, dir, args).await
    }

    async fn of(kind: Kind, dir: &Path, args: &[&str]) -> Result<Self> {
        let timeout = ["--cluster-node-timeout", "2000"];
        let clustered = [
            ["--cluster-enabled", "yes"].as_slice(),
            &["--cluster-require-full-coverage", "no"],
            &timeout,
            args,
        ]
        .concat();
        let mut masters = Vec::new();
        for (number, (first, last)) in SLOTS.into_iter().enumerate() {
            let home = dir.join(format!("master-{number}"));
            let bus = free_port()?.to_string();
            let args = [clustered.as_slice(), &["--cluster-port", &bus]].concat();
            let port = free_port()?;
            let master = match kind {
                Kind::Redis => RedisServer::start_with(&home, port, &args).await?,
                Kind::Valkey => RedisServer::start_valkey_with(&home, port, &args).await?,
            };
            ask(
                master.port(),
                &format!("CLUSTER ADDSLOTSRANGE {first} {last}"),
            )
            .await?;
            ask(
                master.port(),
                &format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1),
            )
            .await?;
            masters.push((master, bus));
        }
        let (first, rest) = masters.split_first().context("there are masters")?;
        for (other, bus) in rest {
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {bus}", other.port());
            ask(first.0.port(), &meet).await?;
        }
        let masters = masters.into_iter().map(|(master, _)| master).collect();
        let cluster = Self { masters };
        cluster.until_ready().await?;
        Ok(cluster)
    }

    /// Where clients find the rest: the URL of the first master.
    #[must_use]
    pub fn url(&self) -> String {
        self.masters[0].url()
    }

    /// Its masters, by their slots.
    #[must_use]
    pub fn masters(&self) -> &[RedisServer] {
        &self.masters
    }

    /// Kills every master the hard way.
    pub async fn kill9(&self) {
        for master in &self.masters {
            master.kill9().await;
        }
    }

    /// Starts all again on the same ports and data.
    ///
    /// # Errors
    /// As [`RedisCluster::start`].
    pub async fn restart(&mut self) -> Result<()> {
        for master in &mut self.masters {
            master.restart().await?;
        }
        self.until_ready().await
    }

    /// Moves a slot with all of its keys from one master to another, as `redis-cli --cluster reshard` does.
    ///
    /// # Errors
    /// When one of them refuses.
    pub async fn move_slot(&self, slot: u16, from: usize, to: usize) -> Result<()> {
        self.begin_to_move(slot, from, to).await?;
        let (from, to) = (self.masters[from].port(), self.masters[to].port());
        loop {
            let keys = ask(from, &format!("CLUSTER GETKEYSINSLOT {slot} 100")).await?;
            let keys: Vec<&str> = keys.lines().skip(1).collect();
            // A length, and a key.
            let keys: Vec<&str> = keys
                .chunks(2)
                .filter_map(|pair| pair.get(1).copied())
                .collect();
            if keys.is_empty() {
                break;
            }
            for key in keys {
                ask(from, &format!("MIGRATE 127.0.0.1 {to} \"{key}\" 0 5000")).await?;
            }
        }
        let owner = self.id(to).await?;
        for port in [to, from] {
            ask(port, &format!("CLUSTER SETSLOT {slot} NODE {owner}")).await?;
        }
        Ok(())
    }

    /// Begins to move a slot: what isn't there yet is at the other master, which takes it when it is asked to.
    ///
    /// # Errors
    /// When one of them refuses.
    pub async fn begin_to_move(&self, slot: u16, from: usize, to: usize) -> Result<()> {
        let (from, to) = (self.masters[from].port(), self.masters[to].port());
        let (owner, taker) = (self.id(from).await?, self.id(to).await?);
        ask(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {owner}")).await?;
        ask(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {taker}")).await?;
        Ok(())
    }

    async fn id(&self, port: u16) -> Result<String> {
        let id = ask(port, "CLUSTER MYID").await?;
        Ok(id.lines().nth(1).unwrap_or_default().to_owned())
    }

    /// Ready means that each knows who has which slots.
    async fn until_ready(&self) -> Result<()> {
        eventually(READY_WITHIN, async || {
            for master in &self.masters {
                let info = ask(master.port(), "CLUSTER INFO").await?;
                for sign in [
                    "cluster_state:ok",
                    "cluster_slots_ok:16384",
                    "cluster_size:3",
                ] {
                    ensure!(info.contains(sign), "{info}");
                }
            }
            Ok(())
        })
        .await
    }
}

/// What the server answers to one command, without the signs of the protocol's first line.
async fn ask(port: u16, command: &str) -> Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let mut stream = BufReader::new(stream.context("connecting")?);
    stream
        .write_all(format!("{command}\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    ensure!(!answer.starts_with('-'), "{command}: {answer}");
    let length = |line: &str, sign| line.strip_prefix(sign)?.trim().parse::<usize>().ok();
    if let Some(length) = length(&answer, '$') {
        let mut body = vec![0; length + 2];
        stream.read_exact(&mut body).await?;
        answer += &String::from_utf8_lossy(&body);
    }
    for _ in 0..length(&answer, '*').unwrap_or_default() * 2 {
        stream.read_line(&mut answer).await?;
    }
    Ok(answer.replace('\r', ""))
}
