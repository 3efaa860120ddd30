//! Spans on their way to a collector: queued within a bound, sent in batches by a thread of their own.

use std::{collections::HashMap, thread, time::Duration};

use anyhow::{Context as _, anyhow};
use opentelemetry::KeyValue;
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use reqwest::{Certificate, Identity, blocking::Client, redirect};
use secrecy::ExposeSecret as _;

use crate::Settings;

/// How long a request to the collector may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is recorded while the queue (2,048 spans) is full is lost, and the log says so: traces never slow anybody.
pub(crate) fn start(
    settings: &Settings,
    service: &'static str,
) -> anyhow::Result<SdkTracerProvider> {
    let mut endpoint = settings.endpoint.clone();
    let base = endpoint.path().trim_end_matches('/').to_owned();
    endpoint.set_path(&format!("{base}/v1/traces"));
    let mut headers = HashMap::with_capacity(settings.headers.len());
    for (name, text) in &settings.headers {
        let text = text
            .resolve()
            .with_context(|| format!("traces.headers.{name}"))?;
        headers.insert(name.clone(), text.expose_secret().to_owned());
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client(settings)?)
        .with_endpoint(endpoint)
        .with_timeout(TIMEOUT)
        .with_headers(headers)
        .build()
        .context("traces.endpoint: can't send there")?;
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let sample = Sampler::TraceIdRatioBased(settings.sample);
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(sample)))
        .with_batch_exporter(exporter)
        .build())
}

fn client(settings: &Settings) -> anyhow::Result<Client> {
    // Only the first call in a process installs it; later ones find it there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = Client::builder()
        .user_agent(concat!("usersync/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .no_proxy()
        .timeout(TIMEOUT);
    if let Some(tls) = &settings.tls {
        if let Some(ca) = &tls.ca {
            let pem = ca.resolve_pem().context("traces.tls.ca")?;
            let authorities = Certificate::from_pem_bundle(pem.expose_secret().as_bytes())
                .ok()
                .filter(|authorities| !authorities.is_empty())
                .context("traces.tls.ca: expected certificates in PEM")?;
            client = client.tls_certs_only(authorities);
        }
        let identity = tls.identity();
        let identity = identity.map_err(|(key, error)| anyhow!("traces.{key}: {error}"))?;
        if let Some(pem) = identity {
            let identity = Identity::from_pem(pem.as_bytes());
            client = client
                .identity(identity.context("traces.tls.cert: expected a certificate in PEM")?);
        }
    }
    // It has a runtime of its own, which can't be made inside of another.
    let made = thread::spawn(move || client.build()).join();
    made.map_err(|_| anyhow!("making the client of the collector panicked"))?
        .context("can't make the client of the collector")
}
