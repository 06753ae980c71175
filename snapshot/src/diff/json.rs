//! Trees and differences as serde data, for programs.

use core::fmt::Write;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::{Change, Difference, Value};

/// As plain as the format allows. Bytes are hexadecimal digits, a whole number beyond 64 bits is a text.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => serializer.serialize_u64(value),
                (_, Ok(value)) => serializer.serialize_i64(value),
                _ => serializer.serialize_str(&value.to_string()),
            },
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Bytes(value) => {
                let mut digits = String::with_capacity(value.len().saturating_mul(2));
                for byte in value {
                    // Writing to a string does not fail.
                    let _ = write!(digits, "{byte:02x}");
                }
                serializer.serialize_str(&digits)
            }
            Self::List(values) => serializer.collect_seq(values),
            Self::Map(values) => serializer.collect_map(values),
        }
    }
}

/// `{"path": .., "from": .., "to": ..}`; what was added has no `from`, what was removed no `to`.
impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (path, from, to) = match self {
            Self::Added { path, value } => (path, None, Some(value)),
            Self::Removed { path, value } => (path, Some(value), None),
            Self::Changed { path, from, to } => (path, Some(from), Some(to)),
        };
        let mut fields =
            serializer.serialize_struct("Change", 1 + usize::from(from.is_some()) + usize::from(to.is_some()))?;
        fields.serialize_field("path", path)?;
        match from {
            Some(from) => fields.serialize_field("from", from)?,
            None => fields.skip_field("from")?,
        }
        match to {
            Some(to) => fields.serialize_field("to", to)?,
            None => fields.skip_field("to")?,
        }
        fields.end()
    }
}

/// `{"change": "added", "section": .., "item": .., "value": ..}`, the same with `removed`, and `changed` with `fields`.
impl Serialize for Difference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Difference", 4)?;
        let (change, section, item) = match self {
            Self::Added { section, item, .. } => ("added", section, item),
            Self::Removed { section, item, .. } => ("removed", section, item),
            Self::Changed { section, item, .. } => ("changed", section, item),
        };
        fields.serialize_field("change", change)?;
        fields.serialize_field("section", section)?;
        fields.serialize_field("item", item)?;
        match self {
            Self::Added { value, .. } | Self::Removed { value, .. } => fields.serialize_field("value", value)?,
            Self::Changed { fields: changes, .. } => fields.serialize_field("fields", changes)?,
        }
        fields.end()
    }
}
