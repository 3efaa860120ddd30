//! A NATS server that is too old is refused by name and version, by every program and by its `--check`.

use std::time::Duration;

use anyhow::{Result, ensure};
use usersync_stack::{Directory, Launch, Profile, free_port, http, tools};

const GRACE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn an_older_server_is_refused_by_name_and_version() -> Result<()> {
    let dir = Directory::temporary()?;
    let (port, monitor) = (free_port()?, free_port()?);
    let store = dir.path().join("nats");
    let server = Launch::new(
        "old",
        tools::old_nats_server()?,
        dir.path().join("nats.log"),
    )
    .args([
        "-a",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-m",
        &monitor.to_string(),
    ])
    .args(["-n", "old-1", "-js", "-sd"])
    .arg(store)
    .spawn()?;
    let client = http::client();
    let healthy = format!("http://127.0.0.1:{monitor}/healthz");
    let is_ready = async || http::get_text(&client, &healthy).await.map(drop);
    server.until_ready(GRACE, is_ready).await?;
    let url = format!("nats://127.0.0.1:{port}");
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
