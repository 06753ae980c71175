//! How an image is asked to come back, on a command line or over the control socket, and how old it is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use std::time::SystemTime;

use hibernet_netstack::ClonePolicy;
use hibernet_netstack::Decoded;
use hibernet_netstack::ForkRules;
use hibernet_netstack::RestorePolicy;
use hibernet_netstack::TimePolicy;
use hibernet_snapshot::codec;
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::image::SectionId;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

use super::images::ImageFiles;
use crate::fault::Fault;

/// An image, and how it is to come back. As JSON it is the body of `PUT /restore`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreRequest {
    /// The image; over the control socket an absolute path.
    pub(crate) path: PathBuf,
    /// The deltas behind it, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) deltas: Vec<PathBuf>,
    /// The file with the key they are sealed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seal_key: Option<PathBuf>,
    /// Whether the saved gateway may still live.
    #[serde(default, rename = "clone")]
    pub(crate) kind: CloneKind,
    /// Of a fork: which flows go on in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rules: Option<ForkRules>,
    /// What the time since the save counts for.
    #[serde(default)]
    pub(crate) time: TimeChoice,
    /// How long ago the image was saved; without it the system's clock and the time in the image say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) elapsed: Option<Span>,
    /// The links that lead to the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) inside: Vec<String>,
}

/// Whether the saved gateway may still live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CloneKind {
    /// It is gone.
    #[default]
    Move,
    /// It may live, and others from the same image.
    Fork,
}

/// A time policy by its name: `freeze`, `elapse` or `cap=TIME`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TimeChoice(TimePolicy);

/// A length of time as people write it: seconds, or `90s`, `15m`, `1h`, `2d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl RestoreRequest {
    /// An image whose gateway is gone, and for which no time has passed.
    pub(crate) fn moved(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// The files that it is read from.
    pub(crate) fn files(&self) -> ImageFiles {
        let paths = std::iter::once(&self.path).chain(&self.deltas).cloned().collect();
        ImageFiles { paths, seal_key: self.seal_key.clone() }
    }

    /// The policy this comes to for the image that was read.
    pub(super) fn policy(&self, image: &Decoded) -> anyhow::Result<RestorePolicy> {
        let Self { path, deltas: _, seal_key: _, kind, rules, time: TimeChoice(time), elapsed, inside } = self;
        let clone = match (kind, rules) {
            (CloneKind::Move, None) => ClonePolicy::Move,
            (CloneKind::Move, Some(_)) => anyhow::bail!("found rules for a move, expected them for a fork alone"),
            (CloneKind::Fork, rules) => ClonePolicy::Fork(rules.clone().unwrap_or_default()),
        };
        let elapsed = match (elapsed, saved_at(image)?) {
            (Some(Span(elapsed)), _) => *elapsed,
            // A clock that was set back in between says nothing: no time has passed that is known of.
            (None, Some(saved_at)) => now().saturating_sub(saved_at),
            (None, None) if *time == TimePolicy::Freeze => Duration::ZERO,
            (None, None) => {
                let what = format!("the image {} does not say when it was saved", path.display());
                return Err(Fault::new(what, "say how long ago that was, with --elapsed (`elapsed`)").into());
            }
        };
        Ok(RestorePolicy { clone, time: *time, elapsed, inside: inside.clone() })
    }
}

/// What goes into an image to say when it was saved.
pub(super) fn saved_now() -> anyhow::Result<Vec<u8>> {
    Ok(codec::encode(&now())?)
}

/// The section of the wall clock's time at the save, by Unix time. The libraries know no such time; this program does.
pub(crate) const SAVED_AT: SectionId = SectionId::new(*b"WALL");
/// Version of its layout.
pub(super) const SAVED_AT_VERSION: u16 = 1;

fn saved_at(image: &Decoded) -> anyhow::Result<Option<Duration>> {
    match image.skipped(SAVED_AT).filter(|section| section.version == SAVED_AT_VERSION) {
        Some(section) => Ok(Some(codec::decode(&section.body, &Limits::default())?)),
        None => Ok(None),
    }
}

/// The system's clock, since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

impl FromStr for TimeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "freeze" => TimePolicy::Freeze,
            "elapse" => TimePolicy::Elapse,
            _ => match text.strip_prefix("cap=") {
                Some(most) => TimePolicy::Cap(most.parse::<Span>()?.0),
                None => return Err(format!("found the time policy {text:?}, expected freeze, elapse or cap=TIME")),
            },
        }))
    }
}

impl fmt::Display for TimeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            TimePolicy::Elapse => f.write_str("elapse"),
            TimePolicy::Cap(most) => write!(f, "cap={}", Span(most)),
            _ => f.write_str("freeze"),
        }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = match text.find(|letter: char| !letter.is_ascii_digit()) {
            Some(at) => text.split_at(at),
            None => (text, "s"),
        };
        let unit = match unit {
            "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3600),
            "d" => Some(86_400),
            _ => None,
        };
        let seconds = unit.zip(number.parse::<u64>().ok()).and_then(|(unit, number)| number.checked_mul(unit));
        let bad = || format!("found the time {text:?}, expected seconds, or a number with s, m, h or d behind it");
        Ok(Self(Duration::from_secs(seconds.ok_or_else(bad)?)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0.as_secs())
    }
}

macro_rules! as_text {
    ($($kind:ty),+) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

as_text!(TimeChoice, Span);

#[cfg(test)]
mod tests {
    use hibernet_netstack::Packing;
    use hibernet_netstack::SaveBuffer;
    use hibernet_netstack::Stack;
    use hibernet_netstack::StackConfig;
    use hibernet_snapshot::Entropy;
    use hibernet_snapshot::Instant;

    use super::*;

    /// The image of an empty stack that was saved then.
    fn image(saved_at: Option<Duration>) -> Decoded {
        let mut entropy = Entropy::from_test_seed(1);
        let stack = Stack::new(StackConfig::default(), entropy.fork(), Instant::ZERO).expect("a stack");
        let mut frozen = stack.freeze(entropy.public_id(), Instant::ZERO, SaveBuffer::default()).expect("a copy");
        if let Some(saved_at) = saved_at {
            frozen.add(SAVED_AT, SAVED_AT_VERSION, codec::encode(&saved_at).expect("a section"));
        }
        let mut image = Vec::new();
        let sink = |bytes: &[u8]| -> Result<(), ()> {
            image.extend_from_slice(bytes);
            Ok(())
        };
        frozen.write(&Packing::default(), sink).expect("an image");
        Decoded::open(&image, &Limits::default()).expect("a sound image")
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800), ("0", 0)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_secs(seconds))), "{text}");
        }
        for text in ["", "h", "1w", "-1", "1.5h", "99999999999999999999", "9999999999999999d"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        for text in ["freeze", "elapse", "cap=3600s"] {
            assert_eq!(text.parse::<TimeChoice>().expect("a policy").to_string(), text);
        }
        assert!("cap".parse::<TimeChoice>().expect_err("no time").contains("expected freeze, elapse or cap=TIME"));
    }

    #[test]
    fn the_age_of_an_image_is_what_is_said_else_what_it_says_itself() {
        let day_ago = now().saturating_sub(Duration::from_secs(86_400));
        let (plain, dated) = (image(None), image(Some(day_ago)));
        let mut request = RestoreRequest { time: "elapse".parse().expect("a policy"), ..RestoreRequest::moved("/i") };
        let found = request.policy(&dated).expect("a policy").elapsed;
        assert!((86_400..86_500).contains(&found.as_secs()), "{found:?}");
        let error = request.policy(&plain).expect_err("nobody knows").to_string();
        assert!(error.contains("does not say when it was saved") && error.contains("--elapsed"), "{error}");
        request.elapsed = Some(Span(Duration::from_secs(5)));
        for image in [&plain, &dated] {
            assert_eq!(request.policy(image).expect("a policy").elapsed, Duration::from_secs(5));
        }
        request.rules = Some(ForkRules::default());
        assert!(request.policy(&plain).expect_err("a move has none").to_string().contains("for a fork alone"));
    }
}
