//! Digests and lists of the store's users: what a check of this copy is answered instead of the users themselves.

use axum::http::StatusCode;
use serde_json::{Map, Value};
use usersync_digest::{
    Cut, Entry, Key, RowHash, Tally, document,
    http::{Digests, MOST_USERS, Question, Users},
};

use crate::{
    problem::Problem,
    store::{HeldUser, StoreError, UserStore},
};

/// Users read from the store at once.
const PAGE: usize = 1_000;
/// The members a document can be made of.
const MEMBERS: [&str; 3] = ["username", "email", "data"];

/// Why a question isn't answered.
pub(crate) enum Unanswered {
    Refused(Problem),
    Store(StoreError),
}

/// Reads the body of a question.
pub(crate) fn read(body: &[u8]) -> Result<Question, Problem> {
    let wrong = |detail| Problem::new(StatusCode::BAD_REQUEST, detail);
    let question: Question = serde_json::from_slice(body)
        .map_err(|_| wrong("expected shift, buckets and fields; see the protocol of digests"))?;
    let known = |field: &String| MEMBERS.contains(&field.as_str());
    if !question.fields.iter().all(known) {
        return Err(wrong("fields: expected username, email and data"));
    }
    Ok(question)
}

/// The digests asked for.
pub(crate) async fn digest(
    store: &impl UserStore,
    question: &Question,
    key: &Key,
) -> Result<Digests, Unanswered> {
    let (cut, buckets) = cut(question)?;
    let mut tally = Tally::new(cut, &buckets);
    if buckets.is_empty() {
        // Only whether there is an answer is asked.
        page(store, None, 1).await?;
        return Ok(Digests::default());
    }
    let each = |id: &str, hash| {
        tally.add(id, hash);
        Ok(())
    };
    scan(store, question, key, each).await?;
    Ok(tally.digests().into())
}

/// The users in the buckets asked for.
pub(crate) async fn list(
    store: &impl UserStore,
    question: &Question,
    key: &Key,
) -> Result<Users, Unanswered> {
    let (cut, buckets) = cut(question)?;
    let mut users = Vec::new();
    let each = |id: &str, hash: RowHash| {
        let bucket = cut.bucket(id);
        let asked = |bucket: u64| {
            let after = buckets.partition_point(|range| range.end <= bucket);
            buckets
                .get(after)
                .is_some_and(|range| range.contains(&bucket))
        };
        if !bucket.is_some_and(asked) {
            return Ok(());
        }
        if users.len() == MOST_USERS {
            let detail = format!("more than {MOST_USERS} users are in these buckets");
            let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail);
            return Err(Unanswered::Refused(problem));
        }
        let id = id.into();
        users.push(Entry { id, hash });
        Ok(())
    };
    scan(store, question, key, each).await?;
    Ok(users.into())
}

fn cut(question: &Question) -> Result<(Cut, Vec<std::ops::Range<u64>>), Unanswered> {
    question.read().ok_or_else(|| {
        let detail = "buckets: expected at most 16384, ascending, within 2^(32 - shift)";
        Unanswered::Refused(Problem::new(StatusCode::BAD_REQUEST, detail))
    })
}

/// Goes through all users, a page at a time.
async fn scan(
    store: &impl UserStore,
    question: &Question,
    key: &Key,
    mut each: impl FnMut(&str, RowHash) -> Result<(), Unanswered>,
) -> Result<(), Unanswered> {
    let mut last = None;
    loop {
        let users = page(store, last.as_ref(), PAGE).await?;
        let Some(user) = users.last() else {
            return Ok(());
        };
        last = Some(user.user_id.clone());
        for user in users {
            let id = user.user_id.to_string();
            let row = document(&id, members(user, &question.fields));
            each(&id, row.keyed(key))?;
        }
    }
}

async fn page(
    store: &impl UserStore,
    after: Option<&usersync_core::user_id::UserId>,
    most: usize,
) -> Result<Vec<HeldUser>, Unanswered> {
    let page = store.page(after, most).await.map_err(Unanswered::Store)?;
    page.ok_or_else(|| {
        let detail = "this service answers no digests";
        Unanswered::Refused(Problem::new(StatusCode::NOT_IMPLEMENTED, detail))
    })
}

fn members(user: HeldUser, fields: &[String]) -> Map<String, Value> {
    let text = |text: Option<String>| text.map_or(Value::Null, Value::from);
    let all = [
        ("username", text(user.username)),
        ("email", text(user.email)),
        ("data", user.data),
    ];
    let asked = all
        .into_iter()
        .filter(|(name, _)| fields.iter().any(|field| field == name));
    asked
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
