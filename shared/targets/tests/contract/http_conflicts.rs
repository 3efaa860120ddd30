//! A service with unique emails: hand-overs pass by themselves, cycles where the entry says what is unique.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use anyhow::{Result, bail, ensure};
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use usersync_targets::{Delivery, Outcome, Target};

use crate::{
    clauses::one,
    deliveries::{email, user},
    peer::open,
};

type Emails = Arc<Mutex<BTreeMap<String, Option<String>>>>;

/// Holds emails, each of one user only.
struct Service {
    emails: Emails,
    url: String,
    serving: JoinHandle<()>,
}

impl Service {
    async fn start() -> Result<Self> {
        let emails = Emails::default();
        let app = Router::new()
            .route("/users", post(take))
            .with_state(emails.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/users", listener.local_addr()?);
        let serving = tokio::spawn(async { drop(axum::serve(listener, app).await) });
        Ok(Self {
            emails,
            url,
            serving,
        })
    }

    fn target(&self, more: Value) -> Result<Box<dyn Target>> {
        open(json!({"url": self.url}), more)
    }

    fn held(&self) -> Vec<(String, Option<String>)> {
        let emails = self.emails.lock().expect("a lock");
        emails
            .iter()
            .map(|(id, email)| (id.clone(), email.clone()))
            .collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// One user, or several.
async fn take(State(emails): State<Emails>, Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
    let mut emails = emails.lock().expect("a lock");
    let mut one = |user: &Value| {
        let (id, email) = (
            user["user_id"].to_string(),
            user["email"].as_str().map(str::to_owned),
        );
        let taken = email.is_some()
            && emails
                .iter()
                .any(|(other, held)| *other != id && *held == email);
        match taken {
            true => 409,
            false => {
                emails.insert(id, email);
                200
            }
        }
    };
    match &body {
        Value::Array(users) => {
            let results: Vec<_> = users
                .iter()
                .map(|user| json!({"task_id": user["task_id"], "status": one(user)}))
                .collect();
            (StatusCode::OK, Json(json!(results)))
        }
        user => {
            let status = StatusCode::from_u16(one(user)).unwrap_or_default();
            (status, Json(Value::Null))
        }
    }
}

fn with_email_of(id: u64, version: u64, of: u64) -> Delivery {
    email(
        user(&id.to_string(), version, "ann"),
        &format!("{of}@example.com"),
    )
}

/// Tries everybody again as a worker would, until all are taken; answers after how many rounds.
async fn rounds(target: &dyn Target, mut left: Vec<Delivery>, most: u32) -> Result<u32> {
    for round in 0..most {
        let mut again = Vec::new();
        for part in left.chunks(target.limits().batch) {
            for (delivery, outcome) in part.iter().zip(target.deliver(part).await) {
                match outcome {
                    Outcome::Delivered { .. } => {}
                    Outcome::Conflict(conflict) if !conflict.lasting => {
                        again.push(delivery.clone())
                    }
                    other => bail!("{other:?}"),
                }
            }
        }
        if again.is_empty() {
            return Ok(round + 1);
        }
        left = again;
    }
    bail!("{} are still refused", left.len())
}

#[tokio::test]
async fn an_email_that_is_handed_over_is_taken_with_the_next_attempt() -> Result<()> {
    let service = Service::start().await?;
    let target = service.target(json!({}))?;
    rounds(
        &*target,
        (1..=30).map(|id| with_email_of(id, 5, id)).collect(),
        1,
    )
    .await?;
    // Everybody takes what the next one is about to give up.
    let line = (1..=30).map(|id| with_email_of(id, 6, id + 1)).collect();
    rounds(&*target, line, 30).await?;
    ensure!(
        service.held()[0].1.as_deref() == Some("2@example.com"),
        "{:?}",
        service.held()
    );
    Ok(())
}

#[tokio::test]
async fn a_cycle_is_named_and_ends_only_where_the_entry_says_what_is_unique() -> Result<()> {
    for (batch, members) in [(1, 2), (1, 5), (50, 2), (50, 5)] {
        let service = Service::start().await?;
        let target = service.target(json!({"batch": batch}))?;
        let own = (1..=members).map(|id| with_email_of(id, 5, id)).collect();
        rounds(&*target, own, 1).await?;
        let cycle: Vec<_> = (1..=members)
            .map(|id| with_email_of(id, 6, id % members + 1))
            .collect();
        let before = service.held();
        ensure!(
            rounds(&*target, cycle.clone(), 5).await.is_err(),
            "it ended"
        );
        ensure!(service.held() == before, "{:?}", service.held());
        let Outcome::Conflict(conflict) = one(&*target, cycle[0].clone()).await else {
            bail!("no conflict");
        };
        let reason = conflict.failure.to_string();
        ensure!(
            reason.contains("409") && reason.contains("cycle with user 2"),
            "{reason}"
        );
        ensure!(conflict.holders[0].0.to_string() == "2", "{conflict:?}");
        // Another worker, which has told nobody anything.
        let target = service.target(json!({"batch": batch, "unique": ["email"]}))?;
        rounds(&*target, cycle, 3).await?;
        let held = service.held();
        ensure!(held.iter().all(|(_, email)| email.is_some()), "{held:?}");
        ensure!(held[0].1.as_deref() == Some("2@example.com"), "{held:?}");
    }
    Ok(())
}

#[tokio::test]
async fn whoever_is_refused_for_good_says_what_was_given_up() -> Result<()> {
    let service = Service::start().await?;
    let target = service.target(json!({"unique": ["email"]}))?;
    rounds(
        &*target,
        vec![with_email_of(1, 5, 1), with_email_of(2, 5, 2)],
        1,
    )
    .await?;
    let refused = with_email_of(1, 6, 2);
    ensure!(rounds(&*target, vec![refused.clone()], 3).await.is_err());
    let Outcome::Conflict(conflict) = one(&*target, refused).await else {
        bail!("no conflict");
    };
    let reason = conflict.failure.to_string();
    ensure!(
        reason.contains("user 2") && reason.contains("without its email"),
        "{reason}"
    );
    ensure!(!reason.contains("cycle"), "{reason}");
    let held = service.held();
    ensure!(
        held[0].1.is_none() && held[1].1.as_deref() == Some("2@example.com"),
        "{held:?}"
    );
    Ok(())
}
