//! What became of one item of many: a flow, a rule, a link.

use core::fmt;

use super::{Change, Value, compare};

/// What became of an item. Prints as a line, and below it a line for each field that changed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Difference {
    /// It is there now.
    Added {
        /// The kind of thing it is, such as `flows`.
        section: &'static str,
        /// Its name among them.
        item: String,
        /// What it is.
        value: Value,
    },
    /// It is gone.
    Removed {
        /// The kind of thing it was.
        section: &'static str,
        /// Its name among them.
        item: String,
        /// What it was.
        value: Value,
    },
    /// It is still there and not as it was.
    Changed {
        /// The kind of thing it is.
        section: &'static str,
        /// Its name among them.
        item: String,
        /// What changed of it, in canonical order.
        fields: Vec<Change>,
    },
}

impl Difference {
    /// What became of an item that is there before and after; `None` where that is nothing.
    pub fn between(section: &'static str, item: String, before: &Value, after: &Value) -> Option<Self> {
        let fields = compare(before, after);
        (!fields.is_empty()).then_some(Self::Changed { section, item, fields })
    }

    /// The kind of thing the item is.
    pub const fn section(&self) -> &'static str {
        match self {
            Self::Added { section, .. } | Self::Removed { section, .. } | Self::Changed { section, .. } => section,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, section, item) = match self {
            Self::Added { section, item, .. } => ('+', section, item),
            Self::Removed { section, item, .. } => ('-', section, item),
            Self::Changed { section, item, .. } => ('~', section, item),
        };
        let gap = if item.is_empty() { "" } else { " " };
        write!(f, "{sign} {section}{gap}{item}")?;
        match self {
            // An item that is nothing but its name.
            Self::Added { value: Value::Null, .. } | Self::Removed { value: Value::Null, .. } => Ok(()),
            Self::Added { value, .. } | Self::Removed { value, .. } => write!(f, ": {}", value.in_a_row()),
            Self::Changed { fields, .. } => fields.iter().try_for_each(|change| write!(f, "\n    {change}")),
        }
    }
}
