//! The rules every `UserStore` keeps, against a real file.

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::database;

async fn replica() -> (Replica, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let pool = database::open(&dir.path().join("users.db"), &[SCHEMA])
        .await
        .unwrap();
    (Replica::new(pool), dir)
}

fn ann(version: u64) -> Delivery {
    Delivery {
        task_id: format!("t:42:{version}"),
        event_type: None,
        user_id: 42.into(),
        username: Change::Set("ann".into()),
        email: Change::Set("ann@example.com".into()),
        data: Change::Set(json!({"status": "active", "v": version})),
        deleted: false,
        disable: false,
        partial: false,
        version,
        timestamp: None,
        source: None,
    }
}

async fn stored(replica: &Replica) -> Option<StoredUser> {
    replica.get(&42.into()).await.unwrap()
}

#[tokio::test]
async fn an_older_version_is_not_written_and_an_equal_one_is() {
    let (replica, _dir) = replica().await;
    assert_eq!(replica.apply(ann(7)).await.unwrap(), Applied::Stored);
    assert_eq!(replica.apply(ann(6)).await.unwrap(), Applied::AlreadyNewer);
    let before = stored(&replica).await.unwrap();
    assert_eq!(
        (before.version, before.status.as_deref()),
        (7, Some("active"))
    );
    sqlx::query("UPDATE users SET username = 'eve', data = NULL")
        .execute(&replica.pool)
        .await
        .unwrap();
    assert_eq!(replica.apply(ann(7)).await.unwrap(), Applied::Stored);
    assert_eq!(stored(&replica).await.unwrap(), before);
}

#[tokio::test]
async fn of_versions_that_arrive_at_once_the_newest_stays() {
    let (replica, _dir) = replica().await;
    let all = (1..=40)
        .map(|n| (n * 17) % 41)
        .map(|version| replica.apply(ann(version)));
    for outcome in futures_util::future::join_all(all).await {
        outcome.unwrap();
    }
    let user = stored(&replica).await.unwrap();
    assert_eq!((user.version, user.data["v"].clone()), (40, json!(40)));
}

#[tokio::test]
async fn a_deleted_user_keeps_its_version_and_nothing_else() {
    let (replica, _dir) = replica().await;
    replica.apply(ann(7)).await.unwrap();
    let told = Delivery {
        username: Change::Keep,
        data: Change::Keep,
        deleted: true,
        ..ann(9)
    };
    assert_eq!(replica.apply(told).await.unwrap(), Applied::Stored);
    assert_eq!(stored(&replica).await, None);
    let personal: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM users WHERE coalesce(username, email, data) NOTNULL",
    )
    .fetch_one(&replica.pool)
    .await
    .unwrap();
    assert_eq!(personal, 0);
    assert_eq!(replica.apply(ann(8)).await.unwrap(), Applied::AlreadyNewer);
    assert_eq!(replica.apply(ann(10)).await.unwrap(), Applied::Stored);
}

#[tokio::test]
async fn members_not_told_stay_and_partial_data_is_merged() {
    let (replica, _dir) = replica().await;
    replica.apply(ann(7)).await.unwrap();
    let partial = Delivery {
        username: Change::Keep,
        email: Change::Clear,
        data: Change::Set(json!({"city": "Ulm"})),
        partial: true,
        ..ann(8)
    };
    replica.apply(partial).await.unwrap();
    let user = stored(&replica).await.unwrap();
    assert_eq!((user.username.as_deref(), user.email), (Some("ann"), None));
    assert_eq!(
        user.data,
        json!({"status": "active", "v": 7, "city": "Ulm"})
    );
}

#[tokio::test]
async fn a_local_change_keeps_the_version_and_the_delivery_that_comes_back_wins() {
    let (replica, _dir) = replica().await;
    replica.apply(ann(7)).await.unwrap();
    let mut change = replica.pool.acquire().await.unwrap();
    let changed = Replica::merge_data(&mut change, &42.into(), &json!({"status": "locked"}))
        .await
        .unwrap();
    let changed = changed.unwrap();
    assert_eq!(
        (changed.status.as_deref(), changed.version),
        (Some("locked"), 7)
    );
    assert_eq!(replica.apply(ann(8)).await.unwrap(), Applied::Stored);
    assert_eq!(
        stored(&replica).await.unwrap().status.as_deref(),
        Some("active")
    );
}

#[tokio::test]
async fn ids_differ_by_case_and_pages_follow_their_text() {
    let (replica, _dir) = replica().await;
    for id in ["b", "B", "10", "9"] {
        replica
            .apply(Delivery {
                user_id: id.parse().unwrap(),
                ..ann(7)
            })
            .await
            .unwrap();
    }
    let mut page = Page {
        after: None,
        limit: 3,
    };
    let ids = |users: Vec<StoredUser>| {
        users
            .iter()
            .map(|user| user.user_id.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(replica.list(&page).await.unwrap()), ["10", "9", "B"]);
    page.after = Some("B".parse().unwrap());
    assert_eq!(ids(replica.list(&page).await.unwrap()), ["b"]);
}

#[tokio::test]
async fn disabling_changes_who_is_there_and_nobody_else() {
    let (replica, _dir) = replica().await;
    let disable = |version| Delivery {
        username: Change::Keep,
        email: Change::Keep,
        data: Change::Set(json!({"status": "disabled"})),
        disable: true,
        partial: true,
        ..ann(version)
    };
    replica.apply(disable(6)).await.unwrap();
    assert_eq!(stored(&replica).await, None);
    assert_eq!(replica.apply(ann(5)).await.unwrap(), Applied::AlreadyNewer);
    replica.apply(ann(7)).await.unwrap();
    assert_eq!(
        replica.apply(disable(6)).await.unwrap(),
        Applied::AlreadyNewer
    );
    replica.apply(disable(8)).await.unwrap();
    let user = stored(&replica).await.unwrap();
    assert_eq!(user.data, json!({"status": "disabled", "v": 7}));
    assert_eq!((user.username.as_deref(), user.version), (Some("ann"), 8));
}

#[tokio::test]
async fn pages_tell_everybody_who_is_there_once() {
    let (replica, _dir) = replica().await;
    for (id, deleted) in [
        ("aB", false),
        ("Ab", false),
        ("7", true),
        ("42", false),
        ("z", false),
    ] {
        let delivery = Delivery {
            user_id: id.parse().unwrap(),
            deleted,
            ..ann(7)
        };
        replica.apply(delivery).await.unwrap();
    }
    let (mut told, mut last) = (Vec::new(), None);
    loop {
        let page = replica.page(last.as_ref(), 2).await.unwrap().unwrap();
        assert!(page.len() <= 2);
        let Some(user) = page.last() else { break };
        last = Some(user.user_id.clone());
        told.extend(page);
    }
    let ids: Vec<_> = told.iter().map(|user| user.user_id.to_string()).collect();
    assert_eq!(ids, ["42", "Ab", "aB", "z"]);
    assert_eq!(told[0].username.as_deref(), Some("ann"));
    assert_eq!(told[0].data, json!({"status": "active", "v": 7}));
}
