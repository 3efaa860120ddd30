//! A client that shares no code with us, nats-py, publishes and reads by the contract.

use std::path::Path;

use serde_json::{Value, json};
use usersync_stack::tools;

use crate::intake::Intake;

#[tokio::test]
async fn a_python_client_publishes_events_and_reads_states_and_dead_letters() {
    let intake = Intake::start().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/independent_client.py");
    let mut python = tools::python();
    let output = python
        .arg(script)
        .arg(intake.stack.nats.url_as("operator").unwrap())
        .output();
    let output = output.expect("python3 can't be run; see: cargo xtask setup");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the Python client: {problem}");
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();

    let first = &read["first"];
    assert_eq!(first["user_id"], 42);
    assert_eq!(first["username"], "ann");
    assert_eq!(first["data"], json!({"phone": "1", "city": "Ulm"}));
    assert_eq!(first["deleted"], false);
    assert_eq!(first["event"]["id"], first["event_seq"].to_string());
    assert_eq!(first["event"]["type"], "user.created");
    assert_eq!(first["event"]["source"], "python");

    let (ack, second) = (&read["ack"], &read["second"]);
    assert_eq!(ack["again"], ack["seq"]);
    assert_eq!(ack["duplicate"], true);
    assert_eq!(second["data"], json!({"phone": "1"}));
    assert_eq!(second["email"], "ann@example.com");
    assert_eq!(second["event"]["id"], "py-2");
    assert!(
        second["version"].as_u64() > first["version"].as_u64(),
        "{read}"
    );

    let headers = &read["letter"]["headers"];
    assert_eq!(read["letter"]["same_bytes"], true);
    assert_eq!(headers["Usersync-Class"], "invalid");
    assert_eq!(headers["Usersync-Subject"], "user.updated");
    let reason = headers["Usersync-Reason"].as_str().unwrap();
    assert!(reason.contains("not JSON"), "{reason}");
}
