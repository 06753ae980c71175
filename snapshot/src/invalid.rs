//! Why a decoded value is refused.

use core::fmt;

/// A decoded value broke a rule the running code relies on. Nothing was built from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// Where: a path such as `flows[3].port`. Empty for the value as a whole.
    pub field: String,
    /// What was found there.
    pub found: String,
    /// What would have been accepted.
    pub expected: String,
}

impl Invalid {
    /// Refuses `field`.
    pub fn new(field: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { field: field.into(), found: found.into(), expected: expected.into() }
    }

    /// The same refusal, seen from the value that holds the refused one in its field `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        let dot = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        self.field = format!("{outer}{dot}{}", self.field);
        self
    }

    /// The same refusal, seen from the list that holds the refused value at `index`.
    #[must_use]
    pub fn at(self, index: usize) -> Self {
        self.within(&format!("[{index}]"))
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, found, expected } = self;
        match field.as_str() {
            "" => write!(f, "found {found}, expected {expected}"),
            _ => write!(f, "{field}: found {found}, expected {expected}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_where_what_and_what_instead() {
        let refusal = Invalid::new("port", "0", "1 to 65535").at(3).within("flows").within("table");
        assert_eq!(refusal.to_string(), "table.flows[3].port: found 0, expected 1 to 65535");
        assert_eq!(Invalid::new("", "0", "1").at(0).to_string(), "[0]: found 0, expected 1");
        assert_eq!(Invalid::new("", "0", "1").to_string(), "found 0, expected 1");
    }
}
