//! A NATS server that is too old is refused by name and version, by every program and by its `--check`.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use usersync_stack::{Directory, Launch, Profile, free_port, tools};

const GRACE: Duration = Duration::from_secs(20);

/// Says of itself what an old server says, and answers nothing but pings.
async fn old(stream: TcpStream) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let info = r#"{"server_id":"N","server_name":"old-1","version":"2.14.3","proto":1,"headers":true,"jetstream":true,"max_payload":1048576}"#;
    writer
        .write_all(format!("INFO {info}\r\n").as_bytes())
        .await?;
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        if line.starts_with("PING") {
            writer.write_all(b"PONG\r\n").await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_older_server_is_refused_by_name_and_version() -> Result<()> {
    let dir = Directory::temporary()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("nats://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(old(stream));
        }
    });
    for program in ["usersync-gateway", "usersync-worker", "usersync-scheduler"] {
        for check in [true, false] {
            let log = dir.path().join(format!("{program}-{check}.log"));
            let listen = format!("127.0.0.1:{}", free_port()?);
            let launch = Launch::new(program, tools::binary(program, Profile::own())?, log)
                .env("USERSYNC_NATS__URL", &url)
                .args(["--listen", &listen])
                .args(check.then_some("--check"));
            let process = launch.spawn()?;
            let status = process.wait_exit(GRACE).await?;
            let said = process.log_tail();
            let told = "old-1 is nats-server 2.14.3; 2.14.4 or newer is needed";
            ensure!(
                !status.success() && said.contains(told) && said.contains("update it"),
                "{program}, check {check}: {said}"
            );
        }
    }
    Ok(())
}
