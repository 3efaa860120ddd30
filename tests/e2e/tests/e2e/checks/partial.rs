//! A user of whom only some is known: what is known not to be there is cleared at targets, and the rest is left alone.

use anyhow::{Result, ensure};
use serde_json::json;
use usersync_core::check::Class;

use super::{check, counts};
use crate::{
    outbox::Main,
    support::{Bus, only},
};

#[tokio::test]
async fn what_is_null_is_cleared_and_what_is_unknown_stays() -> Result<()> {
    for main in [Main::mariadb().await?, Main::postgres().await?] {
        main.run("ALTER TABLE people ADD sync_version BIGINT NOT NULL DEFAULT 0, ADD sync_deleted BOOLEAN NOT NULL DEFAULT FALSE")
            .await?;
        main.run(
            "INSERT INTO people (uid, username, email, city, n) VALUES (1, 'ann', 'old', 'Ulm', 1)",
        )
        .await?;
        let target = format!(
            "[people]\n{}\ncheck = {{ every = \"0s\" }}\n\
             table = {{ name = \"people\", id = \"uid\", columns = {{ username = \"username\", email = \"email\", city = \"data.city\", n = \"data.n\" }} }}\n",
            main.access()
        );
        let stack = only(target).schedulers(1).start().await?;
        let bus = Bus::connect(&stack).await?;
        bus.publish(
            "user.updated",
            json!({"user_id": 1, "email": null, "data": {"city": null}}),
        )
        .await?;
        bus.until_settled("people").await?;
        let as_told = "SELECT count(*) FROM people WHERE username = 'ann' AND email IS NULL AND city IS NULL AND n = 1";
        ensure!(main.number(as_told).await? == 1, "it isn't as it was told");
        ensure!(check(&bus, "people", json!({})).await?.is_alike());

        main.run("UPDATE people SET email = 'back'").await?;
        let report = check(&bus, "people", json!({})).await?;
        ensure!(counts(&report) == [0, 0, 1, 0], "{report:?}");
        ensure!(report.found[&Class::Different].repaired == 1, "{report:?}");
        ensure!(main.number(as_told).await? == 1, "it isn't repaired");
        stack.stop().await?;
    }
    Ok(())
}
