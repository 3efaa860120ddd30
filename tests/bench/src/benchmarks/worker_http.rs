//! A real worker empties a full USER_STATE into an HTTP endpoint. The limits: a loop that only pulls and
//! acknowledges, and the naive one, a task per message that posts and acknowledges.

use anyhow::Result;
use serde_json::json;

use super::{Contest, Rate};
use crate::options::Options;
use crate::report::{Aim, Row};
use crate::rig::Rig;
use crate::sink::Sink;
use crate::states::States;

/// Calls of the naive loop under way at once: as many as the worker makes unless its target says otherwise, so
/// that both are as hard on the endpoint.
const TASKS: &str = "64";
/// Where the naive loop was fastest; 256 are slower again.
const WIDE: &str = "128";

/// Delivers to `path` of the endpoint: `guarded` or `unguarded`.
pub(super) async fn run(options: &Options, name: &str, path: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let sink = Sink::start(&rig).await?;
    let url = sink.url(path);
    let users = options.events();
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
    let contest = Contest::hold(options, name, "naive loop", deliver, async || {
        post(TASKS).await
    })
    .await?;
    let [rate, cpu, rss] = contest.rows(name, "deliveries/s");
    if path == "unguarded" {
        return Ok(vec![rate]);
    }

    let wide = async || {
        let drained = post(WIDE).await?;
        Ok(Rate(drained.rate))
    };
    let acknowledge = async || {
        let drained = states.bare("bare", &["ack"]).await?;
        Ok(Rate(drained.rate))
    };
    let (wide_name, bare_name) = (format!("{name}-wide"), format!("{name}-bare"));
    Ok(vec![
        rate.aim(Aim::RatioAtLeast(1.15)),
        cpu.aim(Aim::AtMost(0.025)),
        rss.aim(Aim::AtMost(40.0)),
        contest
            .beside(options, &wide_name, "naive loop, 128 calls", wide, |our| {
                our.rate
            })
            .await?,
        contest
            .beside(options, &bare_name, "pull+ack only", acknowledge, |our| {
                our.rate
            })
            .await?,
    ])
}
