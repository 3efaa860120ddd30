//! What an HTTP target holds of all users, where it speaks the protocol of docs/RECEIVER.md: signed questions, answers
//! in hashes that only those can make who have the secret.

use std::{ops::Range, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::{StatusCode, Url};
use serde::de::DeserializeOwned;
use usersync_core::json;
use usersync_digest::{
    Answer, Cut, Digest, Entry, Extent, Key, RowHash, Side, SideError, document,
    http::{Digests, Question, Users},
};

use super::{
    HttpTarget,
    answer::{self, Body},
    signer::Signer,
};
use crate::{Action, Delivery, Failure, Holdings, Outcome, Unchecked, shown};

/// How long an answer may take: the target looks at everybody.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest answer read.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Everybody an HTTP target holds.
pub(super) struct HttpHoldings<'a> {
    target: &'a HttpTarget,
    key: &'a Key,
}

/// Why a question has no answer.
enum Refused {
    /// Nobody there understands it.
    Unknown,
    Failed(Failure),
}

impl<'a> HttpHoldings<'a> {
    /// Asks whether the target answers at all.
    pub(super) async fn of(target: &'a HttpTarget) -> Result<Box<dyn Holdings + 'a>, Unchecked> {
        let instead = |why: &'static str| match target.read_url {
            Some(_) => Unchecked::OneByOne(why),
            None => Unchecked::Never(why),
        };
        let Some(Signer { key, .. }) = &target.caller.signer else {
            return Err(instead("digests need a secret"));
        };
        let holdings = Self { target, key };
        let nothing = Question {
            shift: 0,
            buckets: Vec::new(),
            fields: holdings.fields(),
        };
        match holdings.ask::<Digests>("digest", &nothing).await {
            Ok(_) => Ok(Box::new(holdings)),
            Err(Refused::Unknown) => Err(instead("the target answers no digests")),
            Err(Refused::Failed(failure)) => Err(failure.into()),
        }
    }

    fn fields(&self) -> Vec<String> {
        self.target
            .members
            .iter()
            .map(|&member| member.to_owned())
            .collect()
    }

    fn question(&self, cut: &Cut, buckets: &[Range<u64>]) -> Result<Question, SideError> {
        let question = Question::about(cut, buckets, &self.target.members);
        question.ok_or_else(|| SideError::new("an HTTP target is asked by hashes of ids"))
    }

    /// Asks, and reads the answer with its length.
    async fn ask<T: DeserializeOwned>(
        &self,
        what: &str,
        question: &Question,
    ) -> Result<(T, u64), Refused> {
        let failed = |reason: &'static str| Refused::Failed(Failure::new(reason));
        let caller = &self.target.caller;
        let id = format!("{what}-{}", Timestamp::now().as_nanosecond());
        let request = caller.request(&id, question, Signer::sign_with_current);
        let mut request = request.map_err(Refused::Failed)?;
        *request.method_mut() = reqwest::Method::POST;
        *request.url_mut() = below(&caller.url, what);
        *request.timeout_mut() = Some(PATIENCE);
        let sent = self.target.client.send(request).await;
        let response = sent.map_err(|error| Refused::Failed(error.into()))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = answer::read(response, ANSWER_BYTES).await;
        let body = body.map_err(|error| Refused::Failed(Failure::new(answer::describe(&error))))?;
        match (status, answer::classify(status, &headers), body) {
            (StatusCode::OK, _, Body::Whole(body)) => {
                let read = json::read(&body);
                let answer =
                    read.map_err(|_| failed("the target answers something else than digests"))?;
                Ok((answer, body.len() as u64))
            }
            (StatusCode::OK, _, Body::TooLong) => Err(failed("the target's answer is too long")),
            (
                StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::NOT_IMPLEMENTED,
                ..,
            ) => Err(Refused::Unknown),
            (
                _,
                Outcome::Transient(failure)
                | Outcome::Permanent(failure)
                | Outcome::Fault(failure)
                | Outcome::Gone(failure),
                _,
            ) => Err(Refused::Failed(failure)),
            _ => Err(failed("the target answers something else than digests")),
        }
    }
}

/// `what` below the path that users are delivered to.
fn below(url: &Url, what: &str) -> Url {
    let mut below = url.clone();
    below.set_path(&format!("{}/{what}", url.path().trim_end_matches('/')));
    below
}

impl From<Refused> for SideError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown => Self::new("the target answers no digests any more"),
            Refused::Failed(failure) => Self::new(failure.reason),
        }
    }
}

#[async_trait]
impl Side for HttpHoldings<'_> {
    async fn extent(&self) -> Result<Extent, SideError> {
        Ok(Extent::Texts)
    }

    fn seeks(&self, _cut: &Cut) -> bool {
        false
    }

    async fn digest(
        &self,
        cut: &Cut,
        buckets: &[Range<u64>],
    ) -> Result<Answer<(u64, Digest)>, SideError> {
        let question = self.question(cut, buckets)?;
        let (digests, bytes) = self.ask::<Digests>("digest", &question).await?;
        let items = digests.read().ok_or_else(broken)?;
        Ok(Answer { items, bytes })
    }

    async fn list(&self, cut: &Cut, buckets: &[Range<u64>]) -> Result<Answer<Entry>, SideError> {
        let question = self.question(cut, buckets)?;
        let (users, bytes) = self.ask::<Users>("list", &question).await?;
        let items = users.read().ok_or_else(broken)?;
        Ok(Answer { items, bytes })
    }
}

fn broken() -> SideError {
    SideError::new("the target's digests break the contract")
}

impl Holdings for HttpHoldings<'_> {
    fn side(&self) -> &dyn Side {
        self
    }

    fn expected(&self, delivery: &Delivery) -> Option<RowHash> {
        if delivery.action != Action::Upsert {
            return None;
        }
        let told = shown::document(&delivery.members, &shown::HTTP);
        let row = document(&delivery.user_id.to_string(), told);
        Some(row.keyed(self.key))
    }
}
