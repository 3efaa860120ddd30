//! What CI does of the fault suite: every crash, and one of each other kind, more than twenty kill -9 in all.

use std::process::Command;

const FAULTS: [&str; 16] = [
    "gateway-killed",
    "workers-killed",
    "scheduler-killed",
    "all-killed",
    "rolling-restart",
    "clocks-ahead",
    "nats-killed",
    "consumers-deleted",
    "leader-killed",
    "server-cut-off",
    "postgres-killed",
    "redis-flushed",
    "http-applied-and-reset",
    "triple-and-shuffled",
    "no-events",
    "many-deleted",
];

#[test]
fn nothing_is_lost_and_every_copy_is_right_after_each_fault() {
    let mut suite = Command::new(env!("CARGO_BIN_EXE_usersync-faults"));
    suite.args(["--seed", "1", "--events", "2000"]);
    for fault in FAULTS {
        suite.args(["--only", fault]);
    }
    let ran = suite.output().map_err(|error| error.to_string());
    let told = ran.as_ref().map(|ran| {
        let said = [ran.stdout.as_slice(), ran.stderr.as_slice()].concat();
        (
            ran.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    });
    assert!(
        matches!(&told, Ok((true, said)) if said.contains("all well")),
        "{told:#?}"
    );
}
