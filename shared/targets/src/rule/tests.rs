use serde_json::{Value, json};
use usersync_core::{
    event::{Envelope, Event},
    state::State,
    target::TargetConfig,
};

use super::*;

/// A target with these keys beside its name and URL.
fn config(mut keys: Value) -> TargetConfig {
    keys["name"] = json!("t");
    keys["url"] = json!("http://localhost/x");
    serde_json::from_value(keys).unwrap()
}

/// The rule of `config`, which may have what it refers to.
pub(super) fn compile(config: &TargetConfig) -> Result<Rule, RuleError> {
    let references = config.references().into_iter();
    let granted = references.map(|(_, reference)| reference.to_string().parse().unwrap());
    Rule::compile(config, &Grants::of(granted.collect()))
}

/// The state one event leads to; `created` unless it names a type.
pub(super) fn state(mut user: Value) -> State {
    user["user_id"] = json!(42);
    user["source"] = json!("crm");
    let kind = user["type"].as_str().unwrap_or("user.created").parse();
    let envelope = Envelope {
        kind: Some(kind.unwrap()),
        id: Some("e1".to_owned()),
        timestamp: Some("2026-01-31T12:00:00.5Z".parse().unwrap()),
    };
    State::of_one(&Event::from_value(user, envelope).unwrap(), 7, 1_000)
}

/// What `rule` makes of `user`: `[action, members]`, the reason for a skip, or the refusal.
fn verdict(rule: &Value, user: &Value) -> Value {
    let compiled = compile(&config(rule.clone()));
    let rule = compiled.unwrap_or_else(|error| panic!("{rule}: {error}"));
    match rule.apply(state(user.clone())) {
        Verdict::Send(delivery) => json!([delivery.action, delivery.members]),
        Verdict::Skip { why } => json!(why.as_str()),
        Verdict::Refused(failure) => json!(failure.reason),
    }
}

fn check(rule: Value, user: Value, expected: Value) {
    assert_eq!(verdict(&rule, &user), expected, "{rule} of {user}");
}

fn ann() -> Value {
    json!({"username": "ann", "email": "ann@example.com",
           "data": {"plan": "pro", "age": 30, "roles": ["admin", "ops"], "status": "active",
                    "teams": [{"name": "a", "tags": ["x"]}], "big": 18_446_744_073_709_551_615_u64, "share": 0.5}})
}

#[test]
fn a_filter_sees_the_user_and_its_last_event() {
    let whole = [
        "user.user_id == '42'",
        "user.username == 'ann' && user.email.endsWith('@example.com')",
        "user.status == 'active' && user.data.status == 'active'",
        "user.data.plan in ['pro', 'team'] && user.data.age >= 18 && user.data.share < 0.6",
        "user.data.big > 5u",
        "!user.deleted && !user.partial",
        "has(user.data.plan) && !has(user.data.phone) && !has(user.data.teams[0].owner)",
        "user.data[?'phone'].orValue('none') == 'none'",
        "user.data.?plan.orValue('') == 'pro'",
        "'admin' in user.data.roles && user.data.roles.exists(role, role == 'ops')",
        "user.data.teams.exists(team, team.tags.exists(tag, tag == 'x'))",
        "size(user.data.roles) == 2 && user.data['plan'] == 'pro' && 'plan' in user.data",
        "user.data.teams == [{'name': 'a', 'tags': ['x']}]",
        "user.data.roles.map(user, user + '!') == ['admin!', 'ops!']",
        "user.email.matches('^[a-z]+@example[.]com$') && user.username.upperAscii() == 'ANN'",
        "type(user.data.age) == int && type(user) == map",
        "user['email'] == user.email && size(user) == 7",
    ];
    let event = [
        "event.type == 'user.created' && event.source == 'crm' && event.id == 'e1'",
        "event.timestamp == timestamp('2026-01-31T12:00:00.5Z')",
        "event.timestamp > timestamp('2026-01-01T00:00:00Z') && event.timestamp.getFullYear() == 2026",
        "size(event) == 4",
    ];
    for filter in whole.into_iter().chain(event) {
        let rule = |filter: String| json!({"filter": filter, "on_out_of_scope": "ignore", "fields": {"include": ["username"]}});
        check(
            rule(filter.to_owned()),
            ann(),
            json!(["upsert", {"username": "ann"}]),
        );
        check(rule(format!("!({filter})")), ann(), json!("out_of_scope"));
    }
}

#[test]
fn who_has_nothing_has_null_and_no_data() {
    for filter in [
        "user.email == null && user.status == null",
        "!has(user.data.plan)",
        "size(user.data) == 0",
    ] {
        let rule = json!({"filter": filter, "fields": {"include": ["username"]}});
        check(
            rule,
            json!({"username": "bob"}),
            json!(["upsert", {"username": "bob"}]),
        );
    }
    let rule = json!({"filter": "user.status == 'active'", "on_out_of_scope": "ignore"});
    check(rule, json!({"username": "bob"}), json!("out_of_scope"));
}

#[test]
fn what_cannot_be_decided_is_refused_without_a_value_of_the_user() {
    let partial = json!({"type": "user.updated", "username": "ann"});
    let known = "(nobody created the user: only some members are known)";
    let rows = [
        (
            "user.data.phone == '1'",
            ann(),
            "filter: there is no member `phone`".to_owned(),
        ),
        (
            "user.data[user.username] == '1'",
            ann(),
            "filter: a member is missing".to_owned(),
        ),
        (
            "user.data.plan",
            ann(),
            "filter: expected true or false, found a value of type string".to_owned(),
        ),
        (
            "user.data.plan > 3",
            ann(),
            "filter: `_>_` can't be used on (string, int)".to_owned(),
        ),
        (
            "user.email.endsWith('x')",
            json!({"username": "bob"}),
            "filter: `endsWith` can't be used on (null_type, string)".to_owned(),
        ),
        (
            "int(user.username) == 1",
            ann(),
            "filter: `int` failed".to_owned(),
        ),
        (
            "user.data.age / 0 == 1",
            ann(),
            "filter: division by zero".to_owned(),
        ),
        (
            "user.data.roles[7] == ''",
            ann(),
            "filter: an index is out of bounds".to_owned(),
        ),
        (
            "user.data.age + 9223372036854775807 == 1",
            ann(),
            "filter: a number is out of range".to_owned(),
        ),
        (
            "timestamp(user.email) > timestamp(0)",
            ann(),
            "filter: `timestamp` failed".to_owned(),
        ),
        (
            "user.email == ''",
            partial.clone(),
            format!("filter: there is no member `email` {known}"),
        ),
    ];
    for (filter, user, expected) in rows {
        check(json!({"filter": filter}), user, json!(expected));
    }
    let told = json!(["upsert", {"username": "ann"}]);
    for filter in [
        "user.partial || user.email == ''",
        "!has(user.email)",
        "!has(user.data.plan)",
    ] {
        check(json!({"filter": filter}), partial.clone(), told.clone());
    }
}

#[test]
fn users_who_go_follow_the_rule_for_it() {
    let rows = [
        (
            json!({}),
            json!(["delete", {"username": null, "email": null, "status": null, "data": null}]),
        ),
        (
            json!({"fields": {"include": ["email"]}}),
            json!(["delete", {"email": null}]),
        ),
        (
            json!({"on_out_of_scope": "delete"}),
            json!(["delete", {"username": null, "email": null, "status": null, "data": null}]),
        ),
        (
            json!({"on_out_of_scope": "disable"}),
            json!(["disable", {"status": "disabled", "data": {"status": "disabled"}}]),
        ),
        (
            json!({"on_out_of_scope": "disable", "fields": {"exclude": ["data"], "rename": {"status": "data.state"}}}),
            json!(["disable", {"data": {"state": "disabled"}}]),
        ),
        (
            json!({"on_out_of_scope": "disable", "fields": {"include": ["username", "data.status"], "rename": {"username": "data.login", "data.status": "data.a.b"}}}),
            json!(["disable", {"data": {"a": {"b": "disabled"}}}]),
        ),
        (json!({"on_out_of_scope": "ignore"}), json!("out_of_scope")),
    ];
    for (mut rule, expected) in rows {
        rule["filter"] = json!("user.data.plan == 'free'");
        check(rule.clone(), ann(), expected.clone());
        rule["filter"] = Value::Null;
        rule["on_delete"] = rule["on_out_of_scope"].take();
        rule.as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
        let expected = if expected == "out_of_scope" {
            json!("deleted")
        } else {
            expected
        };
        check(rule, json!({"type": "user.deleted"}), expected);
    }
    // The filter is not asked about a deleted user.
    let rule = json!({"filter": "user.data.plan == 'pro'", "on_out_of_scope": "ignore", "fields": {"include": ["email"]}});
    check(
        rule,
        json!({"type": "user.deleted"}),
        json!(["delete", {"email": null}]),
    );
}

#[test]
fn who_is_erased_is_deleted_and_not_only_disabled() {
    let erased = json!({"type": "user.deleted", "erase": true});
    let nobody = json!(["delete", {"email": null}]);
    for (on_delete, expected) in [
        ("delete", nobody.clone()),
        ("disable", nobody),
        ("ignore", json!("deleted")),
    ] {
        let rule = json!({"on_delete": on_delete, "fields": {"include": ["email", "status"]}});
        let mut expected = expected;
        if expected.is_array() {
            expected[1]["status"] = Value::Null;
        }
        check(rule, erased.clone(), expected);
    }
}

#[test]
fn fields_are_chosen_computed_masked_and_renamed_in_this_order() {
    let user = json!({"username": "Ann", "email": "ann@example.com",
                      "data": {"phone": "+491771234567", "card": {"no": 4111}, "a": {"b": 1}, "list": [1, 2]}});
    let rows = [
        (
            json!({"include": ["email"], "compute": {"data.domain": "user.email.split('@')[1]", "username": "user.username.lowerAscii()"}}),
            json!({"username": "ann", "email": "ann@example.com", "data": {"domain": "example.com"}}),
        ),
        // An expression sees what the target isn't told.
        (
            json!({"include": ["username"], "compute": {"data.phone": "user.data.phone", "data.n": "size(user.data.list) + 1"}, "mask": {"data.phone": "last4"}}),
            json!({"username": "Ann", "data": {"phone": "*********4567", "n": 3}}),
        ),
        (
            json!({"include": ["data.card"], "mask": {"data.card.no": "last4", "email": "redact"}}),
            json!({"data": {"card": {"no": "****"}}}),
        ),
        (
            json!({"include": ["data.card"], "mask": {"data.card": "redact"}}),
            json!({"data": {"card": "***"}}),
        ),
        (
            json!({"include": ["data.card"], "mask": {"data": "redact"}}),
            json!({"data": "***"}),
        ),
        (
            json!({"include": ["username", "email"], "mask": {"email": "redact"}, "rename": {"email": "data.mail.work", "username": "email"}}),
            json!({"email": "Ann", "data": {"mail": {"work": "***"}}}),
        ),
        (
            json!({"include": ["username", "email"], "rename": {"email": "username", "username": "email"}}),
            json!({"username": "ann@example.com", "email": "Ann"}),
        ),
        (
            json!({"include": ["data.a", "data.phone"], "rename": {"data.a.b": "data.b", "data.phone": "username"}}),
            json!({"username": "+491771234567", "data": {"a": {}, "b": 1}}),
        ),
        // What isn't there goes out as what there isn't.
        (
            json!({"include": ["username", "data.x", "data.phone"], "rename": {"data.x": "username"}}),
            json!({"username": null, "data": {"phone": "+491771234567"}}),
        ),
        (
            json!({"include": ["data.a"], "rename": {"data.a": "data"}}),
            json!({"data": {"b": 1}}),
        ),
        (
            json!({"include": ["username"], "compute": {"email": "null", "data.x": "null", "data.t": "event.timestamp"}}),
            json!({"username": "Ann", "email": null, "data": {"x": null, "t": "2026-01-31T12:00:00.500+00:00"}}),
        ),
    ];
    for (fields, expected) in rows {
        check(
            json!({"fields": fields}),
            user.clone(),
            json!(["upsert", expected]),
        );
    }
}

#[test]
fn of_a_partial_user_only_what_is_known_is_told() {
    let partial = json!({"type": "user.updated", "email": "a@x", "data": {"phone": "12345"}});
    let rows = [
        (
            json!({"compute": {"username": "user.username", "data.domain": "user.email"}, "mask": {"username": "redact", "data.phone": "last4"}}),
            json!({"email": "a@x", "data": {"phone": "*2345", "domain": "a@x"}}),
        ),
        (
            json!({"rename": {"username": "data.login", "data.x": "username", "email": "data.mail"}}),
            json!({"data": {"phone": "12345", "mail": "a@x"}}),
        ),
        (
            json!({"include": ["email"], "compute": {"data.x": "null"}}),
            json!({"email": "a@x"}),
        ),
    ];
    for (fields, expected) in rows {
        check(
            json!({"fields": fields}),
            partial.clone(),
            json!(["upsert", expected]),
        );
    }
}

#[test]
fn what_fits_nowhere_is_refused() {
    let text = "expected a text or null";
    let inside = "what it is to be put into is no object";
    let rows = [
        (
            json!({"compute": {"username": "user.data.age"}}),
            ann(),
            format!("fields.compute.username: {text}"),
        ),
        (
            json!({"rename": {"data.roles": "email"}}),
            ann(),
            format!("fields.rename to email: {text}"),
        ),
        (
            json!({"rename": {"email": "data.plan.mail"}}),
            ann(),
            format!("fields.rename to data.plan.mail: {inside}"),
        ),
        (
            json!({"compute": {"data.x": "1"}}),
            json!({"data": [1]}),
            format!("fields.compute.data.x: {inside}"),
        ),
        (
            json!({"compute": {"data.x": "user.data.phone"}}),
            ann(),
            "fields.compute.data.x: there is no member `phone`".to_owned(),
        ),
        (
            json!({"compute": {"data.x": "user.data.?phone"}}),
            ann(),
            "fields.compute.data.x: the result is optional; end it with .orValue(…)".to_owned(),
        ),
    ];
    for (fields, user, expected) in rows {
        check(json!({"fields": fields}), user, json!(expected));
    }
    // 20 copies of 16 KiB.
    let big = json!({"username": "x".repeat(300), "data": {"bio": "x".repeat(16 * 1024)}});
    let copies = ["user.data.bio"; 20].join(" + ");
    let rule = json!({"fields": {"compute": {"data.x": copies}}});
    check(
        rule,
        big,
        json!("fields.compute.data.x: the result has more than 262144 bytes"),
    );
}

#[test]
fn the_deepest_expression_fits_an_ordinary_stack() {
    // Threads have 2 MiB, and something on it already. A level takes 40 KiB where nothing is optimised.
    let most = std::thread::Builder::new().stack_size(1536 * 1024);
    let evaluated = most.spawn(|| {
        let sum = ["1"; 23].join("+") + " == 23";
        let conditional = "user.partial ? false : ".repeat(22) + "true";
        let list = format!("size({}1{}) == 1", "[".repeat(21), "]".repeat(21));
        let negated = format!("{}true{}", "!(".repeat(22), ")".repeat(22));
        for filter in [sum, conditional, list, negated] {
            let compiled = compile(&config(json!({"filter": filter})));
            let rule = compiled.unwrap_or_else(|error| panic!("{filter}: {error}"));
            let verdict = rule.apply(state(ann()));
            assert!(matches!(verdict, Verdict::Send(_)), "{filter}: {verdict:?}");
        }
    });
    evaluated.unwrap().join().unwrap();
    // Conditions side by side don't count: CEL balances them.
    let many = ["user.partial"; 100].join(" || ");
    check(
        json!({"filter": format!("{many} || true"), "fields": {"include": ["username"]}}),
        ann(),
        json!(["upsert", {"username": "ann"}]),
    );
}

#[test]
fn an_evaluation_that_takes_too_much_ends() {
    let long: Vec<u64> = (0..10_000).collect();
    let user = json!({"data": {"a": long, "b": long, "text": "ab".repeat(100_000), "words": vec!["w"; 5_000]}});
    let hundred = format!("[{}1]", "1,".repeat(99));
    let cubed =
        format!("{hundred}.all(x, {hundred}.all(y, {hundred}.all(z, {hundred}.all(w, true))))");
    let doubled = ["user.data.text"; 10].join(" + ");
    let again = ["l"; 10].join(" + ");
    let doubled = format!("size([{doubled}].map(l, {again}).map(l, {again}).map(l, {again})) > 0");
    let few = format!("user.data.text.replace('', '{}') != ''", "x".repeat(3_000));
    let words = format!(
        "user.data.a.all(x, '{}'.lowerAscii() != '')",
        "x".repeat(3_000)
    );
    let rows = [
        (
            "user.data.a.exists(x, !(x in user.data.b))",
            "it takes more than 100000 steps",
        ),
        (
            "[user.data.a, user.data.a].all(l, l.all(x, l.all(y, x > -1)))",
            "it takes more than 100000 steps",
        ),
        (&cubed, "it takes more than 100000 steps"),
        (&doubled, "it takes more than 100000 steps"),
        (&words, "it takes more than 100000 steps"),
        (
            "user.data.words.exists(w, user.data.text.matches('^(a|b)*c$'))",
            "it takes more than 100000 steps",
        ),
        (&few, "`replace` failed"),
        (
            "size(user.data.text.split('')) > 0 && size(user.data.text.split('')) > 0",
            "it takes more than 100000 steps",
        ),
        (
            "user.data.words.join(user.data.text) != ''",
            "`join` failed",
        ),
    ];
    for (filter, expected) in rows {
        let started = std::time::Instant::now();
        let rule = compile(&config(json!({"filter": filter})));
        let rule = rule.unwrap_or_else(|error| panic!("{filter}: {error}"));
        let Verdict::Refused(Failure { reason, .. }) = rule.apply(state(user.clone())) else {
            panic!("{filter} is decided");
        };
        assert!(reason.contains(expected), "{filter}: {reason}");
        // Nothing is optimised here, and others may be at work: it takes some hundred milliseconds.
        assert!(
            started.elapsed().as_secs() < 10,
            "{filter}: {:?}",
            started.elapsed()
        );
    }
    let rule = json!({"filter": "user.data.a.all(x, x >= 0)", "fields": {"include": ["username"]}});
    check(rule, user, json!(["upsert", {"username": null}]));
}

#[test]
fn functions_that_are_bounded_do_what_cel_says() {
    for (expression, value) in [
        ("'a-b-c'.replace('-', '+')", json!("a+b+c")),
        ("'a-b-c'.replace('-', '+', 1)", json!("a+b-c")),
        ("'a-b-c'.replace('-', '+', -1)", json!("a+b+c")),
        ("'ab'.replace('', '.')", json!(".a.b.")),
        ("['a', 'b'].join()", json!("ab")),
        ("'a,b,c'.split(',')", json!(["a", "b", "c"])),
        ("'a,b,c'.split(',', 2)", json!(["a", "b,c"])),
        ("'a,b,c'.split(',', 1)", json!(["a,b,c"])),
        ("'a,b,c'.split(',', 0)", json!([])),
        ("'a,b,c'.split(',', -1)", json!(["a", "b", "c"])),
        ("'äb'.split('')", json!(["ä", "b"])),
        ("'abc'.split('', 2)", json!(["a", "bc"])),
        ("''.split('')", json!([])),
        ("''.split(',')", json!([""])),
        ("['a', 'b'].join(', ')", json!("a, b")),
        ("'a,b'.split(',').map(x, x + x).join('-')", json!("aa-bb")),
        ("'abc'.matches('^a.c$')", json!(true)),
        ("matches('abc', 'd')", json!(false)),
        ("'ann@example.com'.matches(user.email)", json!(true)),
        (
            "[1, 2, 3].filter(x, x > 1).map(x, [x, x * 2])",
            json!([[2, 4], [3, 6]]),
        ),
        ("{'a': 1, 'b': 2}.exists(k, k == 'b')", json!(true)),
        ("[[1, 2], [3]].all(l, l.exists_one(x, x > 1))", json!(true)),
        (
            "[{'n': 1}].map(m, has(m.n) ? m.n : m.?o.orValue(7))",
            json!([1]),
        ),
    ] {
        let rule = json!({"fields": {"include": ["username"], "compute": {"data.x": expression}}});
        check(
            rule,
            ann(),
            json!(["upsert", {"username": "ann", "data": {"x": value}}]),
        );
    }
}

#[test]
fn a_rule_that_cannot_work_is_refused_with_key_and_place() {
    let deep = format!("{}1{} == 1", "(".repeat(40), ")".repeat(40));
    let long = format!("user.username == '{}'", "x".repeat(4096));
    let wide = ["1"; 200].join("+") + " == 1";
    let macros = ["[1].all(x, x > 0)"; 5].join(" && ");
    let inner = "user.data.a.all(x, user.data.b.all(y, x != y))";
    let pattern = r"user.email.matches('(\\w{50}){20}')";
    let rows = [
        (
            json!({"filter": "user.emial == ''"}),
            "filter: line 1 column 5: `user` has no member `emial`; expected one of user_id, ",
        ),
        (
            json!({"filter": "true &&\n  usr.email == ''"}),
            "filter: line 2 column 3: `usr` is unknown; expected user or event",
        ),
        (
            json!({"filter": "event.kind == ''", "on_out_of_scope": "ignore"}),
            "filter: line 1 column 6: `event` has no member `kind`",
        ),
        (
            json!({"filter": "user.email == "}),
            "filter: line 1 column ",
        ),
        (
            json!({"filter": "user.email.endWith('x')"}),
            "`endWith` is no function",
        ),
        (
            json!({"filter": "now() > event.timestamp", "on_out_of_scope": "ignore"}),
            "`now` is no function",
        ),
        (json!({"filter": deep}), "filter: "),
        (json!({"filter": wide}), "nested more than 24 deep"),
        (
            json!({"filter": long}),
            "filter: expected at most 4096 bytes of CEL",
        ),
        (json!({"filter": macros}), "expected at most 4 macros"),
        (
            json!({"filter": pattern}),
            "the pattern of `matches` needs more than 262144 bytes",
        ),
        (
            json!({"filter": "'a'.matches('(')"}),
            "the pattern of `matches` can't be read",
        ),
        (
            json!({"filter": inner}),
            "may only run over the outer one's variable",
        ),
        (
            json!({"filter": "Foo{a: 1}.a == 1"}),
            "`Foo` can't be made here",
        ),
        (
            json!({"filter": "event.source != 't'"}),
            "filter: it reads `event`",
        ),
        (
            json!({"fields": {"compute": {"data.x": "us"}}}),
            "fields.compute.data.x: line 1 column 1: `us` is unknown",
        ),
        (
            json!({"fields": {"include": ["phone"]}}),
            "fields.include: `phone` is no member",
        ),
        (
            json!({"fields": {"mask": {"email": "hash"}}}),
            "fields.mask_key: expected a reference",
        ),
        (
            json!({"fields": {"mask": {"email": "hash"}, "mask_key": "env:USERSYNC_TEST_NO_SUCH_KEY"}}),
            "fields.mask_key: the environment variable",
        ),
        (
            json!({"on_delete": "disable", "fields": {"include": ["email"]}}),
            "fields: `disable` needs status",
        ),
    ];
    for (rule, expected) in rows {
        let error = compile(&config(rule.clone())).unwrap_err();
        let text = error.to_string();
        assert!(
            error.problems.len() == 1 && text.contains(expected),
            "{rule}: {text}"
        );
    }
    let all = json!({"filter": "a == b", "on_delete": "disable",
                     "fields": {"include": ["email"], "compute": {"data.x": "c"}, "mask": {"phone": "redact"}}});
    assert_eq!(compile(&config(all)).unwrap_err().problems.len(), 5);
    let elsewhere =
        json!({"fields": {"mask": {"email": "hash"}, "mask_key": "env:USERSYNC_TEST_NO_SUCH_KEY"}});
    assert_eq!(Rule::check(&config(elsewhere)), Ok(()));
}

#[test]
fn a_verdict_can_be_shown() {
    let show = |rule: Value, user: Value| {
        let rule = compile(&config(rule)).unwrap();
        serde_json::to_value(rule.apply(state(user))).unwrap()
    };
    let sent = show(json!({"fields": {"include": ["email"]}}), ann());
    assert_eq!(
        sent,
        json!({"verdict": "send", "task_id": "t:42:1000", "user_id": 42, "version": 1000, "action": "upsert",
               "partial": false, "event_type": "user.created", "timestamp": "2026-01-31T12:00:00.5Z", "source": "crm",
               "members": {"email": "ann@example.com"}})
    );
    let skipped = show(
        json!({"filter": "false", "on_out_of_scope": "ignore"}),
        ann(),
    );
    assert_eq!(skipped, json!({"verdict": "skip", "why": "out_of_scope"}));
    let refused = show(json!({"filter": "user.data.x"}), ann());
    assert_eq!(
        refused,
        json!({"verdict": "refused", "reason": "filter: there is no member `x`"})
    );
}

#[test]
fn the_hash_is_of_what_the_target_sees() {
    let delivery = |rule: Value, user: Value, version: u64| {
        let rule = compile(&config(rule)).unwrap();
        let mut state = state(user);
        (state.version, state.event.id) = (version, version.to_string());
        match rule.apply(state) {
            Verdict::Send(delivery) => delivery.content_hash(),
            other => panic!("{other:?}"),
        }
    };
    let fields = json!({"fields": {"exclude": ["data.seen"]}});
    let first = delivery(
        fields.clone(),
        json!({"email": "a@x", "data": {"seen": 1}}),
        1,
    );
    assert_eq!(
        first,
        delivery(
            fields.clone(),
            json!({"email": "a@x", "data": {"seen": 2}}),
            2
        )
    );
    let others = [
        json!({"email": "b@x", "data": {}}),
        json!({"username": "a@x", "data": {}}),
        json!({"email": "a@x", "data": []}),
        json!({"email": "a@x"}),
        json!({"type": "user.updated", "email": "a@x", "data": {}}),
        json!({"type": "user.deleted"}),
        json!({"email": "a@x", "data": {"n": 1}}),
        json!({"email": "a@x", "data": {"n": "1"}}),
        json!({"email": "a@x", "data": {"n": [[], []]}}),
        json!({"email": "a@x", "data": {"n": [[[]]]}}),
    ];
    let mut hashes: Vec<_> = others
        .into_iter()
        .map(|user| delivery(fields.clone(), user, 1))
        .collect();
    hashes.push(first);
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 11);
}

#[test]
fn the_examples_of_the_documentation_compile() {
    let page = include_str!("../../../../docs/RULES.md");
    let blocks = page.split("```toml\n").skip(1);
    let blocks: Vec<&str> = blocks.filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 2);
    for block in blocks {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("targets.toml");
        std::fs::write(&file, block).unwrap();
        let targets = usersync_core::catalogue::load(Some(&file)).unwrap();
        for target in targets.values() {
            assert_eq!(Rule::check(target), Ok(()), "{}", target.name);
        }
    }
}
