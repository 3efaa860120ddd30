//! Reading every user, page by page.

use anyhow::{Result, ensure};
use usersync_source::Database;

use crate::place::Place;

pub(crate) async fn pages_hold_every_user_once(place: &Place) -> Result<()> {
    for (kind, id) in [
        ("BIGINT", "n * 7919 % 1000"),
        (
            "VARCHAR(20)",
            place.pick(["CONCAT('u-', n)", "'u-' || n", "'u-' || n"]),
        ),
    ] {
        let mut client = place.client().await?;
        client
            .run(&format!(
                "CREATE TABLE people (uid {kind} PRIMARY KEY, username VARCHAR(50))"
            ))
            .await?;
        client
            .run(&format!(
                "INSERT INTO people WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 999) \
                 SELECT {id}, 'x' FROM numbers"
            ))
            .await?;
        let config = place.config("people", "uid", &[])?;
        let mut database = Database::connect(&config).await?;
        let layout = database.layout(false).await?;
        let (mut seen, mut after) = (std::collections::BTreeSet::new(), None);
        loop {
            let page = database.page(&layout, after.as_deref(), 77).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            for row in page {
                ensure!(seen.insert(row.id.clone()), "{} came twice", row.id);
            }
        }
        ensure!(seen.len() == 1_000, "{} users", seen.len());
        place.clean(&config).await?;
    }
    Ok(())
}
