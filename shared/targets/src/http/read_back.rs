//! What an HTTP target shows of a user, compared with what it was told.

use futures_util::{StreamExt, stream::FuturesOrdered};
use reqwest::{Method, Request, StatusCode, Url};
use serde_json::Value;
use url::form_urlencoded;
use usersync_core::{json, target::TargetConfig, user_id::UserId};

use super::{
    HttpTarget,
    answer::{self, Body},
};
use crate::{Action, ConfigError, Delivery, Failure, Outcome, Standing, shown};

/// Where the id of the user goes.
const ID: &str = "{id}";
/// Users read at the same time.
const READS: usize = 16;
/// The longest document read.
const DOCUMENT_BYTES: usize = 1024 * 1024;

/// Where users can be read, where that is known.
///
/// # Errors
/// When it is to be done and can't.
pub(super) fn template(config: &TargetConfig) -> Result<Option<String>, ConfigError> {
    let Some(template) = config.read_url.as_deref() else {
        return match config.verify {
            true => Err(ConfigError::Verify(
                "an HTTP target is read at `read_url`, which is missing",
            )),
            false => Ok(None),
        };
    };
    let example = template.replace(ID, "1").parse::<Url>();
    let url = example.map_err(|_| ConfigError::ReadUrl)?;
    let fits = matches!(url.scheme(), "http" | "https") && url.has_host();
    if !fits || !template.contains(ID) {
        return Err(ConfigError::ReadUrl);
    }
    if super::has_user(&url) {
        return Err(ConfigError::ReadUrlUser);
    }
    Ok(Some(template.to_owned()))
}

impl HttpTarget {
    /// Reads every user of `batch` and says of each how the target stands to what it was told.
    pub(super) async fn read_back(&self, template: &str, batch: &[Delivery]) -> Vec<Standing> {
        let mut standings = Vec::with_capacity(batch.len());
        for some in batch.chunks(READS) {
            let mut reads = FuturesOrdered::new();
            for delivery in some {
                reads.push_back(self.read_one(template, delivery));
            }
            standings.extend(reads.collect::<Vec<_>>().await);
        }
        standings
    }

    async fn read_one(&self, template: &str, delivery: &Delivery) -> Standing {
        let Some(url) = place(template, &delivery.user_id) else {
            // It is about this user alone, and none of the target's faults.
            let reason = "`read_url` is none with this user's id in it";
            return Standing::Unknown(Outcome::Permanent(Failure::new(reason)));
        };
        let response = match self.client.send(Request::new(Method::GET, url)).await {
            Ok(response) => response,
            Err(error) => return Standing::Unknown(answer::unanswered(error)),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match answer::read(response, DOCUMENT_BYTES).await {
            Ok(body) => body,
            Err(error) => return Standing::Unknown(answer::unanswered(error.into())),
        };
        let missing = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);
        if missing {
            return match delivery.action {
                Action::Delete | Action::Disable => Standing::Same,
                Action::Upsert => Standing::Missing,
            };
        }
        match (answer::classify(status, &headers), body) {
            (Outcome::Delivered { .. }, Body::Whole(body)) => {
                match json::value(json::unmarked(&body)) {
                    Ok(document @ Value::Object(_)) => {
                        shown::compare(&document, delivery, &shown::HTTP)
                    }
                    _ => unreadable("the target shows no JSON object"),
                }
            }
            (Outcome::Delivered { .. }, Body::TooLong) => {
                unreadable("what the target shows is too long")
            }
            // That the user can't be read says nothing against the user.
            (Outcome::Permanent(failure), _) => Standing::Unknown(Outcome::Transient(failure)),
            (outcome, _) => Standing::Unknown(outcome),
        }
    }
}

/// Where one user is read: the id is percent-encoded, so that it stays one part of the path or of the query.
fn place(template: &str, user_id: &UserId) -> Option<Url> {
    let id = user_id.to_string();
    let before = template.split(ID).next().unwrap_or_default();
    // In a path these two are steps, however they are spelled.
    if matches!(id.as_str(), "." | "..") && !before.contains('?') {
        return None;
    }
    let encoded: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
    template.replace(ID, &encoded).parse().ok()
}

fn unreadable(reason: &'static str) -> Standing {
    Standing::Unknown(Outcome::Transient(Failure::new(reason)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_stays_one_part_of_the_url() {
        let place = |template: &str, id: &str| {
            place(template, &id.parse().unwrap()).map(|url| url.to_string())
        };
        let path = "http://h/users/{id}";
        for (id, expected) in [
            ("42", Some("http://h/users/42")),
            ("a/b?c#d", Some("http://h/users/a%2Fb%3Fc%23d")),
            ("auth0|6f", Some("http://h/users/auth0%7C6f")),
            ("100%", Some("http://h/users/100%25")),
            ("...", Some("http://h/users/...")),
            (".", None),
            ("..", None),
        ] {
            assert_eq!(place(path, id).as_deref(), expected, "{id}");
        }
        let query = place("http://h/users?id={id}", "..&x=+").unwrap();
        assert_eq!(query, "http://h/users?id=..%26x%3D%2B");
    }
}
