//! Batch mode: several users in one call, and what the target says of each of them.

use std::time::Instant;

use reqwest::{StatusCode, header::HeaderMap};
use serde::Deserialize;
use usersync_core::json;

use super::{
    HttpTarget,
    answer::{self, Body},
};
use crate::{Delivery, Failure, Outcome};

/// The most of an answer that is read: 1,000 results of a kilobyte.
const ANSWER_BYTES: usize = 1024 * 1024;

/// What the target says of one user. Its `error` is for its own logs: it may hold data of the user.
#[derive(Deserialize)]
struct Item {
    task_id: Option<String>,
    status: u16,
}

impl HttpTarget {
    /// Delivers `batch` in one call, or in two halves and so on where the target says 413.
    pub(super) async fn deliver_several(&self, batch: &[Delivery]) -> Vec<Outcome> {
        let started = Instant::now();
        let mut outcomes = Vec::with_capacity(batch.len());
        // The parts still to be delivered, the next one last.
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            if started.elapsed() >= self.timeout {
                let failure = Failure::new("timed out: the batch had to be halved too often");
                outcomes.extend(vec![Outcome::Transient(failure); part.len()]);
                continue;
            }
            match self.call(part).await {
                Some(found) => outcomes.extend(found),
                None => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
        outcomes
    }

    /// One call; `None` when it is too large and can be halved.
    async fn call(&self, part: &[Delivery]) -> Option<Vec<Outcome>> {
        let all = |outcome: Outcome| Some(vec![outcome; part.len()]);
        let request = match self.caller.several(part) {
            Ok(request) => request,
            Err(failure) => return all(Outcome::Permanent(failure)),
        };
        let response = match self.client.send(request).await {
            Ok(response) => response,
            Err(error) => return all(answer::unanswered(error)),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let body = answer::read(response, ANSWER_BYTES).await;
        if status == StatusCode::PAYLOAD_TOO_LARGE && part.len() > 1 {
            return None;
        }
        if !status.is_success() {
            return all(answer::classify(status, &headers));
        }
        let outcomes = match body {
            Ok(Body::Whole(body)) => items(status, &headers, &body, part),
            Ok(Body::TooLong) => Err("the target's answer is too long"),
            Err(error) => return all(answer::unanswered(error.into())),
        };
        match outcomes {
            Ok(outcomes) => Some(outcomes),
            Err(reason) => all(Outcome::Transient(Failure {
                code: Some(status.as_u16().to_string().into()),
                ..Failure::new(reason)
            })),
        }
    }
}

/// What became of each user, as a 2xx answer says.
fn items(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    batch: &[Delivery],
) -> Result<Vec<Outcome>, &'static str> {
    if json::unmarked(body).trim_ascii().is_empty() {
        return Ok(vec![answer::classify(status, headers); batch.len()]);
    }
    let items: Vec<Item> = json::read(body).map_err(|_| {
        "the target answered 2xx to a batch, and neither an empty body nor an array of {\"status\"} for each user"
    })?;
    if items.len() != batch.len() {
        return Err("the target's results are not as many as the users in the batch");
    }
    let mut outcomes = Vec::with_capacity(batch.len());
    for (item, delivery) in items.into_iter().zip(batch) {
        if item.task_id.is_some_and(|id| id != delivery.task_id) {
            return Err("the target's results are not in the order of the batch");
        }
        let status = StatusCode::from_u16(item.status);
        let status = status.map_err(|_| "the target's results have a `status` that is none")?;
        outcomes.push(match answer::classify(status, headers) {
            // It says so of this user, not of itself.
            Outcome::Gone(failure) => Outcome::Permanent(failure),
            outcome => outcome,
        });
    }
    Ok(outcomes)
}
