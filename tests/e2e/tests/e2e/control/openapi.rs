//! The OpenAPI document and the JSON Schema of a target, checked by programs that aren't ours.

use std::{io::Write as _, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_stack::tools;

use crate::support::{Api, only};

#[tokio::test]
async fn the_openapi_document_and_the_schema_are_valid() -> Result<()> {
    let stack = only("").start().await?;
    let api = Api::of(&stack).await?;
    let document = api.get("/v1/openapi.json").await?;
    assert_eq!(document["openapi"], "3.1.0");
    let schema = api.get("/v1/targets/schema").await?;
    let mut good: Vec<Value> = Vec::new();
    for table in usersync_core::catalogue::tables(None)
        .unwrap_or_default()
        .into_values()
    {
        good.push(table);
    }
    good.push(
        json!({"url": "redis://h", "retry": {"permanent_status": [409, "23505"], "base": "5s"},
                     "fields": {"mask": {"email": "hash"}, "mask_key": "env:K"}, "concurrency": 4}),
    );
    let bad = json!([
        {"timeout": "10s"}, {"url": "http://h", "colour": "red"}, {"url": "http://h", "batch": 0},
        {"url": "http://h", "secret": "hunter2"}, {"url": "http://h", "on_delete": "explode"},
        {"url": "http://h", "retry": {"tries": 3}},
    ]);
    let input = json!({"document": document, "schema": schema, "good": good, "bad": bad});

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/openapi.py");
    let mut python = tools::python();
    python
        .arg(script)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = python.spawn().context("python3 can't be run")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(input.to_string().as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{problem}");
    Ok(())
}

/// Whatever is served is described, and whatever is described is served.
#[tokio::test]
async fn every_path_of_the_document_is_served() -> Result<()> {
    let stack = only("").start().await?;
    let api = Api::of(&stack).await?;
    let document = api.get("/v1/openapi.json").await?;
    let paths = document["paths"].as_object().context("no paths")?;
    for (path, item) in paths {
        for (method, operation) in item.as_object().context("no item")? {
            let scope = &operation["security"][0]["key"][0];
            let expected = match (path.as_str(), method.as_str()) {
                ("/livez" | "/healthz" | "/readyz" | "/metrics", _) => Value::Null,
                ("/v1/events", "post") => "publish".into(),
                (_, "get") => "read".into(),
                ("/v1/users/{id}/data", "delete") => "erase".into(),
                _ => "operate".into(),
            };
            assert_eq!(scope, &expected, "{method} {path}");
        }
        for method in item.as_object().context("no item")?.keys() {
            let real = path
                .replace("{name}", "nobody")
                .replace("{target}", "nobody")
                .replace("{user_id}", "1")
                .replace("{seq}", "1")
                .replace("{id}", "1");
            let method = method.to_uppercase().parse()?;
            let answer = api.call(method, &real, &[], None).await?;
            let served = answer.status != 405 && answer.detail() != "there is nothing at this path";
            assert!(served, "{path}: {answer:?}");
            if answer.status >= 400 {
                assert_eq!(answer.body["status"], answer.status, "{path}: {answer:?}");
            }
        }
    }
    for path in [
        "/livez",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/events",
        "/v1/users/{id}",
    ] {
        assert!(paths.contains_key(path), "{path} is not described");
    }
    Ok(())
}
