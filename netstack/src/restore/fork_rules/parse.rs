//! Rules of a fork from and to text: JSON for files, words for command lines.

use core::fmt;
use core::str::FromStr;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::{
    ASSURED, FlowDirection, FlowState, ForkAction, ForkMatch, ForkRule, ForkRules, MarkMatch, REPLIED, UNREPLIED,
};

/// Why rules of a fork could not be read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct ForkRulesError(String);

impl ForkRules {
    /// Reads rules in JSON.
    pub fn from_json(text: &str) -> Result<Self, ForkRulesError> {
        serde_json::from_str(text).map_err(|error| ForkRulesError(error.to_string()))
    }
}

/// The object of the long form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    rules: Vec<ForkRule>,
    #[serde(default)]
    default: ForkAction,
}

impl<'de> Deserialize<'de> for ForkRules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RulesVisitor;

        impl<'de> Visitor<'de> for RulesVisitor {
            type Value = ForkRules;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of rules, or an object with \"rules\" and \"default\"")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ForkRules, A::Error> {
                let mut rules = Vec::new();
                while let Some(rule) = seq.next_element()? {
                    rules.push(rule);
                }
                Ok(ForkRules { rules, ..ForkRules::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ForkRules, A::Error> {
                let Written { rules, default } = Written::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(ForkRules { rules, default })
            }
        }

        deserializer.deserialize_any(RulesVisitor)
    }
}

impl FromStr for ForkRule {
    type Err = ForkRulesError;

    /// `ACTION KEY=VALUE ..`, the keys of [`ForkMatch`], states with commas between them.
    fn from_str(text: &str) -> Result<Self, ForkRulesError> {
        let place = |error: String| ForkRulesError(format!("rule `{text}`: {error}"));
        let mut words = text.split_whitespace();
        let action = words.next().unwrap_or_default().parse().map_err(|ForkRulesError(error)| place(error))?;
        let mut matches = ForkMatch::default();
        for word in words {
            let Some((key, value)) = word.split_once('=').filter(|(_, value)| !value.is_empty()) else {
                return Err(place(format!("found `{word}`, expected KEY=VALUE")));
            };
            set(&mut matches, key, value).map_err(place)?;
        }
        Ok(Self { matches, action })
    }
}

fn set(matches: &mut ForkMatch, key: &str, value: &str) -> Result<(), String> {
    let is_new = match key {
        "proto" => matches.proto.replace(read(value)?).is_none(),
        "saddr" => matches.saddr.replace(read(value)?).is_none(),
        "daddr" => matches.daddr.replace(read(value)?).is_none(),
        "sport" => matches.sport.replace(read(value)?).is_none(),
        "dport" => matches.dport.replace(read(value)?).is_none(),
        "state" => {
            let states = value.split(',').map(FlowState::named).collect::<Result<_, _>>()?;
            matches.state.replace(states).is_none()
        }
        "zone" => {
            let zone = value.parse().map_err(|_| format!("found the zone `{value}`, expected 0 to 65535"))?;
            matches.zone.replace(zone).is_none()
        }
        "mark" => matches.mark.replace(value.parse()?).is_none(),
        "direction" => matches.direction.replace(read(value)?).is_none(),
        "iif" => matches.iif.replace(value.to_owned()).is_none(),
        "oif" => matches.oif.replace(value.to_owned()).is_none(),
        _ => return Err(format!("found the key `{key}`, expected {KEYS}")),
    };
    if is_new { Ok(()) } else { Err(format!("found `{key}` twice, expected it once")) }
}

/// A value in the spelling it has in JSON.
fn read<'a, T: Deserialize<'a>>(value: &'a str) -> Result<T, String> {
    let value: de::value::StrDeserializer<'a, de::value::Error> = de::IntoDeserializer::into_deserializer(value);
    T::deserialize(value).map_err(|error| error.to_string())
}

impl FromStr for ForkAction {
    type Err = ForkRulesError;

    fn from_str(text: &str) -> Result<Self, ForkRulesError> {
        match text {
            "keep" => Ok(Self::Keep),
            "reset" => Ok(Self::Reset),
            "drop" => Ok(Self::Drop),
            _ => Err(ForkRulesError(format!("found the action `{text}`, expected keep, reset or drop"))),
        }
    }
}

impl fmt::Display for ForkAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::Reset => "reset",
            Self::Drop => "drop",
        })
    }
}

impl fmt::Display for ForkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { matches, action } = self;
        write!(f, "{action}")?;
        let ForkMatch { proto, saddr, daddr, sport, dport, state, zone, mark, direction, iif, oif } = matches;
        if let Some(proto) = proto {
            write!(f, " proto={proto}")?;
        }
        for (key, cidr) in [("saddr", saddr), ("daddr", daddr)] {
            if let Some(cidr) = cidr {
                write!(f, " {key}={cidr}")?;
            }
        }
        for (key, ports) in [("sport", sport), ("dport", dport)] {
            if let Some(ports) = ports {
                write!(f, " {key}={ports}")?;
            }
        }
        if let Some(states) = state {
            let words: Vec<&str> = states.iter().map(|FlowState(word)| *word).collect();
            write!(f, " state={}", words.join(","))?;
        }
        if let Some(zone) = zone {
            write!(f, " zone={zone}")?;
        }
        if let Some(mark) = mark {
            write!(f, " mark={mark}")?;
        }
        if let Some(direction) = direction {
            write!(f, " direction={direction}")?;
        }
        for (key, name) in [("iif", iif), ("oif", oif)] {
            if let Some(name) = name {
                write!(f, " {key}={name}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for FlowDirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Internal => "internal",
            Self::Transit => "transit",
        })
    }
}

impl FlowState {
    /// The state of that name.
    pub fn named(name: &str) -> Result<Self, String> {
        let known = STATES.iter().find(|known| **known == name);
        known.copied().map(Self).ok_or_else(|| format!("found the state `{name}`, expected {}", STATES.join(", ")))
    }

    /// The name.
    pub const fn name(self) -> &'static str {
        self.0
    }
}

impl Serialize for FlowState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for FlowState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::named(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl FromStr for MarkMatch {
    type Err = String;

    /// `VALUE` or `VALUE/MASK`, each decimal or hexadecimal with `0x`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("found the mark `{text}`, expected VALUE or VALUE/MASK, such as 7 or 0x10/0xf0");
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).map_err(|_| bad()),
            None => text.parse().map_err(|_| bad()),
        };
        let (value, mask) = match text.split_once('/') {
            Some((value, mask)) => (number(value)?, number(mask)?),
            None => (number(text)?, u32::MAX),
        };
        if value & !mask != 0 {
            return Err(format!("found the mark `{text}`, expected a value within its mask: nothing else can match"));
        }
        Ok(Self { value, mask })
    }
}

impl fmt::Display for MarkMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mask {
            u32::MAX => write!(f, "{:#x}", self.value),
            mask => write!(f, "{:#x}/{mask:#x}", self.value),
        }
    }
}

impl Serialize for MarkMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.mask == u32::MAX { serializer.serialize_u32(self.value) } else { serializer.collect_str(self) }
    }
}

impl<'de> Deserialize<'de> for MarkMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum NumberOrText {
            Number(u32),
            Text(String),
        }
        match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(value) => Ok(Self { value, mask: u32::MAX }),
            NumberOrText::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

const KEYS: &str = "proto, saddr, daddr, sport, dport, state, zone, mark, direction, iif or oif";
const STATES: [&str; 20] = [
    UNREPLIED,
    REPLIED,
    ASSURED,
    "none",
    "syn_sent",
    "syn_recv",
    "established",
    "fin_wait",
    "close_wait",
    "last_ack",
    "time_wait",
    "close",
    "syn_sent2",
    "closed",
    "cookie_wait",
    "cookie_echoed",
    "shutdown_sent",
    "shutdown_recd",
    "shutdown_ack_sent",
    "heartbeat_sent",
];
