//! Members at paths: taken out, put in, moved.

use serde_json::{Map, Value};
use usersync_core::{event::Change, fields::Members};

/// Why a value can't be put where it is meant to go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misfit(pub(super) &'static str);

/// Takes the member at `path` out; `Keep` where the target isn't told of it.
pub(super) fn take(members: &mut Members, path: &str) -> Change<Value> {
    match path {
        "username" => text(std::mem::take(&mut members.username)),
        "email" => text(std::mem::take(&mut members.email)),
        "status" => text(std::mem::take(&mut members.status)),
        "data" => std::mem::take(&mut members.data),
        _ => inner(&mut members.data, path).map_or(Change::Keep, |(parent, name)| {
            parent.remove(name).map_or(Change::Keep, Change::Set)
        }),
    }
}

/// Puts a member at `path`; `Keep` leaves what is there, `Clear` inside of `data` removes it.
pub(super) fn put(members: &mut Members, path: &str, value: Change<Value>) -> Result<(), Misfit> {
    let member = match path {
        "username" => &mut members.username,
        "email" => &mut members.email,
        "status" => &mut members.status,
        "data" => {
            if !value.is_keep() {
                members.data = value;
            }
            return Ok(());
        }
        _ => return put_inside(members, path, value),
    };
    match value {
        Change::Keep => {}
        Change::Clear | Change::Set(Value::Null) => *member = Change::Clear,
        Change::Set(Value::String(text)) => *member = Change::Set(text),
        Change::Set(_) => return Err(Misfit("expected a text or null")),
    }
    Ok(())
}

fn put_inside(members: &mut Members, path: &str, value: Change<Value>) -> Result<(), Misfit> {
    let value = match value {
        Change::Keep => return Ok(()),
        Change::Clear => {
            take(members, path);
            return Ok(());
        }
        Change::Set(value) => value,
    };
    let mut data = match std::mem::take(&mut members.data) {
        Change::Set(data) => data,
        Change::Keep | Change::Clear => Value::Null,
    };
    let mut place = &mut data;
    for name in path.split('.').skip(1) {
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        let Value::Object(object) = place else {
            return Err(Misfit("what it is to be put into is no object"));
        };
        place = object.entry(name).or_insert(Value::Null);
    }
    *place = value;
    members.data = Change::Set(data);
    Ok(())
}

/// The object that has the last name of `path`, and that name.
fn inner<'m, 'p>(
    data: &'m mut Change<Value>,
    path: &'p str,
) -> Option<(&'m mut Map<String, Value>, &'p str)> {
    let Change::Set(data) = data else { return None };
    let mut names = path.strip_prefix("data.")?.split('.');
    let name = names.next_back()?;
    let mut place = data;
    for parent in names {
        place = place.get_mut(parent)?;
    }
    Some((place.as_object_mut()?, name))
}

fn text(member: Change<String>) -> Change<Value> {
    match member {
        Change::Keep => Change::Keep,
        Change::Clear => Change::Clear,
        Change::Set(text) => Change::Set(Value::String(text)),
    }
}
