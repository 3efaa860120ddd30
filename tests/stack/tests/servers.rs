//! The servers of a stack: they start on free ports, keep their data through a kill -9, and nats.conf takes
//! effect.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::jetstream::{self, stream};
use serde_json::Value;
use usersync_stack::{
    ArcadeDbServer, Directory, MariaDbServer, MySqlServer, NatsServer, PgBouncerServer,
    PostgresServer, RedisCluster, RedisServer, Signal, eventually, free_port, http,
};

#[tokio::test]
async fn nats_keeps_its_data_through_a_kill() -> Result<()> {
    let dir = Directory::temporary()?;
    let mut server = NatsServer::start(dir.path()).await?;
    let url = server.test_url();

    let context = jetstream::new(usersync_stack::connect(&url).await?);
    let config = stream::Config {
        name: "KEPT".to_owned(),
        subjects: vec!["kept.*".to_owned()],
        ..Default::default()
    };
    context.create_stream(config).await?;
    for number in 0..100 {
        context
            .publish(format!("kept.{number}"), "".into())
            .await?
            .await?;
    }

    let pid = server.process().pid();
    server.kill9().await;
    assert!(!server.process().is_running());
    server.restart().await?;
    assert_ne!(server.process().pid(), pid);
    assert_eq!(server.test_url(), url);

    let context = jetstream::new(usersync_stack::connect(&url).await?);
    let info = context.get_stream("KEPT").await?.get_info().await?;
    assert_eq!(info.state.messages, 100);
    server.stop(Duration::from_secs(10)).await
}

#[tokio::test]
async fn what_nats_conf_asks_for_takes_effect() -> Result<()> {
    let dir = Directory::temporary()?;
    let server = NatsServer::start(dir.path()).await?;
    let client = http::client();
    let read = async |path: &str| -> Result<Value> {
        let text = http::get_text(&client, &format!("{}{path}", server.monitor_url())).await?;
        Ok(serde_json::from_str(&text)?)
    };

    let varz = read("/varz").await?;
    for (name, value) in [
        ("server_name", Value::from("usersync")),
        ("host", "127.0.0.1".into()),
        ("http_host", "127.0.0.1".into()),
        ("max_payload", (1 << 20).into()),
        ("max_connections", 4096.into()),
        ("max_pending", (64 << 20).into()),
        ("ping_max", 2.into()),
        // Durations are answered in nanoseconds.
        ("ping_interval", 20_000_000_000_i64.into()),
        ("write_deadline", 10_000_000_000_i64.into()),
    ] {
        assert_eq!(varz[name], value, "{name} in /varz");
    }

    let config = &read("/jsz").await?["config"];
    assert_eq!(config["sync_interval"], 100_000_000, "100 ms");
    assert_eq!(config["max_storage"], 64_u64 << 30);
    assert_eq!(config["max_memory"], 256 << 20);
    let store = config["store_dir"].as_str().unwrap_or_default();
    assert!(store.starts_with(&*dir.path().to_string_lossy()), "{store}");
    Ok(())
}

#[tokio::test]
async fn servers_side_by_side_do_not_meet() -> Result<()> {
    let (left, right) = (Directory::temporary()?, Directory::temporary()?);
    let (left, right) = tokio::try_join!(
        NatsServer::start(left.path()),
        NatsServer::start(right.path())
    )?;
    assert_ne!(left.port(), right.port());
    Ok(())
}

#[tokio::test]
async fn a_server_that_can_not_start_says_why() -> Result<()> {
    let dir = Directory::temporary()?;
    let conf = dir.path().join("bad.conf");
    std::fs::write(&conf, "max_payload: 1MB\nmax_playload: 1MB\n")?;
    let error = NatsServer::start_with_conf(dir.path(), &conf)
        .await
        .unwrap_err();
    let message = error.to_string();
    assert!(message.contains("ended while starting"), "{message}");
    assert!(
        message.contains("max_playload"),
        "the log is shown: {message}"
    );
    Ok(())
}

#[tokio::test]
async fn redis_keeps_its_data_through_a_kill() -> Result<()> {
    let dir = Directory::temporary()?;
    let mut server = RedisServer::start(dir.path()).await?;
    assert_eq!(redis(server.port(), "SET user:42 ann").await?, "+OK");
    server.kill9().await;
    server.restart().await?;
    assert_eq!(redis(server.port(), "GET user:42").await?, "$3\r\nann");
    server.stop(Duration::from_secs(10)).await
}

#[tokio::test]
async fn a_paused_server_is_still_running_and_dies_on_drop() -> Result<()> {
    let dir = Directory::temporary()?;
    let server = RedisServer::start(dir.path()).await?;
    let port = server.port();
    server.process().signal(Signal::SIGSTOP)?;
    assert!(server.process().is_running());
    drop(server);
    eventually(Duration::from_secs(5), async || {
        let answer = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        ensure!(answer.is_err(), "port {port} is still open");
        Ok(())
    })
    .await
}

/// Sends one command and reads its short answer.
async fn redis(port: u16, command: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream
        .write_all(format!("{command}\r\n").as_bytes())
        .await?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer[..length])
        .trim_end()
        .to_owned())
}

#[tokio::test]
async fn databases_start_again_after_a_kill_and_stop_cleanly() -> Result<()> {
    let dir = Directory::temporary()?;
    let mut mariadb = MariaDbServer::start(dir.path()).await?;
    let mut postgres = PostgresServer::start(dir.path()).await?;
    let mut arcadedb = ArcadeDbServer::start(dir.path()).await?;
    let urls = [mariadb.url(), postgres.url(), arcadedb.url()];

    mariadb.kill9().await;
    postgres.kill9().await;
    arcadedb.kill9().await;
    let processes = [mariadb.process(), postgres.process(), arcadedb.process()];
    assert!(processes.iter().all(|process| !process.is_running()));
    mariadb.restart().await?;
    postgres.restart().await?;
    arcadedb.restart().await?;
    assert_eq!(urls, [mariadb.url(), postgres.url(), arcadedb.url()]);

    let grace = Duration::from_secs(20);
    mariadb.stop(grace).await?;
    postgres.stop(grace).await
}

#[tokio::test]
async fn the_newer_servers_start_where_they_are() -> Result<()> {
    let dir = Directory::temporary()?;
    if !MySqlServer::is_left_out()? {
        let mut mysql = MySqlServer::start(dir.path()).await?;
        mysql.kill9().await;
        mysql.restart().await?;
        mysql.stop(Duration::from_secs(20)).await?;
    }
    if !PostgresServer::newest_is_left_out()? {
        let mut postgres = PostgresServer::start_newest(dir.path()).await?;
        postgres.restart().await?;
        if !PgBouncerServer::is_left_out()? {
            let pooler = PgBouncerServer::start(dir.path(), &postgres, &[]).await?;
            ensure!(pooler.port() != postgres.port());
        }
    }
    if !RedisServer::valkey_is_left_out()? {
        let home = dir.path().join("valkey");
        let valkey = RedisServer::start_valkey_with(&home, free_port()?, &[]).await?;
        assert_eq!(redis(valkey.port(), "SET user:42 ann").await?, "+OK");
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_has_every_slot_and_moves_them() -> Result<()> {
    let dir = Directory::temporary()?;
    let cluster = RedisCluster::start(dir.path(), &[]).await?;
    let [first, _, third] = cluster.masters() else {
        anyhow::bail!("three masters");
    };
    assert_eq!(redis(third.port(), "SET user:42 ann").await?, "+OK");
    cluster.move_slot(15_880, 2, 0).await?;
    assert_eq!(redis(first.port(), "GET user:42").await?, "$3\r\nann");
    let moved = redis(third.port(), "GET user:42").await?;
    ensure!(moved.starts_with("-MOVED 15880"), "{moved}");
    Ok(())
}
