//! How the body of a section is encoded: the one module that names the codec crate.
//!
//! Integers have a fixed width and enums a number, so the codec has exactly one encoding for every value. Types whose own serde
//! form is more generous (`Duration` takes two billion nanoseconds) get a stricter saved form in `leaves`. A change here is a new
//! format version.

use bincode::config::{Configuration, Fixint, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::image::Limits;

/// The bytes of `value`.
///
/// # Errors
/// If the type's `Serialize` refuses, or it holds something the format cannot say, such as a list of unknown length.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, CONFIG).map_err(|error| CodecError::Encode { reason: error.to_string() })
}

/// The value that `bytes` hold, to the last byte.
///
/// Safe on hostile bytes: no length among them makes it allocate more than a small multiple of `bytes` before it is found false.
/// A type that contains itself is not guarded against: it can be nested as deep as the bytes go. (The schema rules such types out.)
///
/// # Errors
/// If there are more bytes than the limits allow, or fewer than the value takes, or some are left over, or they hold no `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limits: &Limits) -> Result<T, CodecError> {
    let limit = limits.section_bytes.min(LARGE);
    if bytes.len() > limit {
        return Err(CodecError::TooLong { found: bytes.len(), limit });
    }
    // The codec takes its limit as a constant, and allocates strings up to it on the strength of a length field alone.
    if bytes.len() <= SMALL {
        decode_up_to::<T, SMALL>(bytes)
    } else if bytes.len() <= MIDDLE {
        decode_up_to::<T, MIDDLE>(bytes)
    } else {
        decode_up_to::<T, LARGE>(bytes)
    }
}

/// Why a body was not encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The value cannot be written in this format.
    #[error("not encodable: {reason}")]
    Encode {
        /// The codec's words.
        reason: String,
    },
    /// The bytes hold no such value.
    #[error("not decodable: {reason}")]
    Decode {
        /// The codec's words.
        reason: String,
    },
    /// More bytes than the limits allow.
    #[error("{found} bytes to decode, the limit is {limit}")]
    TooLong {
        /// How many there are.
        found: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// The value ends before the bytes do.
    #[error("{left} bytes follow the last field")]
    TrailingBytes {
        /// How many are left over.
        left: usize,
    },
}

fn decode_up_to<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    let config = CONFIG.with_limit::<LIMIT>();
    let (value, read) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| CodecError::Decode { reason: error.to_string() })?;
    match bytes.len().saturating_sub(read) {
        0 => Ok(value),
        left => Err(CodecError::TrailingBytes { left }),
    }
}

const CONFIG: Configuration<LittleEndian, Fixint> = bincode::config::standard().with_fixed_int_encoding();

const SMALL: usize = 64 << 10;
const MIDDLE: usize = 16 << 20;
const LARGE: usize = 1 << 30;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        super::decode(bytes, &Limits::default())
    }

    /// A list or text of this length, of which nothing follows.
    fn forged(length: u64) -> Vec<u8> {
        length.to_le_bytes().to_vec()
    }

    #[test]
    fn integers_have_a_fixed_width() {
        assert_eq!(encode(&(1_u16, 2_u64, Some(true))).unwrap(), [1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn bytes_after_the_value_are_refused() {
        assert_eq!(decode::<u16>(&[1, 0, 0]), Err(CodecError::TrailingBytes { left: 1 }));
        assert_eq!(decode::<()>(&[1]), Err(CodecError::TrailingBytes { left: 1 }));
    }

    #[test]
    fn a_value_cut_at_any_length_is_refused() {
        let bytes = encode(&(7_u32, "text".to_owned(), vec![1_u16, 2])).unwrap();
        for length in 0..bytes.len() {
            let cut = decode::<(u32, String, Vec<u16>)>(&bytes[..length]);
            assert!(matches!(cut, Err(CodecError::Decode { .. })), "{length} bytes");
        }
    }

    #[test]
    fn a_forged_length_is_an_error_and_no_allocation() {
        // Believing any of these would abort the process: no machine has the memory.
        for length in [1 << 40, 1 << 60, u64::MAX] {
            assert!(decode::<Vec<u8>>(&forged(length)).is_err());
            assert!(decode::<Vec<[u64; 32]>>(&forged(length)).is_err());
            assert!(decode::<Vec<Vec<String>>>(&forged(length)).is_err());
            assert!(decode::<String>(&forged(length)).is_err());
            let long = [forged(length), vec![b'x'; MIDDLE]].concat();
            assert!(decode::<String>(&long).is_err());
        }
    }

    #[test]
    fn more_than_the_limit_is_refused_unread() {
        let limits = Limits { section_bytes: 1, ..Limits::default() };
        assert_eq!(super::decode::<u16>(&[0, 0], &limits), Err(CodecError::TooLong { found: 2, limit: 1 }));
        assert_eq!(super::decode::<u8>(&[7], &limits), Ok(7));
    }

    #[test]
    fn bodies_of_every_size_class_decode() {
        for length in [SMALL - 8, SMALL - 7, MIDDLE - 8, MIDDLE - 7] {
            let text = "x".repeat(length);
            assert!(decode::<String>(&encode(&text).unwrap()) == Ok(text));
        }
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes: Vec<u8>) {
            if let Ok(value) = decode::<(bool, Option<u16>, Vec<(u8, char)>, String)>(&bytes) {
                prop_assert_eq!(encode(&value).unwrap(), bytes);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            drop(decode::<Vec<Option<String>>>(&bytes));
            drop(decode::<std::collections::BTreeMap<char, Vec<bool>>>(&bytes));
        }
    }
}
