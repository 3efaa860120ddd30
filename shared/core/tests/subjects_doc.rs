//! docs/SUBJECTS.md says what `subjects.rs` and `streams.rs` build.

use std::collections::BTreeSet;

use usersync_core::{alert::Kind, event::EventType, streams, subjects};

const DOC: &str = include_str!("../../../docs/SUBJECTS.md");

/// The rows of the table under `heading`: each cell's texts in backticks.
fn table(heading: &str) -> Vec<Vec<Vec<String>>> {
    let section = DOC
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .expect("a section of that name");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let ticked = |cell: &str| {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    rows.map(|row| row.split('|').skip(1).map(ticked).collect())
        .collect()
}

fn first_cells(heading: &str) -> BTreeSet<String> {
    table(heading)
        .into_iter()
        .map(|row| row[0][0].clone())
        .collect()
}

#[test]
fn every_subject_is_documented() {
    let user = "U".parse().unwrap();
    let name = "t".parse().unwrap();
    let mut built: BTreeSet<String> = EventType::ALL.iter().map(ToString::to_string).collect();
    let shown = |subject: String| {
        subject
            .replace(".t.", ".<target>.")
            .replace("K", "<kind>")
            .replace("U", "<user_id>")
    };
    built.insert(shown(subjects::state(&user)));
    built.insert(shown(subjects::repair(&name, &user)));
    built.insert(shown(subjects::dead_letter(&name, &user)));
    built.insert(format!(
        "{}<target>",
        subjects::result(&name).strip_suffix('t').unwrap()
    ));
    built.insert(format!(
        "{}<target>",
        shown(subjects::alert("K", name.as_ref()))
            .strip_suffix('t')
            .unwrap()
    ));
    for check in [
        subjects::check,
        subjects::check_schedule,
        subjects::check_result,
        subjects::check_result_of_dry_run,
        subjects::check_result_of_some,
    ] {
        built.insert(check("<target>"));
    }
    built.insert(subjects::refused_event(7).replace('7', "<stream_seq>"));
    assert_eq!(first_cells("Subjects"), built);
}

#[test]
fn every_stream_is_documented_with_its_subjects() {
    let documented: BTreeSet<_> = table("Streams")
        .into_iter()
        .map(|row| (row[0][0].clone(), row[1].clone()))
        .collect();
    let defined = streams::all(1)
        .into_iter()
        .map(|stream| (stream.name, stream.subjects))
        .collect();
    assert_eq!(documented, defined);
}

#[test]
fn every_consumer_is_documented() {
    let documented: Vec<_> = table("Consumers")
        .into_iter()
        .map(|row| (row[0][0].clone(), row[1][0].clone()))
        .collect();
    let row = |stream: &str, durable: &str| (stream.to_owned(), durable.to_owned());
    let defined = [
        row(subjects::USER_EVENTS, subjects::INTAKE),
        row(subjects::USER_STATE, "<target>"),
        row(subjects::USER_REPAIR, "<target>"),
        row(subjects::USER_ADVISORY, subjects::BACKSTOP),
        row(subjects::USER_CHECK, subjects::CHECKER),
        row(subjects::USER_ALERT, subjects::NOTIFY_WEBHOOK),
        row(subjects::USER_ALERT, subjects::NOTIFY_EMAIL),
    ];
    assert_eq!(documented, defined);
    for group in [subjects::INTAKE_GROUP, subjects::NOTIFY_GROUP] {
        assert!(DOC.contains(&format!("`{group}`")), "{group}");
    }
}

#[test]
fn every_kind_of_alert_is_documented_with_its_rule() {
    let rules = include_str!("../../../deploy/prometheus/rules/alerts.yml");
    let rows = table("Alerts");
    let kinds: Vec<_> = rows.iter().map(|row| row[0][0].as_str()).collect();
    let defined: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(kinds.iter().copied().collect::<BTreeSet<_>>(), defined);
    for row in &rows {
        let Some(rule) = row[3].first() else { continue };
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == row[0][0]);
        let kind = kind.expect("a kind");
        let rule = rules
            .split("- alert: ")
            .find(|text| text.starts_with(&format!("{rule}\n")));
        let rule = rule.expect("a rule of that name");
        let severity = serde_json::to_value(kind.severity()).unwrap();
        assert!(
            rule.contains(&format!("severity: {}\n", severity.as_str().unwrap())),
            "{kind}"
        );
        assert!(
            rule.contains(&format!("RUNBOOK.md\" }}}}#{}'\n", kind.anchor())),
            "{kind}"
        );
    }
}

#[test]
fn every_bucket_is_documented() {
    let defined = [
        subjects::TARGETS_BUCKET,
        subjects::BREAKERS_BUCKET,
        subjects::CHECKS_BUCKET,
        subjects::JOBS_BUCKET,
        subjects::RELAYS_BUCKET,
        subjects::WORKERS_BUCKET,
        subjects::EPOCHS_BUCKET,
        subjects::SOURCES_BUCKET,
    ];
    assert_eq!(
        first_cells("Buckets"),
        defined.into_iter().map(str::to_owned).collect()
    );
}

#[test]
fn every_header_is_documented() {
    use subjects::header::{
        ATTEMPTS, CLASS, FILE, FIRST_FAILURE, LAST_FAILURE, POINTER, REASON, STATUS_CODE, SUBJECT,
        TRUNCATED, UNCHANGED, VERSION, WAITS_FOR,
    };
    let ours: BTreeSet<_> = first_cells("Headers")
        .into_iter()
        .filter(|name| name.starts_with("Usersync-"))
        .collect();
    let defined = [
        ATTEMPTS,
        CLASS,
        FILE,
        FIRST_FAILURE,
        LAST_FAILURE,
        POINTER,
        REASON,
        STATUS_CODE,
        SUBJECT,
        TRUNCATED,
        UNCHANGED,
        VERSION,
        WAITS_FOR,
    ];
    assert_eq!(ours, defined.into_iter().map(str::to_owned).collect());
}
