//! Every name usersync uses in NATS, built and parsed here and nowhere else.
//!
//! docs/SUBJECTS.md shows the same tables; a test holds the two together.

use crate::{event::EventType, target::TargetName, user_id::UserId};

/// What happened, in arrival order.
pub const USER_EVENTS: &str = "USER_EVENTS";
/// The newest state of every user, one message each.
pub const USER_STATE: &str = "USER_STATE";
/// Deliveries asked for: by an operator, a dead-letter replay, or the consistency check.
pub const USER_REPAIR: &str = "USER_REPAIR";
/// Events that intake refused, as they came. Apart from [`USER_DEAD`], which workers read: they hold personal data.
pub const USER_REFUSED: &str = "USER_REFUSED";
/// What could not be delivered.
pub const USER_DEAD: &str = "USER_DEAD";
/// What the server says of messages that ran out of deliveries.
pub const USER_ADVISORY: &str = "USER_ADVISORY";

/// All raw events: two tokens, so that nothing internal matches.
pub const EVENTS: &str = "user.*";
/// What every delivery came to, for a while.
pub const USER_RESULT: &str = "USER_RESULT";
/// What people should know of.
pub const USER_ALERT: &str = "USER_ALERT";
/// Checks asked for, when each comes by itself, and what the last one found.
pub const USER_CHECK: &str = "USER_CHECK";
/// The KV bucket of targets: the truth at run time.
pub const TARGETS_BUCKET: &str = "user_targets";
/// The stream of that bucket.
pub const TARGETS_STREAM: &str = "KV_user_targets";
/// The KV bucket of circuit breakers that aren't closed: `<target>.<worker>`.
pub const BREAKERS_BUCKET: &str = "user_breakers";
/// The KV bucket of checks under way: `<target>`.
pub const CHECKS_BUCKET: &str = "user_checks";
/// The KV bucket of repairs, replays and discards in bulk: `<job id>`.
pub const JOBS_BUCKET: &str = "user_jobs";
/// The KV bucket of outboxes and who relays them: `<source>.<gateway>`.
pub const RELAYS_BUCKET: &str = "user_relays";
/// The KV bucket of workers of targets without a guard: `<target>.<worker>`.
pub const WORKERS_BUCKET: &str = "user_workers";
/// The KV bucket of what intake knows of the streams it works on; publishers can't write it.
pub const EPOCHS_BUCKET: &str = "user_epochs";
/// Its only key.
pub const EPOCHS_KEY: &str = "intake";
/// The KV bucket of the outboxes that gateways relay: `<source>`.
pub const SOURCES_BUCKET: &str = "user_sources";
/// All states.
pub const STATES: &str = "user.state.*";
/// All repairs of all targets.
pub const REPAIRS: &str = "user.repair.*.*";
/// All refused events.
pub const REFUSED_EVENTS: &str = "user.refused.*";
/// Where refused events were kept before [`USER_REFUSED`], in [`USER_DEAD`].
pub const FORMER_REFUSED_EVENTS: &str = "user.dead.gateway.*";
/// All dead letters.
pub const DEAD_LETTERS: &str = "user.dead.>";
/// All delivery results.
pub const RESULTS: &str = "user.result.*";
/// All alert events.
pub const ALERTS: &str = "user.alert.*.*";
/// All of [`USER_CHECK`].
pub const CHECKS: &str = "user.check.>";
/// The checks that wait for a scheduler.
pub const CHECK_REQUESTS: &str = "user.check.*";
/// The advisories kept in [`USER_ADVISORY`].
pub const ADVISORIES: [&str; 2] = [
    "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>",
    "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>",
];

/// The gateway's durable consumer on [`USER_EVENTS`].
pub const INTAKE: &str = "gateway-intake";
/// The priority group the gateways compete in (ADR-42).
pub const INTAKE_GROUP: &str = "intake";
/// The gateways' durable consumer on [`USER_ADVISORY`].
pub const BACKSTOP: &str = "gateway-backstop";
/// The gateways' durable consumer on [`USER_ALERT`] of what a webhook is told.
pub const NOTIFY_WEBHOOK: &str = "gateway-notify-webhook";
/// The gateways' durable consumer on [`USER_ALERT`] of what is mailed.
pub const NOTIFY_EMAIL: &str = "gateway-notify-email";
/// The priority group the gateways compete in (ADR-42) on both.
pub const NOTIFY_GROUP: &str = "notify";
/// The schedulers' durable consumer on [`USER_CHECK`].
pub const CHECKER: &str = "scheduler-checks";
/// The name of the control plane as a NATS service, and the first token of its subjects.
pub const CONTROL: &str = "usersync";
/// The target name under which refused events are counted and the states checked; no real target may have it.
pub const GATEWAY_TARGET: &str = "gateway";

/// The state of one user. Here as everywhere below a user is named by the [token](UserId::token) of their id.
pub fn state(user_id: &UserId) -> String {
    format!("user.state.{}", user_id.token())
}

/// "Deliver this user's newest state to this target now."
pub fn repair(target: &TargetName, user_id: &UserId) -> String {
    format!("user.repair.{target}.{}", user_id.token())
}

/// All repairs of one target.
pub fn repairs_of(target: &TargetName) -> String {
    format!("user.repair.{target}.*")
}

/// All repairs of one user.
pub fn repairs_for(user_id: &UserId) -> String {
    format!("user.repair.*.{}", user_id.token())
}

/// All dead letters of one target.
pub fn dead_letters_of(target: &TargetName) -> String {
    format!("user.dead.{target}.*")
}

/// All dead letters of one user.
pub fn dead_letters_for(user_id: &UserId) -> String {
    format!("user.dead.*.{}", user_id.token())
}

/// An operation of the control plane: `usersync.<group>.<op>`, or `usersync.<group>` for the one without a name.
pub fn control(group: &str, operation: &str) -> String {
    match operation {
        "" => format!("{CONTROL}.{group}"),
        operation => format!("{CONTROL}.{group}.{operation}"),
    }
}

/// What a target's deliveries came to.
pub fn result(target: &TargetName) -> String {
    format!("user.result.{target}")
}

/// "Compare this target with the newest states now"; `target` may also be [`GATEWAY_TARGET`], for the states
/// themselves.
pub fn check(target: &str) -> String {
    format!("user.check.{target}")
}

/// When a target is checked by itself (ADR-51 of NATS).
pub fn check_schedule(target: &str) -> String {
    format!("user.check.schedule.{target}")
}

/// What the last check of a target found, of all users.
pub fn check_result(target: &str) -> String {
    format!("user.check.result.{target}")
}

/// What the last dry run of a check of all users found, which changes nothing that others look at.
pub fn check_result_of_dry_run(target: &str) -> String {
    format!("user.check.result.{target}~dry")
}

/// What the last check of a target found that was to look at some users only. No target has `~` in its name.
pub fn check_result_of_some(target: &str) -> String {
    format!("user.check.result.{target}~some")
}

/// The key in [`CHECKS_BUCKET`] that lets the checks of a target wait while it is there; `pause` is for all.
pub fn check_pause(target: &str) -> String {
    format!("pause.{target}")
}

/// What a `user.check.<target>` subject asks to check.
pub fn target_of_check(subject: &str) -> Option<&str> {
    subject
        .strip_prefix("user.check.")
        .filter(|target| !target.contains('.'))
}

/// Something people should know of a target, or of [`GATEWAY_TARGET`]; `kind` is one token, such as `gone`.
pub fn alert(kind: &str, target: &str) -> String {
    format!("user.alert.{kind}.{target}")
}

/// Asks every worker of a target how it stands (NATS service `usersync-worker`).
pub fn worker_status(target: &TargetName) -> String {
    format!("usersync.worker.status.{target}")
}

/// Asks every worker of a target what it knows of the user named in the body.
pub fn worker_task(target: &TargetName) -> String {
    format!("usersync.worker.task.{target}")
}

/// True for a subject that answers may go to: an inbox, or what the server makes of one whose owner is in another
/// account (`_R_.…`) or cluster (`_GR_.<cluster>.<server>.…`). No client may name those two itself; a test holds the server to it.
pub fn is_inbox(reply: &str) -> bool {
    let reply = match reply.strip_prefix("_GR_.") {
        Some(routed) => routed.splitn(3, '.').nth(2).unwrap_or_default(),
        None => reply,
    };
    let Some((first, rest)) = reply.split_once('.') else {
        return false;
    };
    let mut tokens = rest.split('.');
    (first.starts_with("_INBOX") || first == "_R_")
        && tokens.all(|token| !token.is_empty() && !token.contains(['*', '>', ' ']))
}

/// The key of one worker's breaker in [`BREAKERS_BUCKET`].
pub fn breaker(target: &TargetName, worker: &str) -> String {
    format!("{target}.{worker}")
}

/// The key in [`WORKERS_BUCKET`] of one worker.
pub fn worker(target: &TargetName, worker: &str) -> String {
    format!("{target}.{worker}")
}

/// The key in [`WORKERS_BUCKET`] of the mark that a target's workers have seen last. No target's name begins so.
pub fn refill_mark(target: &TargetName) -> String {
    format!("=refill.{target}")
}

/// The key in [`EPOCHS_BUCKET`] of the mark since which a target was filled last.
pub fn refilled(target: &TargetName) -> String {
    format!("refill={target}")
}

/// The key in [`RELAYS_BUCKET`] of what one gateway says of a source.
pub fn relay(source: &str, gateway: &str) -> String {
    format!("{source}.{gateway}")
}

/// The key in [`JOBS_BUCKET`] of the id of the job that does what `print` stands for.
pub fn claim_of_job(print: &str) -> String {
    format!("same.{print}")
}

/// The id of a delivery, the same on every redelivery; an HTTP target gets it as a header.
pub fn task(target: &TargetName, user_id: &UserId, version: u64) -> String {
    format!("{target}:{}:{version}", user_id.token())
}

/// What could not be delivered to a target.
pub fn dead_letter(target: &TargetName, user_id: &UserId) -> String {
    format!("user.dead.{target}.{}", user_id.token())
}

/// An event that intake refused, by its sequence in [`USER_EVENTS`].
pub fn refused_event(seq: u64) -> String {
    format!("user.refused.{seq}")
}

/// The event type a raw event's subject names, `None` for an unknown one.
pub fn event_type(subject: &str) -> Option<EventType> {
    subject.parse().ok()
}

/// The user a `user.state.<user_id>` subject is about.
pub fn user_of_state(subject: &str) -> Option<UserId> {
    UserId::from_token(subject.strip_prefix("user.state.")?)
}

/// The user a `user.repair.<target>.<user_id>` subject is about.
pub fn user_of_repair(subject: &str) -> Option<UserId> {
    let (_, token) = subject.strip_prefix("user.repair.")?.split_once('.')?;
    UserId::from_token(token)
}

/// Target and user of a `user.dead.<target>.<user_id>` subject, `None` for a refused event.
pub fn of_dead_letter(subject: &str) -> Option<(TargetName, UserId)> {
    target_and_user(subject.strip_prefix("user.dead.")?)
}

/// Target and user of a `user.repair.<target>.<user_id>` subject.
pub fn of_repair(subject: &str) -> Option<(TargetName, UserId)> {
    target_and_user(subject.strip_prefix("user.repair.")?)
}

fn target_and_user(tokens: &str) -> Option<(TargetName, UserId)> {
    let (target, user_id) = tokens.split_once('.')?;
    Some((target.parse().ok()?, UserId::from_token(user_id)?))
}

/// The sequence in USER_EVENTS that a `user.refused.<seq>` subject is about.
pub fn seq_of_refused(subject: &str) -> Option<u64> {
    sequence(subject.strip_prefix("user.refused.")?)
}

/// The same of one of [`FORMER_REFUSED_EVENTS`].
pub fn seq_of_former_refused(subject: &str) -> Option<u64> {
    sequence(subject.strip_prefix("user.dead.gateway.")?)
}

fn sequence(token: &str) -> Option<u64> {
    // One subject for each: "017" and "+17" are none.
    let number: u64 = token.parse().ok()?;
    (number.to_string() == token).then_some(number)
}

/// Names of headers that are our own.
pub mod header {
    /// Why, in words.
    pub const REASON: &str = "Usersync-Reason";
    /// `invalid`, `permanent`, `transient` or `target-fault`.
    pub const CLASS: &str = "Usersync-Class";
    /// How often delivery was tried.
    pub const ATTEMPTS: &str = "Usersync-Attempts";
    /// The version that could not be delivered.
    pub const VERSION: &str = "Usersync-Version";
    /// When this delivery first failed, as far as the worker that gave up has seen; RFC 3339.
    pub const FIRST_FAILURE: &str = "Usersync-First-Failure";
    /// When it last failed; RFC 3339.
    pub const LAST_FAILURE: &str = "Usersync-Last-Failure";
    /// The code the target answered, where its protocol has one: HTTP status, SQLSTATE…
    pub const STATUS_CODE: &str = "Usersync-Status-Code";
    /// The ids, between spaces, of who has a value that must be unique and that the user of a dead letter is to have.
    pub const WAITS_FOR: &str = "Usersync-Waits-For";
    /// The subject the message came on.
    pub const SUBJECT: &str = "Usersync-Subject";
    /// On a state that has no new version: it only remembers an event.
    pub const UNCHANGED: &str = "Usersync-Unchanged";
    /// The length in bytes of a refused event too long to be kept whole; all of it is in USER_EVENTS.
    pub const TRUNCATED: &str = "Usersync-Truncated";
    /// On an entry of the bucket `user_targets` that comes from a catalogue file: the file entry's hash.
    pub const FILE: &str = "Usersync-File";
    /// JSON Pointer (RFC 6901) to the member that made an event invalid.
    pub const POINTER: &str = "Usersync-Pointer";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_to_inboxes_only() {
        for inbox in [
            "_INBOX.a",
            "_INBOX_worker.a.b",
            "_R_.a.b",
            "_GR_.abcdef.abcdefgh._INBOX.a",
        ] {
            assert!(is_inbox(inbox), "{inbox}");
        }
        for other in [
            "",
            "_INBOX",
            "_INBOX.",
            "_INBOX..a",
            "_INBOX.*",
            "_INBOX.>",
            "_R_",
            "user.state.42",
            "user.created",
            "$JS.API.STREAM.PURGE.USER_DEAD",
            "$JS.ACK.USER_STATE.audit.1.1.1.1.0",
            "$KV.user_targets.audit",
            "usersync.users.erase",
            "a._INBOX.b",
            "_GR_.abcdef.abcdefgh.user.created",
        ] {
            assert!(!is_inbox(other), "{other}");
        }
    }

    #[test]
    fn subjects_parse_back_to_what_built_them() {
        let target: TargetName = "unified-auth".parse().unwrap();
        for id in [
            "42",
            "a-B_9",
            "auth0|6f",
            "jane@example.com",
            "*",
            ">",
            "a.b",
        ] {
            let user: UserId = id.parse().unwrap();
            assert_eq!(user_of_state(&state(&user)), Some(user.clone()));
            assert_eq!(user_of_repair(&repair(&target, &user)), Some(user.clone()));
            let both = Some((target.clone(), user.clone()));
            assert_eq!(of_repair(&repair(&target, &user)), both);
            assert_eq!(of_dead_letter(&dead_letter(&target, &user)), both);
            assert_eq!(state(&user).split('.').count(), 3);
        }
        let user: UserId = "a-B_9".parse().unwrap();
        assert_eq!(of_dead_letter(&refused_event(7)), None);
        assert_eq!(of_dead_letter("user.dead.gateway.7"), None);
        assert_eq!(seq_of_former_refused("user.dead.gateway.7"), Some(7));
        assert_eq!(seq_of_former_refused("user.dead.gateway.07"), None);
        assert_eq!(seq_of_refused(&refused_event(7)), Some(7));
        assert_eq!(seq_of_refused(&dead_letter(&target, &user)), None);
        for kind in EventType::ALL {
            assert_eq!(event_type(kind.as_str()), Some(kind));
        }
        assert_eq!(event_type("user.renamed"), None);
        assert_eq!(user_of_state("user.state.a.b"), None);
    }
}
