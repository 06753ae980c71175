//! Serde's data model, of which nothing is taken but a `u8`.

use core::fmt::Display;

use serde::Serialize;
use serde::ser::{self, Impossible};

/// Takes a `u8`, and refuses all else.
pub(super) struct ByteSerializer;

/// It is something else.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no byte")]
pub(super) struct NoByte;

impl ser::Error for NoByte {
    fn custom<T: Display>(_: T) -> Self {
        Self
    }
}

type Result<T = u8> = core::result::Result<T, NoByte>;
type Never = Impossible<u8, NoByte>;

macro_rules! refused {
    ($($method:ident($($type:ty),*) -> $answer:ty;)+) => {$(
        fn $method(self, $(_: $type),*) -> Result<$answer> {
            Err(NoByte)
        }
    )+};
}

impl ser::Serializer for ByteSerializer {
    type Ok = u8;
    type Error = NoByte;
    type SerializeSeq = Never;
    type SerializeTuple = Never;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStruct = Never;
    type SerializeStructVariant = Never;

    fn serialize_u8(self, byte: u8) -> Result {
        Ok(byte)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result {
        Err(NoByte)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, _: &T) -> Result {
        Err(NoByte)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result {
        Err(NoByte)
    }

    refused! {
        serialize_bool(bool) -> u8;
        serialize_i8(i8) -> u8;
        serialize_i16(i16) -> u8;
        serialize_i32(i32) -> u8;
        serialize_i64(i64) -> u8;
        serialize_i128(i128) -> u8;
        serialize_u16(u16) -> u8;
        serialize_u32(u32) -> u8;
        serialize_u64(u64) -> u8;
        serialize_u128(u128) -> u8;
        serialize_f32(f32) -> u8;
        serialize_f64(f64) -> u8;
        serialize_char(char) -> u8;
        serialize_str(&str) -> u8;
        serialize_bytes(&[u8]) -> u8;
        serialize_none() -> u8;
        serialize_unit() -> u8;
        serialize_unit_struct(&'static str) -> u8;
        serialize_unit_variant(&'static str, u32, &'static str) -> u8;
        serialize_seq(Option<usize>) -> Never;
        serialize_tuple(usize) -> Never;
        serialize_tuple_struct(&'static str, usize) -> Never;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Never;
        serialize_map(Option<usize>) -> Never;
        serialize_struct(&'static str, usize) -> Never;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Never;
    }
}
