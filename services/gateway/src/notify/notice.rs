//! A notice: one message about one or several alerts, or a test. Its id tells a repeat from a new one.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use usersync_core::alert::{Alert, Kind, Severity, Status};
use uuid::Uuid;

/// One message.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    /// The same for the same alerts, 32 hex digits.
    pub(super) id: String,
    /// When the newest of them was told.
    pub(super) at: Timestamp,
    /// Oldest first; none in a test.
    pub(super) alerts: Vec<Item>,
}

/// What people are told of an alert. Nothing personal is in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) target: String,
    pub(super) status: Status,
    pub(super) severity: Severity,
    pub(super) since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) until: Option<Timestamp>,
    pub(super) summary: String,
    pub(super) runbook: String,
}

impl From<&Alert> for Item {
    fn from(alert: &Alert) -> Self {
        Self {
            id: alert.id.clone(),
            kind: alert.kind,
            target: alert.target.clone(),
            status: alert.status,
            severity: alert.severity,
            since: alert.since,
            until: alert.until,
            summary: alert.summary.clone(),
            runbook: alert.runbook.clone(),
        }
    }
}

/// The body of a webhook's call.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    r#type: &'static str,
    timestamp: Timestamp,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    alerts: &'a [Item],
}

impl Notice {
    /// About these alerts, the newest of which was told `at`.
    pub(super) fn of(alerts: Vec<Item>, at: Timestamp) -> Self {
        let told = alerts.iter().map(|item| (item.id.as_str(), item.status));
        Self {
            id: id_of(told),
            at,
            alerts,
        }
    }

    /// About nothing, to see whether it arrives.
    pub(super) fn test() -> Self {
        Self {
            id: Uuid::now_v7().simple().to_string(),
            at: Timestamp::now(),
            alerts: Vec::new(),
        }
    }

    pub(super) fn body(&self) -> Body<'_> {
        Body {
            r#type: match self.alerts.is_empty() {
                true => "usersync.test",
                false => "usersync.alerts",
            },
            timestamp: self.at,
            data: Data {
                alerts: &self.alerts,
            },
        }
    }

    /// The id of the notice that tells of nothing but this one alert's being raised, where this one tells of nothing
    /// but its being resolved.
    pub(super) fn answers(&self) -> Option<String> {
        let [resolved] = &*self.alerts else {
            return None;
        };
        let raised = (resolved.id.as_str(), Status::Raised);
        (resolved.status == Status::Resolved).then(|| id_of([raised].into_iter()))
    }

    /// A line that says what it is about.
    pub(super) fn subject(&self) -> String {
        match &*self.alerts {
            [] => "usersync: a test".to_owned(),
            [one] => format!("usersync: {}", one.headline()),
            several => {
                let raised = several.iter().filter(|item| item.status == Status::Raised);
                let (all, raised) = (several.len(), raised.count());
                let resolved = all - raised;
                format!("usersync: {all} alerts, {raised} raised and {resolved} resolved")
            }
        }
    }

    /// All of it as text.
    pub(super) fn text(&self) -> String {
        if self.alerts.is_empty() {
            return "This is a test: alerts of usersync arrive here.\n".to_owned();
        }
        let items = self.alerts.iter().map(Item::text);
        items.collect::<Vec<_>>().join("\n")
    }
}

impl Item {
    fn headline(&self) -> String {
        let status = match self.status {
            Status::Raised => "raised",
            Status::Resolved => "resolved",
        };
        let severity = match self.severity {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
        };
        format!("{status}, {severity}: {} of {}", self.kind, self.target)
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{}\n{}\nsince: {:.0}\n",
            self.headline(),
            self.summary,
            self.since
        );
        // Nothing can go wrong writing into a string.
        if let Some(until) = self.until {
            let _ = writeln!(text, "until: {until:.0}");
        }
        let _ = writeln!(text, "run-book: {}", self.runbook);
        text
    }
}

fn id_of<'a>(told: impl Iterator<Item = (&'a str, Status)>) -> String {
    let mut hash = Sha256::new();
    for (id, status) in told {
        hash.update(id);
        hash.update(match status {
            Status::Raised => "\nraised\n",
            Status::Resolved => "\nresolved\n",
        });
    }
    let hash = hash.finalize();
    hash.iter().take(16).fold(String::new(), |mut id, byte| {
        let _ = write!(id, "{byte:02x}");
        id
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn item(n: u32, status: Status) -> Item {
        let alert = json!({"id": format!("breaker:audit:{n}"), "kind": "breaker", "target": "audit", "status": status,
            "severity": "critical", "since": "2026-01-01T00:00:00.5Z", "summary": "audit is down",
            "reason": "a target said so", "runbook": "docs/RUNBOOK.md#breaker-open"});
        let alert: Alert = serde_json::from_value(alert).unwrap();
        Item::from(&alert)
    }

    fn notice(items: &[Item]) -> Notice {
        Notice::of(items.to_vec(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn an_id_follows_from_the_alerts_and_the_resolved_one_answers_the_raised_one() {
        let (raised, resolved) = (item(1, Status::Raised), item(1, Status::Resolved));
        let both = notice(&[raised.clone(), resolved.clone()]);
        assert_eq!(both.id, notice(&both.alerts).id);
        let ids = [
            vec![raised.clone()],
            vec![resolved.clone()],
            both.alerts.clone(),
        ];
        let ids: std::collections::BTreeSet<_> = ids.map(|items| notice(&items).id).into();
        assert_eq!(ids.len(), 3);
        let raised = notice(&[raised]);
        assert_eq!(notice(&[resolved]).answers(), Some(raised.id.clone()));
        assert_eq!((raised.answers(), both.answers()), (None, None));
    }

    #[test]
    fn people_are_told_what_where_and_what_to_do() {
        let raised = notice(&[item(1, Status::Raised)]);
        assert_eq!(
            raised.subject(),
            "usersync: raised, critical: breaker of audit"
        );
        let text = "raised, critical: breaker of audit\naudit is down\nsince: 2026-01-01T00:00:00Z\n\
                    run-book: docs/RUNBOOK.md#breaker-open\n";
        assert_eq!(raised.text(), text);
        let several = notice(&[item(1, Status::Raised), item(1, Status::Resolved)]);
        assert_eq!(
            several.subject(),
            "usersync: 2 alerts, 1 raised and 1 resolved"
        );
        let body = serde_json::to_value(raised.body()).unwrap();
        assert_eq!(body["type"], "usersync.alerts");
        assert_eq!(body["timestamp"], "1970-01-01T00:00:00Z");
        let members: Vec<_> = body["data"]["alerts"][0]
            .as_object()
            .unwrap()
            .keys()
            .collect();
        let shown = [
            "id", "kind", "runbook", "severity", "since", "status", "summary", "target",
        ];
        assert_eq!(members, shown);
    }
}
