//! Being alike is an equality, whatever the form and the values: pure, and without a server.

use usersync_digest::{Address, Clock, Form, Rounding, Row, RowHash};
use usersync_stack::types;

fn forms() -> Vec<Form> {
    let mut forms = vec![
        Form::TEXT,
        Form::Text {
            trimmed: true,
            most: None,
        },
        Form::Text {
            trimmed: false,
            most: Some(4),
        },
        Form::Integer,
        Form::Day,
        Form::Folded,
        Form::Uuid,
        Form::Json,
    ];
    for folded in [true, false] {
        forms.push(Form::Labels { folded });
        forms.push(Form::Mac { long: folded });
        forms.extend([None, Some(2)].map(|scale| Form::Float {
            single: folded,
            scale,
        }));
    }
    forms.extend([None, Some(-2), Some(0), Some(2)].map(|scale| Form::Decimal { scale }));
    for digits in [0, 3, 6] {
        forms.push(Form::Interval { digits });
        for rounding in [Rounding::Cut, Rounding::Later, Rounding::Apart] {
            forms.push(Form::Instant { digits, rounding });
            forms.extend(
                [Clock::Span, Clock::Day, Clock::Zoned].map(|clock| Form::Clock {
                    digits,
                    rounding,
                    clock,
                }),
            );
        }
    }
    forms.extend(
        [Address::Any, Address::Network, Address::V6].map(|address| Form::Address { address }),
    );
    forms
}

/// What columns are told and show: values of every type, and texts that are none of any.
fn texts(random: &mut fastrand::Rng) -> Vec<Option<String>> {
    let types = [types::of_mysql(), types::of_mariadb(), types::of_postgres()];
    let mut texts = vec![None, Some(String::new()), Some("null".to_owned())];
    for column in types.iter().flatten() {
        let value = (column.told)(&mut |below| random.u64(..below));
        texts.push(Some(
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned),
        ));
    }
    for odd in [
        "NaN",
        "-infinity",
        "0000-00-00",
        "1e400",
        "9e99999",
        "a,,b",
        "{",
        "08:61",
        "-",
        "::",
    ] {
        texts.push(Some(odd.to_owned()));
    }
    // Whatever else.
    let letters: Vec<char> = "0159-+.:eE /TPaAxX\u{e9}{}\",".chars().collect();
    for _ in 0..20 {
        let length = random.usize(..12);
        let text = (0..length).map(|_| letters[random.usize(..letters.len())]);
        texts.push(Some(text.collect()));
    }
    texts
}

fn hash(form: Form, text: Option<&str>) -> RowHash {
    let mut row = Row::new("42");
    let text = text.map(|text| form.of(text));
    row.field(text.as_deref().map(str::as_bytes));
    row.hash()
}

#[test]
fn being_alike_is_an_equality_and_the_hashes_say_the_same() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for form in forms() {
        let texts = texts(&mut random);
        let texts: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
        let hashes: Vec<RowHash> = texts.iter().map(|text| hash(form, *text)).collect();
        let alike: Vec<Vec<bool>> = texts
            .iter()
            .map(|one| {
                texts
                    .iter()
                    .map(|other| form.is_alike(*one, *other))
                    .collect()
            })
            .collect();
        for (one, row) in alike.iter().enumerate() {
            let say =
                |other: usize| format!("seed {seed}: {form:?} {:?} {:?}", texts[one], texts[other]);
            assert!(row[one], "{}", say(one));
            for (other, is_alike) in row.iter().enumerate() {
                assert_eq!(*is_alike, alike[other][one], "{}", say(other));
                assert_eq!(*is_alike, hashes[one] == hashes[other], "{}", say(other));
                // Whoever is alike to one is alike to the other.
                assert!(!is_alike || alike[other] == *row, "{}", say(other));
            }
        }
    }
}
