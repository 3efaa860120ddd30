//! The relay with TLS on both of its links: a main database and a NATS server by a private authority, good and bad.

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use sqlx::{
    Connection as _, MySqlConnection,
    mysql::{MySqlConnectOptions, MySqlSslMode},
};
use usersync_stack::Stack;

use super::{Main, Server};
use crate::readiness::{Asked, wrong};

/// Whatever certificate the server shows, for the pool of a test asks for none.
async fn three_more_rows(main: &Main, from: u64) -> Result<()> {
    let (ann, bob) = (from, from + 1);
    main.run(&format!(
        "INSERT INTO people (uid, username) VALUES ({ann}, 'ann'), ({bob}, 'bob')"
    ))
    .await?;
    main.run(&format!("UPDATE people SET n = 1 WHERE uid = {ann}"))
        .await
}

async fn waiting(main: &Main) -> Result<i64> {
    main.number("SELECT COUNT(*) FROM user_outbox WHERE state = 0")
        .await
}

/// What is in the table is in the states, by one event for each change.
async fn is_relayed(main: &Main, stack: &Stack) -> Result<()> {
    main.equals_the_states(stack).await?;
    main.every_user_is_told_of_in_order(stack).await
}

#[tokio::test]
async fn changes_in_a_mariadb_that_takes_nobody_without_tls_become_states() -> Result<()> {
    let main = Main::mariadb_secured().await?;
    let Server::MariaDb(server, _) = &main.server else {
        anyhow::bail!("another server");
    };
    // By the same password that opens over TLS.
    let plain: MySqlConnectOptions = server.url_with_password().parse()?;
    let plain = plain.ssl_mode(MySqlSslMode::Disabled);
    let refused = MySqlConnection::connect_with(&plain).await.err();
    let refused = refused.context("it takes clients without TLS")?.to_string();
    ensure!(refused.contains("Access denied"), "{refused}");

    main.install().await?;
    let stack = main.stack(1).await?;
    three_more_rows(&main, 1).await?;
    main.run("DELETE FROM people WHERE uid = 2").await?;
    is_relayed(&main, &stack).await
}

#[tokio::test]
async fn a_main_database_with_a_bad_certificate_is_named_and_read_once_it_has_a_good_one()
-> Result<()> {
    let mut main = Main::mariadb_secured().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let gateway = Asked::of(stack.gateway());
    three_more_rows(&main, 1).await?;
    is_relayed(&main, &stack).await?;
    for (from, shown, told) in [
        (
            10,
            "expired",
            "its certificate has expired: renew it at the server",
        ),
        (
            20,
            "wrong-host",
            "its certificate is another host's: the host in `url` has to be in it",
        ),
    ] {
        let began = Timestamp::now();
        main.show(shown).await?;
        three_more_rows(&main, from).await?;
        let said = gateway
            .until_wrong(503, "source main", &format!("no TLS: {told}"), began)
            .await?;
        ensure!(wrong(&said) == ["source main"], "{said}");
        ensure!(waiting(&main).await? == 3, "{shown}: rows were read");

        main.renew().await?;
        gateway.until_well().await?;
        is_relayed(&main, &stack).await.context(shown)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_nats_server_with_a_bad_certificate_is_told_nothing_until_it_has_a_good_one() -> Result<()>
{
    let main = Main::mariadb_secured().await?;
    main.install().await?;
    let mut stack = main.stack(1).await?;
    let gateway = Asked::of(stack.gateway());
    let pid = stack.gateway().pid();
    for (from, shown, told) in [
        (1, "expired", "certificate expired"),
        (10, "wrong-host", "not valid for name \"127.0.0.1\""),
    ] {
        let certificates = stack.nats.certificates().context("no certificates")?;
        certificates.show(shown)?;
        let began = Timestamp::now();
        stack.nats.restart().await?;
        three_more_rows(&main, from).await?;
        gateway.until_wrong(503, "nats", told, began).await?;
        ensure!(waiting(&main).await? == 3, "{shown}: rows were published");

        let certificates = stack.nats.certificates().context("no certificates")?;
        certificates.renew("server")?;
        stack.nats.reload()?;
        gateway.until_well().await?;
        is_relayed(&main, &stack).await.context(shown)?;
    }
    ensure!(stack.gateway().pid() == pid, "it was started again");
    Ok(())
}
