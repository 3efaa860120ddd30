//! Thousands of broken inputs for each parser, made from those in `corpus`, the same in every run.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use usersync_malformed::{alert, check, event, signature, state, subject, target};

/// Inputs for each parser, beside the corpus itself.
const INPUTS: usize = 10_000;
/// Changes to one input, at most.
const CHANGES: usize = 6;
/// What breaks parsers.
const TOKENS: [&[u8]; 20] = [
    b"null",
    b"true",
    b"-0",
    b"1e999",
    b"18446744073709551616",
    b"\"\"",
    b"[]",
    b"{}",
    b"{\"a\":",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\xf0\x9f\xa6\x80",
    b"\xef\xbb\xbf",
    b"\n",
    b"..",
    b"*",
    b">",
    b" ",
    b"\0",
];

/// The inputs in `corpus/NAME`, as they are and broken in `INPUTS` ways.
fn inputs(name: &str) -> Result<impl Iterator<Item = Vec<u8>>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let files = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut seeds = files
        .map(|file| Ok(std::fs::read(file?.path())?))
        .collect::<Result<Vec<_>>>()?;
    ensure!(!seeds.is_empty(), "there are no inputs for {name}");
    seeds.sort();
    let mut random = fastrand::Rng::with_seed(42);
    let whole = seeds.clone();
    let broken = (0..INPUTS).map(move |_| {
        let mut input = random.choice(&seeds).cloned().unwrap_or_default();
        for _ in 0..random.usize(1..=CHANGES) {
            change(&mut input, &seeds, &mut random);
        }
        input
    });
    Ok(whole.into_iter().chain(broken))
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut fastrand::Rng) {
    let at = random.usize(0..=input.len());
    let end = random.usize(at..=input.len().min(at + 16));
    match random.u8(0..6) {
        0 => drop(input.drain(at..end)),
        1 => input.truncate(at),
        2 => {
            let part = input[at..end].repeat(random.usize(1..40));
            input.splice(at..at, part);
        }
        3 => {
            let token = random.choice(TOKENS).unwrap_or_default();
            input.splice(at..end, token.iter().copied());
        }
        4 => {
            let other = random.choice(seeds).cloned().unwrap_or_default();
            let from = random.usize(0..=other.len());
            input.splice(at.., other[from..].iter().copied());
        }
        _ => {
            if let Some(octet) = input.get_mut(at) {
                *octet = random.u8(..);
            }
        }
    }
}

/// Has `parser` take or refuse all inputs: most of the corpus is right, most of what is made of it isn't.
fn all(name: &str, parser: impl Fn(&[u8]) -> bool) -> Result<()> {
    let taken = inputs(name)?.filter(|input| parser(input)).count();
    ensure!(
        (INPUTS / 100..INPUTS / 2).contains(&taken),
        "{taken} of {INPUTS} were taken"
    );
    Ok(())
}

#[test]
fn events() -> Result<()> {
    all("event", event)?;
    // Deeper than any stack.
    event("[".repeat(200_000).as_bytes());
    event(format!("{{\"data\":{}", "{\"a\":".repeat(40_000)).as_bytes());
    Ok(())
}

#[test]
fn states() -> Result<()> {
    all("state", state)?;
    state("[".repeat(200_000).as_bytes());
    Ok(())
}

#[test]
fn alerts() -> Result<()> {
    all("alert", alert)?;
    alert("[".repeat(200_000).as_bytes());
    Ok(())
}

#[test]
fn requests_for_checks() -> Result<()> {
    all("check", check)?;
    check("[".repeat(200_000).as_bytes());
    Ok(())
}

#[test]
fn targets() -> Result<()> {
    all("target", target)?;
    let deep = format!(
        "{{\"url\":\"http://a\",\"filter\":\"{}\"}}",
        "(".repeat(20_000)
    );
    target(deep.as_bytes());
    Ok(())
}

#[test]
fn subjects() -> Result<()> {
    all("subject", subject)
}

#[tokio::test]
async fn signatures() -> Result<()> {
    for input in inputs("signature")? {
        signature(&input).await;
    }
    Ok(())
}
