//! Values of scenario files: sizes and times, alone, as a range, or as a weighted list.

use std::time::Duration;

use serde::Deserialize;
use toml::{Table, Value};

use super::{Sizes, Think, Weighted};
use crate::units;

const TIME: &str = "write a time like 10, \"10s\" or \"500ms\"";
const SIZE: &str = "write a size like 4096, \"64k\" or \"10MiB\"";

/// `10`, `0.5`, `"500ms"`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct Time(pub(super) Duration);

/// `4096`, `"64k"`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct Size(pub(super) u64);

impl TryFrom<Value> for Time {
    type Error = String;

    fn try_from(value: Value) -> Result<Time, String> {
        let time = match value {
            Value::String(text) => units::duration(&text),
            Value::Integer(seconds) => units::duration(&seconds.to_string()),
            Value::Float(seconds) => units::duration(&seconds.to_string()),
            other => Err(format!("a {} is no time: {TIME}", other.type_str())),
        };
        time.map(Time)
    }
}

impl TryFrom<Value> for Size {
    type Error = String;

    fn try_from(value: Value) -> Result<Size, String> {
        let size = match value {
            Value::String(text) => units::size(&text),
            Value::Integer(bytes) => units::size(&bytes.to_string()),
            other => Err(format!("a {} is no size: {SIZE}", other.type_str())),
        };
        size.map(Size)
    }
}

/// A time, or `{ from = …, to = … }`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct Times(pub(super) Think);

impl TryFrom<Value> for Times {
    type Error = String;

    fn try_from(value: Value) -> Result<Times, String> {
        let Value::Table(mut table) = value else {
            let Time(time) = Time::try_from(value)?;
            return Ok(Times(Think {
                from: time,
                to: time,
            }));
        };
        only(&table, &["from", "to"])?;
        let (from, to) = (time(&mut table, "from")?, time(&mut table, "to")?);
        Ok(Times(Think { from, to }))
    }
}

/// A size, `{ from = …, to = … }`, or a list of either, each with a weight if it likes.
impl TryFrom<Value> for Sizes {
    type Error = String;

    fn try_from(value: Value) -> Result<Sizes, String> {
        match value {
            Value::Array(all) => Ok(Sizes(
                all.into_iter().map(weighted).collect::<Result<_, _>>()?,
            )),
            one => Ok(Sizes(vec![weighted(one)?])),
        }
    }
}

fn weighted(value: Value) -> Result<Weighted, String> {
    let Value::Table(mut table) = value else {
        let Size(size) = Size::try_from(value)?;
        return Ok(Weighted {
            from: size,
            to: size,
            weight: 1.0,
        });
    };
    only(&table, &["size", "from", "to", "weight"])?;
    let weight = match table.remove("weight") {
        None => 1.0,
        Some(Value::Integer(weight)) => weight as f64,
        Some(Value::Float(weight)) => weight,
        Some(_) => return Err("a weight is a number above 0".into()),
    };
    let (from, to) = if table.contains_key("size") {
        let size = size(&mut table, "size")?;
        (size, size)
    } else {
        (size(&mut table, "from")?, size(&mut table, "to")?)
    };
    Ok(Weighted { from, to, weight })
}

fn time(table: &mut Table, field: &str) -> Result<Duration, String> {
    let value = table
        .remove(field)
        .ok_or_else(|| format!("`{field}` is missing: {TIME}"))?;
    Time::try_from(value).map(|time| time.0)
}

fn size(table: &mut Table, field: &str) -> Result<u64, String> {
    let value = table
        .remove(field)
        .ok_or_else(|| format!("`{field}` is missing: {SIZE}, as `size`, or as `from` and `to`"))?;
    Size::try_from(value).map(|size| size.0)
}

/// Else a field that is misspelt would be told as one that is missing.
fn only(table: &Table, fields: &[&str]) -> Result<(), String> {
    match table.keys().find(|key| !fields.contains(&key.as_str())) {
        Some(key) => Err(format!(
            "unknown field `{key}`, expected {}",
            fields.join(", ")
        )),
        None => Ok(()),
    }
}
