//! A collector of traces of our own: rotel, which takes OTLP and prints every span it gets.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{Launch, Process, free_port, http, tools};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running collector; killed on drop.
#[derive(Debug)]
pub struct Collector {
    process: Process,
    url: String,
}

/// A span as the collector shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CollectedSpan {
    /// The name of the service that sent it.
    pub service: String,
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits; empty without a parent.
    pub parent_id: String,
    /// 16 hex digits.
    pub id: String,
    /// What was done.
    pub name: String,
    /// `SPAN_KIND_SERVER` and so on.
    pub kind: String,
    /// Attributes and all else that was shown, as text.
    pub rest: String,
}

impl Collector {
    /// Starts one, with its log in `dir`.
    ///
    /// # Errors
    /// When it is not installed, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path) -> Result<Self> {
        let (grpc, http_port) = (free_port()?, free_port()?);
        let launch = Launch::new("rotel", tools::rotel()?, dir.join("rotel.log"))
            .args(["start", "--exporter", "blackhole"])
            .args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"])
            .arg(format!("--otlp-grpc-endpoint=127.0.0.1:{grpc}"))
            .arg(format!("--otlp-http-endpoint=127.0.0.1:{http_port}"))
            .arg(format!("--pid-file={}", dir.join("rotel.pid").display()))
            .arg(format!(
                "--log-file={}",
                dir.join("rotel.own.log").display()
            ));
        let collector = Self {
            process: launch.spawn()?,
            url: format!("http://127.0.0.1:{http_port}"),
        };
        collector
            .process
            .until_ready(READY_WITHIN, async || {
                let sent = http::client().get(&collector.url).send();
                sent.await.context("connecting")?;
                Ok(())
            })
            .await?;
        Ok(collector)
    }

    /// Where it takes OTLP over HTTP.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Everything it has printed.
    ///
    /// # Errors
    /// When its log can't be read.
    pub fn log(&self) -> Result<String> {
        let log = self.process.log();
        std::fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))
    }

    /// Every span it got so far.
    ///
    /// # Errors
    /// When its log can't be read.
    pub fn spans(&self) -> Result<Vec<CollectedSpan>> {
        let log = self.log()?;
        let (mut spans, mut service) = (Vec::<CollectedSpan>::new(), String::new());
        let mut within = false;
        for line in log.lines().map(str::trim) {
            let value = |key: &str| Some(line.strip_prefix(key)?.trim_start_matches([' ', ':']));
            if let Some(name) = value("-> service.name: Str(") {
                service = name.trim_end_matches(')').to_owned();
            } else if line.starts_with("ResourceSpans #") {
                within = false;
            } else if line.starts_with("Span #") {
                within = true;
                let service = service.clone();
                spans.push(CollectedSpan {
                    service,
                    ..CollectedSpan::default()
                });
            }
            let Some(span) = spans.last_mut().filter(|_| within) else {
                continue;
            };
            let fields = [
                ("Trace ID", &mut span.trace_id),
                ("Parent ID", &mut span.parent_id),
                ("ID", &mut span.id),
                ("Name", &mut span.name),
                ("Kind", &mut span.kind),
            ];
            match fields
                .into_iter()
                .find_map(|(key, field)| Some((field, value(key)?)))
            {
                Some((field, text)) => text.clone_into(field),
                None => {
                    span.rest.push_str(line);
                    span.rest.push('\n');
                }
            }
        }
        Ok(spans)
    }
}
