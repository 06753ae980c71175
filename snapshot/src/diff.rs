//! What a save holds, for people: a canonical tree, and the differences between two.
//!
//! ```
//! use hibernet_snapshot::diff;
//! # fn main() -> Result<(), diff::ValueError> {
//! let before = diff::value(&("eth0", vec![80, 443]))?;
//! let after = diff::value(&("eth0", vec![80, 8443, 53]))?;
//! let changes: Vec<String> = diff::compare(&before, &after).iter().map(ToString::to_string).collect();
//! assert_eq!(changes, ["~ [1][1]: 443 -> 8443", "+ [1][2]: 53"]);
//! # Ok(())
//! # }
//! ```
//!
//! Much is compared item by item: [`merged`] pairs what is in order of a key, in one pass over both, [`aligned`] what is in an order
//! of its own, and a [`Difference`] says what became of an item. Trees are made of those alone that differ.

mod byte;
mod items;
mod json;
mod merge;
mod tree;

use core::fmt;
use std::collections::{BTreeMap, BTreeSet};

pub use items::Difference;
pub use merge::{Pair, aligned, merged};
pub use tree::ValueError;

/// Any serialisable value, as a tree. Prints one line for each leaf, in canonical order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Nothing: `None`, `()`, a unit struct.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// A number with a fraction.
    Float(f64),
    /// A text, or the name of a variant without fields.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list, array or tuple.
    List(Vec<Value>),
    /// A struct, a map, or a variant with fields under its name.
    Map(BTreeMap<String, Value>),
}

/// The tree of `value`.
///
/// # Errors
/// If the type's `Serialize` refuses.
pub fn value<T: serde::Serialize + ?Sized>(value: &T) -> Result<Value, ValueError> {
    value.serialize(tree::TreeSerializer)
}

/// What turns `before` into `after`, leaf by leaf, in canonical order. Lists are compared place by place.
pub fn compare(before: &Value, after: &Value) -> Vec<Change> {
    let (before, after) = (before.leaves(), after.leaves());
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    paths
        .into_iter()
        .filter_map(|path| {
            let place = path.to_string();
            match (before.get(path).copied(), after.get(path).copied()) {
                (Some(from), Some(to)) if from == to => None,
                (Some(from), Some(to)) => Some(Change::Changed { path: place, from: from.clone(), to: to.clone() }),
                (Some(value), None) => Some(Change::Removed { path: place, value: value.clone() }),
                (None, Some(value)) => Some(Change::Added { path: place, value: value.clone() }),
                (None, None) => None,
            }
        })
        .collect()
}

/// One leaf that differs. Prints as one line.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is there now.
    Added {
        /// Where, such as `flows[3].port`.
        path: String,
        /// The new value.
        value: Value,
    },
    /// It is gone.
    Removed {
        /// Where.
        path: String,
        /// The old value.
        value: Value,
    },
    /// It is another.
    Changed {
        /// Where.
        path: String,
        /// The old value.
        from: Value,
        /// The new value.
        to: Value,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { path, value } => write!(f, "+ {path}: {value}"),
            Self::Removed { path, value } => write!(f, "- {path}: {value}"),
            Self::Changed { path, from, to } => write!(f, "~ {path}: {from} -> {to}"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Bytes(value) if value.len() <= SHOWN_BYTES => write!(f, "b\"{}\"", value.escape_ascii()),
            Self::Bytes(value) => write!(f, "{} bytes with CRC-32 {:08x}", value.len(), crc32fast::hash(value)),
            Self::List(values) if values.is_empty() => f.write_str("[]"),
            Self::Map(values) if values.is_empty() => f.write_str("{}"),
            Self::List(_) | Self::Map(_) => {
                self.leaves().iter().try_for_each(|(path, leaf)| writeln!(f, "{path}: {leaf}"))
            }
        }
    }
}

impl Value {
    /// All leaves in one line, each behind its path.
    pub fn in_a_row(&self) -> String {
        let leaf = |(path, leaf): (Path, &Self)| match path.to_string() {
            path if path.is_empty() => leaf.to_string(),
            path => format!("{path} {leaf}"),
        };
        self.leaves().into_iter().map(leaf).collect::<Vec<_>>().join(", ")
    }

    /// Everything that has no parts, by where it is.
    fn leaves(&self) -> BTreeMap<Path, &Self> {
        let mut leaves = BTreeMap::new();
        self.collect_leaves(&Path::default(), &mut leaves);
        leaves
    }

    fn collect_leaves<'a>(&'a self, path: &Path, leaves: &mut BTreeMap<Path, &'a Self>) {
        match self {
            Self::List(values) if !values.is_empty() => {
                for (index, value) in values.iter().enumerate() {
                    value.collect_leaves(&path.then(Step::Index(index)), leaves);
                }
            }
            Self::Map(values) if !values.is_empty() => {
                for (key, value) in values {
                    value.collect_leaves(&path.then(Step::Key(key.clone())), leaves);
                }
            }
            leaf => {
                leaves.insert(path.clone(), leaf);
            }
        }
    }
}

/// The way from the root to a leaf. Ordered by number where it is a number, so `[10]` comes after `[9]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    fn then(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if depth == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

/// Longer ones are named by length and checksum.
const SHOWN_BYTES: usize = 32;

#[cfg(test)]
mod tests;
