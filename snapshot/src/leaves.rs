//! `Snapshot` for the types of the standard library that have nothing secret.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{Entropy, GenerationId, Invalid, Schema, Snapshot};

macro_rules! leaf {
    ($($type:ty),+ $(,)?) => {$(
        impl Snapshot for $type {
            type Saved = Self;
            type Supplied = ();
            const SCHEMA: Schema = Schema::Leaf { name: stringify!($type) };

            fn save(&self) -> Self {
                self.clone()
            }

            fn restore(saved: Self, (): (), _: &mut Entropy) -> Result<Self, Invalid> {
                Ok(saved)
            }
        }
    )+};
}

leaf!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, bool, char, String);
leaf!(IpAddr, Ipv4Addr, Ipv6Addr, GenerationId);

/// A [`Duration`] as it is written: what serde makes of one, but with one spelling. Serde itself reads a billion nanoseconds and
/// more as seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurationSaved {
    secs: u64,
    nanos: u32,
}

impl Snapshot for Duration {
    type Saved = DurationSaved;
    type Supplied = ();
    const SCHEMA: Schema = Schema::Leaf { name: "Duration" };

    fn save(&self) -> DurationSaved {
        DurationSaved { secs: self.as_secs(), nanos: self.subsec_nanos() }
    }

    fn restore(saved: DurationSaved, (): (), _: &mut Entropy) -> Result<Self, Invalid> {
        let DurationSaved { secs, nanos } = saved;
        if nanos >= NANOS_OF_A_SECOND {
            return Err(Invalid::new("nanos", nanos.to_string(), "less than a second"));
        }
        Ok(Self::new(secs, nanos))
    }
}

const NANOS_OF_A_SECOND: u32 = 1_000_000_000;

impl<T: Snapshot<Supplied = ()>> Snapshot for Option<T> {
    type Saved = Option<T::Saved>;
    type Supplied = ();
    const SCHEMA: Schema = Schema::Container { name: "Option", arguments: &[T::SCHEMA] };

    fn save(&self) -> Self::Saved {
        self.as_ref().map(T::save)
    }

    fn restore(saved: Self::Saved, (): (), entropy: &mut Entropy) -> Result<Self, Invalid> {
        saved.map(|saved| T::restore(saved, (), entropy)).transpose()
    }
}

/// The saved form of what is boxed.
impl<T: Snapshot> Snapshot for Box<T> {
    type Saved = T::Saved;
    type Supplied = T::Supplied;
    const SCHEMA: Schema = T::SCHEMA;

    fn save(&self) -> Self::Saved {
        T::save(self)
    }

    fn restore(saved: Self::Saved, supplied: Self::Supplied, entropy: &mut Entropy) -> Result<Self, Invalid> {
        T::restore(saved, supplied, entropy).map(Self::new)
    }
}

impl<T: Snapshot<Supplied = ()>> Snapshot for Vec<T> {
    type Saved = Vec<T::Saved>;
    type Supplied = ();
    const SCHEMA: Schema = Schema::Container { name: "Vec", arguments: &[T::SCHEMA] };

    fn save(&self) -> Self::Saved {
        self.iter().map(T::save).collect()
    }

    fn restore(saved: Self::Saved, (): (), entropy: &mut Entropy) -> Result<Self, Invalid> {
        restore_all(saved, entropy).collect()
    }
}

impl<T: Snapshot<Supplied = ()>> Snapshot for VecDeque<T> {
    type Saved = Vec<T::Saved>;
    type Supplied = ();
    const SCHEMA: Schema = Schema::Container { name: "VecDeque", arguments: &[T::SCHEMA] };

    fn save(&self) -> Self::Saved {
        self.iter().map(T::save).collect()
    }

    fn restore(saved: Self::Saved, (): (), entropy: &mut Entropy) -> Result<Self, Invalid> {
        restore_all(saved, entropy).collect()
    }
}

/// Saved as a list, because serde has arrays up to 32 elements only; another length is refused.
impl<T: Snapshot<Supplied = ()>, const N: usize> Snapshot for [T; N] {
    type Saved = Vec<T::Saved>;
    type Supplied = ();
    const SCHEMA: Schema = Schema::Array { element: &T::SCHEMA, length: N };

    fn save(&self) -> Self::Saved {
        self.iter().map(T::save).collect()
    }

    fn restore(saved: Self::Saved, (): (), entropy: &mut Entropy) -> Result<Self, Invalid> {
        let elements: Vec<T> = restore_all(saved, entropy).collect::<Result<_, _>>()?;
        Self::try_from(elements)
            .map_err(|elements| Invalid::new("", format!("{} elements", elements.len()), format!("{N}")))
    }
}

/// Saved as pairs in ascending order of the keys; any other order, and a key given twice, is refused.
impl<K, V> Snapshot for BTreeMap<K, V>
where
    K: Snapshot<Supplied = ()> + Ord,
    V: Snapshot<Supplied = ()>,
{
    type Saved = Vec<(K::Saved, V::Saved)>;
    type Supplied = ();
    const SCHEMA: Schema = Schema::Container { name: "BTreeMap", arguments: &[K::SCHEMA, V::SCHEMA] };

    fn save(&self) -> Self::Saved {
        self.iter().map(|(key, value)| (key.save(), value.save())).collect()
    }

    fn restore(saved: Self::Saved, (): (), entropy: &mut Entropy) -> Result<Self, Invalid> {
        let mut map = Self::new();
        for (index, entry) in restore_all::<(K, V)>(saved, entropy).enumerate() {
            let (key, value) = entry?;
            if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(Invalid::new("", "a key not above the one before", "ascending keys").at(index));
            }
            map.insert(key, value);
        }
        Ok(map)
    }
}

macro_rules! tuple {
    ($($type:ident $index:tt),+) => {
        impl<$($type: Snapshot<Supplied = ()>),+> Snapshot for ($($type,)+) {
            type Saved = ($($type::Saved,)+);
            type Supplied = ();
            const SCHEMA: Schema = Schema::Tuple { elements: &[$($type::SCHEMA),+] };

            fn save(&self) -> Self::Saved {
                ($(self.$index.save(),)+)
            }

            fn restore(saved: Self::Saved, (): (), entropy: &mut Entropy) -> Result<Self, Invalid> {
                Ok(($(
                    $type::restore(saved.$index, (), entropy).map_err(|invalid| invalid.within(stringify!($index)))?,
                )+))
            }
        }
    };
}

tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);

/// Restores the elements of a list one by one.
///
/// A type whose saved form takes no bytes cannot be in a list: a forged length of 2^60 would be decoded in full.
/// ```compile_fail,E0080
/// #[derive(hibernet_snapshot::Snapshot)]
/// struct Marker;
///
/// let restored = <Vec<Marker> as hibernet_snapshot::Snapshot>::restore(
///     vec![],
///     (),
///     &mut hibernet_snapshot::Entropy::from_test_seed(1),
/// );
/// ```
fn restore_all<T: Snapshot<Supplied = ()>>(
    saved: Vec<T::Saved>,
    entropy: &mut Entropy,
) -> impl Iterator<Item = Result<T, Invalid>> {
    const {
        assert!(size_of::<T::Saved>() > 0, "a list of a type without saved fields: save its length instead");
    }
    saved
        .into_iter()
        .enumerate()
        .map(|(index, saved)| T::restore(saved, (), entropy).map_err(|invalid| invalid.at(index)))
}
