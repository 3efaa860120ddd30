//! Targets as they are in life: each call takes its time, or one in some hundreds takes very long. The limits are
//! the naive loop, a task per message, with as many tasks as such loops usually have; and the same with as many as
//! the worker may have calls, which is what the client library and the machine can do.

use anyhow::Result;
use serde_json::json;

use super::{Contest, Rate};
use crate::options::Options;
use crate::report::{Aim, Row};
use crate::rig::Rig;
use crate::sink::Sink;
use crate::states::States;

const TASKS: &str = "64";
/// The most calls that a worker has under way to an HTTP target that doesn't say otherwise.
const WIDE: &str = "1000";

/// Delivers to `path` of the endpoint, `slow` or `stalls`, at least `aim` users a second.
pub(super) async fn run(options: &Options, name: &str, path: &str, aim: f64) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let sink = Sink::start(&rig).await?;
    let url = sink.url(path);
    // Calls of 2 s at the very end are part of any run: it must be long beside them.
    let users = 4 * options.events();
    let states = States::of(&rig, users, &url, json!({})).await?;
    let deliver = async || {
        let drained = states.worker().await?;
        sink.expect(users, "the worker").await?;
        Ok(drained)
    };
    let post = async |tasks| {
        let posting = ["post", "--url", &url, "--tasks", tasks];
        let drained = states.bare("naive", &posting).await?;
        sink.expect(users, "the naive loop").await?;
        Ok(drained)
    };
    let contest = Contest::hold(options, name, "naive loop, 64 calls", deliver, async || {
        post(TASKS).await
    })
    .await?;
    let [rate, cpu, rss] = contest.rows(name, "deliveries/s");
    let wide = async || {
        let drained = post(WIDE).await?;
        Ok(Rate(drained.rate))
    };
    let (wide_name, against) = (format!("{name}-wide"), "naive loop, 1,000 calls");
    let wide = contest.beside(options, &wide_name, against, wide, |our| our.rate);
    Ok(vec![rate.aim(Aim::AtLeast(aim)), cpu, rss, wide.await?])
}
