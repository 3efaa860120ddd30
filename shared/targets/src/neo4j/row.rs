//! One user as a row of a statement's parameter, and compared with the node that is there.

use neo4rs::{BoltList, BoltMap, BoltType};
use serde_json::Value;
use usersync_core::{event::Change, target::Table};
use usersync_digest::canonical;

use super::property;
use crate::{Action, Delivery, Failure, Standing, table::told};

/// One user on the way into the graph.
#[derive(Clone)]
pub(super) struct Row {
    /// Which delivery of the batch it is.
    pub(super) index: usize,
    id: BoltType,
    version: i64,
    properties: BoltMap,
    /// About as many bytes as it takes on the way.
    pub(super) size: usize,
}

impl Row {
    /// What `table` is told by the delivery at `index` of a batch.
    pub(super) fn of(table: &Table, index: usize, delivery: &Delivery) -> Result<Self, Failure> {
        let version = i64::try_from(delivery.version)
            .map_err(|_| Failure::new("the version doesn't fit an integer of Neo4j"))?;
        let mut properties = BoltMap::new();
        let mut size = 128;
        for (name, path) in &table.columns {
            let value = match delivery.action {
                Action::Delete => Change::Clear,
                // It is a text there, which nothing can be merged into.
                Action::Disable if path == "data" => Change::Keep,
                Action::Disable | Action::Upsert => told(delivery, path),
            };
            match value {
                Change::Keep => {}
                Change::Clear => properties.put(name.as_str().into(), property::none()),
                Change::Set(value) => {
                    let property = property::of(&value, path == "data");
                    size += name.len() + property::size(&property);
                    properties.put(name.as_str().into(), property);
                }
            }
        }
        properties.put(table.version.as_str().into(), version.into());
        if delivery.action != Action::Disable {
            let deleted = delivery.action == Action::Delete;
            properties.put(table.deleted.as_str().into(), deleted.into());
        }
        Ok(Self {
            index,
            id: property::id(&delivery.user_id),
            version,
            properties,
            size,
        })
    }

    /// How the node that is held, if one is, stands to what was told.
    pub(super) fn compare(&self, table: &Table, action: Action, held: Option<&Value>) -> Standing {
        let Some(held) = held else {
            return match action {
                Action::Disable | Action::Delete => Standing::Same,
                Action::Upsert => Standing::Missing,
            };
        };
        let version = held.get(&table.version).and_then(Value::as_i64);
        let version = version.unwrap_or_default();
        if version > self.version {
            return Standing::Newer(version.unsigned_abs());
        }
        let gone = held.get(&table.deleted) == Some(&Value::Bool(true));
        if action == Action::Disable && gone {
            return Standing::Same;
        }
        let older = version < self.version;
        self.content(table, action, held, gone).aged(older)
    }

    /// The same, whatever the versions.
    fn content(&self, table: &Table, action: Action, held: &Value, gone: bool) -> Standing {
        match (action, gone) {
            (Action::Upsert, true) => return Standing::Missing,
            (Action::Delete, false) => return Standing::Extra,
            _ => {}
        }
        let differing = self.properties.value.iter().find(|(name, told)| {
            if name.value == table.version {
                return false;
            }
            let held = held.get(name.value.as_str()).unwrap_or(&Value::Null);
            // As it is hashed.
            canonical(&property::shown(told)) != canonical(held)
        });
        let Some((name, _)) = differing else {
            return Standing::Same;
        };
        let path = table.columns.get(name.value.as_str());
        Standing::Different(path.unwrap_or(&name.value).clone().into())
    }
}

/// The rows as a parameter.
pub(super) fn list(rows: &[Row]) -> BoltType {
    let map = |row: &Row| {
        let mut map = BoltMap::new();
        map.put("n".into(), i64::try_from(row.index).unwrap_or(-1).into());
        map.put("id".into(), row.id.clone());
        map.put("version".into(), row.version.into());
        map.put("properties".into(), BoltType::Map(row.properties.clone()));
        BoltType::Map(map)
    };
    let mut list = BoltList::new();
    rows.iter().for_each(|row| list.push(map(row)));
    BoltType::List(list)
}
