//! What events make of a state: each rule, and what breaks it.

use super::*;
use crate::{event::Envelope, member::Member, outbox::Outbox};
use serde_json::json;

const MINUTE_US: u64 = 60_000_000;

fn history() -> History {
    History {
        epochs: Epochs::beginning_with("1-first".parse().unwrap()),
        window: Duration::from_secs(600),
    }
}

fn at(seq: u64) -> Position {
    Position {
        seq,
        stored_us: 5,
        repeated: Repeated::ByStream,
    }
}

const CHANGED: Applied = Applied::Changed { forgotten: 0 };
const AFTER_DELETE: Applied = Applied::AfterDelete { forgotten: None };

/// Applies events given as (type, members) at sequences 1, 2, 3…
fn fold(events: &[(EventType, Value)]) -> (Option<State>, Vec<Applied>) {
    let (mut state, history) = (None, history());
    let mut results = Vec::new();
    for (index, (kind, members)) in events.iter().enumerate() {
        let seq = index as u64 + 1;
        let event = event(*kind, members.clone(), seq);
        results.push(apply(&mut state, &event, at(seq), &history, 1_000));
    }
    (state, results)
}

fn event(kind: EventType, mut members: Value, seq: u64) -> Event {
    members["user_id"] = json!(42);
    let envelope = Envelope {
        kind: Some(kind),
        id: Some(seq.to_string()),
        timestamp: Some(Timestamp::UNIX_EPOCH),
    };
    Event::from_value(members, envelope).unwrap()
}

use EventType::{Created, Deleted, StatusChanged, Updated};

#[test]
fn rfc_7396_examples() {
    // RFC 7396 appendix A, rows whose target and patch are both possible here.
    let rows = [
        (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
        (json!({"a":"b"}), json!({"a":null}), json!({})),
        (
            json!({"a":"b","b":"c"}),
            json!({"a":null}),
            json!({"b":"c"}),
        ),
        (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
        (
            json!({"a":{"b":"c"}}),
            json!({"a":{"b":"d","c":null}}),
            json!({"a":{"b":"d"}}),
        ),
        (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a":"b"}), json!(["c"]), json!(["c"])),
        (json!({"a":"foo"}), json!("bar"), json!("bar")),
        (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
        (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
        (
            json!({}),
            json!({"a":{"bb":{"ccc":null}}}),
            json!({"a":{"bb":{}}}),
        ),
    ];
    for (mut target, patch, expected) in rows {
        merge(&mut target, &patch, false);
        assert_eq!(target, expected);
    }
}

#[test]
fn created_replaces_and_updated_merges() {
    let (state, _) = fold(&[
        (
            Created,
            json!({"username": "ann", "email": "a@x", "data": {"phone": "1", "status": "active"}}),
        ),
        (Updated, json!({"email": null, "data": {"city": "Ulm"}})),
        (StatusChanged, json!({"data": {"status": "locked"}})),
    ]);
    let state = state.unwrap();
    assert_eq!(state.username.as_deref(), Some("ann"));
    assert_eq!(state.email, None);
    assert_eq!(state.status.as_deref(), Some("locked"));
    assert_eq!(
        state.data,
        json!({"phone": "1", "city": "Ulm", "status": "locked"})
    );
    assert_eq!(
        (state.version, state.event_seq, state.partial),
        (1_002, 3, false)
    );

    let (state, _) = fold(&[
        (Created, json!({"email": "a@x"})),
        (Created, json!({"username": "b"})),
    ]);
    assert_eq!(state.unwrap().email, None);
}

#[test]
fn only_created_revives_a_deleted_user() {
    let events = [
        (
            Created,
            json!({"username": "ann", "email": "a@x", "data": {"phone": "1"}}),
        ),
        (Deleted, json!({"username": "ann"})),
        (Updated, json!({"email": "b@x"})),
        (Deleted, json!({})),
        (Created, json!({"username": "bob"})),
    ];
    let (tombstone, _) = fold(&events[..4]);
    let text = serde_json::to_string(&tombstone).unwrap();
    assert!(
        !text.contains("ann") && !text.contains("a@x") && !text.contains("phone"),
        "{text}"
    );
    let (state, results) = fold(&events);
    assert_eq!(
        results,
        [CHANGED, CHANGED, AFTER_DELETE, AFTER_DELETE, CHANGED]
    );
    assert_eq!(state.unwrap().username.as_deref(), Some("bob"));
}

#[test]
fn an_erasure_is_a_deletion_that_counts_once_more() {
    let erase = || (Deleted, json!({"erase": true, "username": "ann"}));
    let (state, results) = fold(&[(Created, json!({})), (Deleted, json!({})), erase(), erase()]);
    assert_eq!(results, [CHANGED, CHANGED, CHANGED, AFTER_DELETE]);
    let state = state.unwrap();
    assert!(state.deleted && state.erased && state.username.is_none());
    assert_eq!((state.version, state.event_seq), (1_002, 3));
    let (state, _) = fold(&[erase(), (Created, json!({}))]);
    assert!(!state.unwrap().erased);
}

#[test]
fn what_is_null_of_a_partial_user_stays_known_until_it_is_whole() {
    let nulls = json!({"email": null, "data": {"phone": null, "a": {"b": null}}});
    let (state, results) = fold(&[
        (Updated, json!({"username": "ann"})),
        (Updated, nulls.clone()),
        (Updated, nulls.clone()),
    ]);
    let partial = state.unwrap();
    assert_eq!(results, [CHANGED, CHANGED, Applied::Unchanged]);
    assert_eq!(partial.cleared, ["email".to_owned()].into());
    assert_eq!(partial.data, nulls["data"]);
    let stored: State = serde_json::from_value(serde_json::to_value(&partial).unwrap()).unwrap();
    assert_eq!(stored, partial);

    let (state, _) = fold(&[
        (Updated, nulls.clone()),
        (Updated, json!({"email": "a@x", "data": {"phone": "1"}})),
    ]);
    let known = state.unwrap();
    assert!(known.cleared.is_empty() && known.partial);
    assert_eq!(known.data, json!({"phone": "1", "a": {"b": null}}));

    let (state, _) = fold(&[(Updated, json!({"data": null})), (Created, nulls)]);
    let whole = state.unwrap();
    assert!(whole.cleared.is_empty() && !whole.partial);
    assert_eq!(whole.data, json!({"a": {}}));
}

#[test]
fn an_update_for_a_user_nobody_created_is_partial_until_created() {
    let (state, _) = fold(&[
        (Updated, json!({"email": "a@x"})),
        (Updated, json!({"data": {"a": 1}})),
    ]);
    assert!(state.unwrap().partial);
    let (state, _) = fold(&[
        (Updated, json!({"email": "a@x"})),
        (Created, json!({"username": "ann"})),
    ]);
    let state = state.unwrap();
    assert!(!state.partial);
    assert_eq!(state.email, None);
}

/// Applies one event of a source with an id of its own, stored at the minute `seq`.
fn say(state: &mut Option<State>, source: &str, id: &str, seq: u64, data: Value) -> Applied {
    let members = json!({"id": id, "source": source, "data": data});
    let at = Position {
        stored_us: seq * MINUTE_US,
        ..at(seq)
    };
    apply(state, &event(Updated, members, seq), at, &history(), 1_000)
}

#[test]
fn contained_events_are_skipped_by_sequence_and_by_source_and_id() {
    let mut state = None;
    assert_eq!(say(&mut state, "/crm", "1", 7, json!({"k": 1})), CHANGED);
    assert_eq!(say(&mut state, "/shop", "1", 8, json!({"k": 2})), CHANGED);
    let before = state.clone();
    assert_eq!(
        say(&mut state, "/crm", "2", 8, json!({"k": 3})),
        Applied::Known
    );
    assert_eq!(
        say(&mut state, "/crm", "1", 9, json!({"k": 1})),
        Applied::Known
    );
    assert_eq!(state, before);
    assert_eq!(say(&mut state, "/crm", "2", 9, json!({"k": 3})), CHANGED);
}

#[test]
fn a_repetition_within_the_window_never_brings_an_old_value_back() {
    let mut state = None;
    for seq in 1..=8 {
        say(
            &mut state,
            "s",
            &format!("evt-{seq}"),
            seq,
            json!({"k": seq}),
        );
    }
    for seq in 1..=8 {
        let again = say(&mut state, "s", &format!("evt-{seq}"), 9, json!({"k": seq}));
        assert_eq!(again, Applied::Known, "{seq}");
    }
    assert_eq!(state.unwrap().data["k"], 8);
}

#[test]
fn what_changes_nothing_is_stored_only_to_remember_its_id() {
    let mut state = None;
    let first = json!({"k": 1, "o": {"i": [1]}, "gone": null});
    say(&mut state, "s", "a", 1, first);
    let before = state.clone();
    for (id, patch) in [
        ("b", json!({"k": 1, "gone": null})),
        ("c", json!({"o": {"i": [1]}})),
    ] {
        assert_eq!(say(&mut state, "s", id, 2, patch), Applied::Unchanged);
    }
    let created = event(Created, json!({"data": {"k": 1, "o": {"i": [1]}}}), 3);
    // A partial state becomes whole.
    assert_eq!(
        apply(&mut state.clone(), &created, at(3), &history(), 1_000),
        CHANGED
    );
    assert_eq!(state, before);
    // Its id is in the body only: the stream stores a repetition.
    let members = json!({"id": "d", "source": "s", "data": {"k": 1}});
    let at = Position {
        repeated: Repeated::ByState,
        ..at(4)
    };
    let told = apply(
        &mut state,
        &event(Updated, members, 4),
        at,
        &history(),
        1_000,
    );
    assert_eq!(told, CHANGED);
    assert_eq!(
        say(&mut state, "s", "d", 5, json!({"k": 2})),
        Applied::Known
    );
}

#[test]
fn events_beyond_the_most_that_are_remembered_are_counted() {
    let (mut state, history) = (None, history());
    let mut forgotten = 0;
    for seq in 1..=300 {
        let event = event(
            Updated,
            json!({"id": format!("e-{seq}"), "data": {"k": seq}}),
            seq,
        );
        match apply(&mut state, &event, at(seq), &history, 1_000) {
            Applied::Changed { forgotten: some } => forgotten += some,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((forgotten, state.unwrap().seen.len()), (44, 256));
}

#[test]
fn events_of_a_new_epoch_come_after_all_others() {
    let (mut state, old) = (None, history());
    let members = |id: &str, k: u64| json!({"id": id, "data": {"k": k}});
    apply(
        &mut state,
        &event(Created, members("a", 1), 900),
        at(900),
        &old,
        1_000,
    );
    let new = History {
        epochs: Epochs::beginning_with(Epoch::begin(2)),
        ..old.clone()
    };
    let second = event(Updated, members("b", 2), 1);
    assert_eq!(apply(&mut state, &second, at(1), &new, 1_000), CHANGED);
    let state_after = state.clone().unwrap();
    assert_eq!(
        (state_after.event_seq, &state_after.data["k"]),
        (1, &json!(2))
    );
    assert_eq!(state_after.epoch.as_ref(), Some(new.epochs.current()));
    // A gateway that was paused since before doesn't know of it.
    let late = event(Updated, members("c", 3), 901);
    assert_eq!(
        apply(&mut state, &late, at(901), &old, 1_000),
        Applied::Outdated
    );
    assert_eq!(state.unwrap(), state_after);
}

#[test]
fn a_state_of_the_first_version_is_read_and_its_ids_count() {
    let old = json!({"user_id": 42, "username": "ann", "deleted": false, "version": 900, "event_seq": 5,
        "event": {"id": "b", "type": "user.updated", "source": "s", "timestamp": "1970-01-01T00:00:00Z", "stored_us": 5},
        "recent": ["a", "b"]});
    let mut state = Some(State::read(old.to_string().as_bytes()).unwrap());
    assert_eq!(state.as_ref().unwrap().format, 1);
    assert_eq!(
        say(&mut state, "s", "z", 5, json!({"k": 1})),
        Applied::Known
    );
    assert_eq!(
        say(&mut state, "s", "a", 6, json!({"k": 1})),
        Applied::Known
    );
    assert_eq!(say(&mut state, "other", "a", 6, json!({"k": 1})), CHANGED);
    assert_eq!(
        say(&mut state, "s", "b", 7, json!({"k": 2})),
        Applied::Known
    );
    let state = state.unwrap();
    assert_eq!(
        (state.format, state.recent.len(), state.username.as_deref()),
        (2, 0, Some("ann"))
    );
}

#[test]
fn a_state_of_a_newer_format_is_refused_by_name() {
    for text in [
        r#"{"format": 3}"#,
        r#"{"format": 3, "user_id": {"odd": 1}}"#,
    ] {
        let refused = State::read(text.as_bytes()).unwrap_err();
        assert!(matches!(refused, Unreadable::Newer(3)), "{refused}");
    }
    let broken = State::read(br#"{"user_id": 1}"#).unwrap_err();
    assert!(matches!(broken, Unreadable::NoState(_)), "{broken}");
}

/// What the relay of `source` says of a row that maps username and data.a.
fn row(kind: EventType, note: i64, members: Value) -> Event {
    let mut event = event(kind, members, 0);
    event.id = format!("crm:e1:{note}");
    event.source = Some("crm".to_owned());
    event.outbox = Some(Outbox {
        epoch: "e1".to_owned(),
        note,
        proof: String::new(),
        owned: vec![Member::Username, Member::Data(vec!["a".to_owned()])],
        newer: Vec::new(),
    });
    event
}

fn hear(state: &mut Option<State>, seq: u64, event: &Event) -> Applied {
    apply(state, event, at(seq), &history(), 1_000)
}

#[test]
fn a_row_replaces_what_its_source_owns_and_keeps_the_rest() {
    let mut state = None;
    let ann = json!({"username": "ann", "data": {"a": {"x": 1, "y": 2}}});
    hear(&mut state, 1, &row(Updated, 1, ann));
    assert!(!state.as_ref().unwrap().partial, "a row is all there is");
    let plan = json!({"email": "a@x", "data": {"plan": "gold"}});
    hear(&mut state, 2, &event(Updated, plan, 2));
    // An object isn't merged, and what is null or absent is gone.
    let row_2 = row(
        Created,
        2,
        json!({"username": null, "data": {"a": {"y": 2}}}),
    );
    hear(&mut state, 3, &row_2);
    let now = state.clone().unwrap();
    assert_eq!((now.username, now.email.as_deref()), (None, Some("a@x")));
    assert_eq!(now.data, json!({"a": {"y": 2}, "plan": "gold"}));
    hear(&mut state, 4, &row(Updated, 3, json!({})));
    assert_eq!(state.unwrap().data, json!({"plan": "gold"}));
}

#[test]
fn a_late_copy_of_a_row_changes_nothing() {
    let mut state = None;
    hear(&mut state, 1, &row(Created, 7, json!({"username": "new"})));
    let before = state.clone();
    for (seq, note) in [(2, 7), (3, 6)] {
        let late = row(Created, note, json!({"username": "old"}));
        assert_eq!(hear(&mut state, seq, &late), Applied::Known);
    }
    assert_eq!(state, before);
    let gone = hear(&mut state, 4, &row(Deleted, 8, json!({})));
    assert_eq!(gone, CHANGED);
    let late = row(Created, 7, json!({"username": "old"}));
    assert_eq!(hear(&mut state, 5, &late), Applied::Known);
    assert!(state.as_ref().unwrap().deleted, "nor does it revive");
    // Nor what came between two deletions of which the second one says nothing new.
    hear(&mut state, 6, &row(Deleted, 12, json!({})));
    let late = row(Created, 10, json!({"username": "old"}));
    assert_eq!(hear(&mut state, 7, &late), Applied::Known);
}

/// Workers don't call a target that has been told the same: it would stay a version behind for ever.
#[test]
fn an_event_that_is_only_remembered_makes_no_version() {
    let mut state = None;
    hear(&mut state, 1, &row(Created, 1, json!({"username": "ann"})));
    let before = state.clone().unwrap();
    let row = row(Updated, 2, json!({"username": "ann"}));
    assert_eq!(hear(&mut state, 2, &row), CHANGED);
    let now = state.clone().unwrap();
    assert_eq!((now.version, &now.event), (before.version, &before.event));
    assert_eq!((now.event_seq, now.notes["crm"].note), (2, 2));
    let place = Position {
        repeated: Repeated::ByState,
        ..at(3)
    };
    let told = event(Updated, json!({"username": "ann"}), 3);
    apply(&mut state, &told, place, &history(), 9_000);
    let now = state.unwrap();
    assert_eq!((now.version, now.event_seq), (before.version, 3));
}

#[test]
fn a_row_that_is_there_again_revives_and_an_updated_one_never() {
    let mut state = None;
    let whole = json!({"username": "ann", "email": "a@x", "data": {"plan": "gold"}});
    hear(&mut state, 1, &event(Created, whole, 1));
    hear(&mut state, 2, &event(Deleted, json!({"erase": true}), 2));
    let update = row(Updated, 1, json!({"username": "ann"}));
    let dropped = Applied::AfterDelete { forgotten: Some(0) };
    assert_eq!(hear(&mut state, 3, &update), dropped);
    let known = state.clone().unwrap();
    assert!(known.deleted && known.erased && known.notes["crm"].note == 1);
    let again = row(Created, 2, json!({"username": "bob"}));
    assert_eq!(hear(&mut state, 4, &again), CHANGED);
    let state = state.unwrap();
    assert_eq!(
        (state.username.as_deref(), state.email, state.data),
        (Some("bob"), None, Value::Null),
        "nothing of the user before"
    );
}

#[test]
fn a_state_survives_its_own_json() {
    let (state, _) = fold(&[(
        Created,
        json!({"id": "e", "email": "a@x", "data": {"n": 1.5}, "source": "s"}),
    )]);
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<Option<State>>(&text).unwrap(), state);
}
