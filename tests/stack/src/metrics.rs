//! Reads the Prometheus text format: sums of counters, quantiles of histograms.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// All samples of one or several scrapes.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads what `/metrics` answered.
    ///
    /// # Errors
    /// With the first line that is not in the format.
    pub fn parse(text: &str) -> Result<Self> {
        let samples = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| Sample::parse(line).with_context(|| format!("not a sample: {line:?}")))
            .collect::<Result<_>>()?;
        Ok(Self { samples })
    }

    /// Adds the samples of another process, for sums over replicas.
    pub fn merge(&mut self, other: Self) {
        self.samples.extend(other.samples);
    }

    /// The sum of all samples of that name that carry these labels; 0 when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.with(name, labels).map(|sample| sample.value).sum()
    }

    /// The `q` quantile (0.5, 0.99) of the histogram `name` (without `_bucket`) over all samples that carry
    /// these labels, interpolated within its bucket as PromQL's `histogram_quantile` does. `None` when
    /// nothing was observed.
    #[must_use]
    pub fn quantile(&self, name: &str, labels: &[(&str, &str)], q: f64) -> Option<f64> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in self.with(&format!("{name}_bucket"), labels) {
            let bound: f64 = sample.labels.get("le")?.parse().ok()?;
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total = buckets.last()?.1;
        if total <= 0.0 {
            return None;
        }
        let rank = q * total;
        let mut below = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= rank {
                if bound.is_infinite() {
                    return Some(below.0);
                }
                let inside = (count - below.1).max(f64::MIN_POSITIVE);
                return Some(below.0 + (bound - below.0) * (rank - below.1) / inside);
            }
            below = (bound, count);
        }
        None
    }

    fn with(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        })
    }
}

impl Sample {
    /// `name{key="value",…} number`
    fn parse(line: &str) -> Option<Self> {
        let Some((name, rest)) = line.split_once('{') else {
            let mut parts = line.split_whitespace();
            return Some(Self {
                name: parts.next()?.to_owned(),
                labels: BTreeMap::new(),
                value: parts.next()?.parse().ok()?,
            });
        };
        let mut labels = BTreeMap::new();
        let mut rest = rest.trim_start();
        while !rest.starts_with('}') {
            let (key, tail) = rest.split_once("=\"")?;
            let (value, tail) = quoted(tail)?;
            labels.insert(key.trim().to_owned(), value);
            rest = tail.trim_start_matches([',', ' ']);
        }
        let value = rest[1..].split_whitespace().next()?.parse().ok()?;
        Some(Self {
            name: name.to_owned(),
            labels,
            value,
        })
    }
}

/// Reads up to the closing quote; answers the unescaped text and what follows the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# TYPE deliveries counter
deliveries{target="auth",outcome="ok"} 30
deliveries{target="auth",outcome="retry"} 2
deliveries{target="cache, \"hot\"",outcome="ok"} 5
up 1
# TYPE latency histogram
latency_bucket{target="auth",le="0.001"} 0
latency_bucket{target="auth",le="0.002"} 50
latency_bucket{target="auth",le="0.004"} 100
latency_bucket{target="auth",le="+Inf"} 100
"#;

    #[test]
    fn counters_are_summed_over_the_labels_that_are_not_named() {
        let metrics = Metrics::parse(TEXT).unwrap();
        for (labels, sum) in [
            (&[("outcome", "ok")][..], 35.0),
            (&[("target", "auth")], 32.0),
            (&[("target", "auth"), ("outcome", "retry")], 2.0),
            (&[("target", "cache, \"hot\"")], 5.0),
            (&[("target", "nobody")], 0.0),
        ] {
            assert_eq!(metrics.sum("deliveries", labels), sum, "{labels:?}");
        }
        assert_eq!(metrics.sum("up", &[]), 1.0);
    }

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        let mut metrics = Metrics::parse(TEXT).unwrap();
        assert_eq!(metrics.quantile("latency", &[], 0.5), Some(0.002));
        assert_eq!(metrics.quantile("latency", &[], 0.75), Some(0.003));
        assert_eq!(
            metrics.quantile("latency", &[("target", "nobody")], 0.5),
            None
        );
        // Two replicas with the same samples have the same quantiles.
        metrics.merge(metrics.clone());
        assert_eq!(metrics.quantile("latency", &[], 0.75), Some(0.003));
    }

    #[test]
    fn a_line_that_is_no_sample_is_an_error() {
        assert!(Metrics::parse("deliveries{target=\"auth\"").is_err());
    }
}
