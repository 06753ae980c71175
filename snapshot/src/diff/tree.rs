//! Serde's data model, turned into a tree.

use core::fmt::Display;
use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::{self, Error as _};

use super::Value;
use super::byte::ByteSerializer;

/// Why a value has no tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not representable: {reason}")]
pub struct ValueError {
    /// What was refused.
    reason: String,
}

impl ser::Error for ValueError {
    fn custom<T: Display>(reason: T) -> Self {
        Self { reason: reason.to_string() }
    }
}

pub(super) struct TreeSerializer;

type Result<T = Value> = core::result::Result<T, ValueError>;

macro_rules! integers {
    ($($method:ident $type:ty),+) => {$(
        fn $method(self, value: $type) -> Result {
            Ok(Value::Integer(value.into()))
        }
    )+};
}

impl ser::Serializer for TreeSerializer {
    type Ok = Value;
    type Error = ValueError;
    type SerializeSeq = Sequence;
    type SerializeTuple = Elements;
    type SerializeTupleStruct = Elements;
    type SerializeTupleVariant = Elements;
    type SerializeMap = Entries;
    type SerializeStruct = Entries;
    type SerializeStructVariant = Entries;

    integers!(serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64, serialize_i128 i128);
    integers!(serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64);

    fn serialize_u128(self, value: u128) -> Result {
        Ok(i128::try_from(value).map_or_else(|_| Value::Text(value.to_string()), Value::Integer))
    }

    fn serialize_bool(self, value: bool) -> Result {
        Ok(Value::Bool(value))
    }

    fn serialize_f32(self, value: f32) -> Result {
        Ok(Value::Float(value.into()))
    }

    fn serialize_f64(self, value: f64) -> Result {
        Ok(Value::Float(value))
    }

    fn serialize_char(self, value: char) -> Result {
        Ok(Value::Text(value.to_string()))
    }

    fn serialize_str(self, value: &str) -> Result {
        Ok(Value::Text(value.to_owned()))
    }

    fn serialize_bytes(self, value: &[u8]) -> Result {
        Ok(Value::Bytes(value.to_vec()))
    }

    fn serialize_none(self) -> Result {
        Ok(Value::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result {
        Ok(Value::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result {
        Ok(Value::Null)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result {
        Ok(Value::Text(variant.to_owned()))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result {
        Ok(under(Some(variant), value.serialize(self)?))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Sequence> {
        Ok(Sequence::default())
    }

    fn serialize_tuple(self, _: usize) -> Result<Elements> {
        Ok(Elements::default())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Elements> {
        Ok(Elements::default())
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, name: &'static str, _: usize) -> Result<Elements> {
        Ok(Elements { variant: Some(name), ..Elements::default() })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Entries> {
        Ok(Entries::default())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Entries> {
        Ok(Entries::default())
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, name: &'static str, _: usize) -> Result<Entries> {
        Ok(Entries { variant: Some(name), ..Entries::default() })
    }
}

#[derive(Default)]
pub(super) struct Elements {
    variant: Option<&'static str>,
    elements: Vec<Value>,
}

impl Elements {
    fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.elements.push(value.serialize(TreeSerializer)?);
        Ok(())
    }

    fn finish(self) -> Value {
        under(self.variant, Value::List(self.elements))
    }
}

/// A list: bytes for as long as there is nothing but `u8` in it, as in a `Vec<u8>`.
#[derive(Default)]
pub(super) struct Sequence {
    bytes: Vec<u8>,
    elements: Vec<Value>,
}

impl ser::SerializeSeq for Sequence {
    type Ok = Value;
    type Error = ValueError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, element: &T) -> Result<()> {
        if self.elements.is_empty() {
            if let Ok(byte) = element.serialize(ByteSerializer) {
                self.bytes.push(byte);
                return Ok(());
            }
            self.elements.extend(self.bytes.drain(..).map(|byte| Value::Integer(byte.into())));
        }
        self.elements.push(element.serialize(TreeSerializer)?);
        Ok(())
    }

    fn end(self) -> Result {
        Ok(if self.bytes.is_empty() { Value::List(self.elements) } else { Value::Bytes(self.bytes) })
    }
}

#[derive(Default)]
pub(super) struct Entries {
    variant: Option<&'static str>,
    key: Option<String>,
    entries: BTreeMap<String, Value>,
}

impl Entries {
    fn insert<T: Serialize + ?Sized>(&mut self, key: String, value: &T) -> Result<()> {
        self.entries.insert(key, value.serialize(TreeSerializer)?);
        Ok(())
    }

    fn finish(self) -> Value {
        under(self.variant, Value::Map(self.entries))
    }
}

macro_rules! elements {
    ($($trait:ident $method:ident),+) => {$(
        impl ser::$trait for Elements {
            type Ok = Value;
            type Error = ValueError;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
                self.push(value)
            }

            fn end(self) -> Result {
                Ok(self.finish())
            }
        }
    )+};
}

elements!(SerializeTuple serialize_element);
elements!(SerializeTupleStruct serialize_field, SerializeTupleVariant serialize_field);

macro_rules! entries {
    ($($trait:ident),+) => {$(
        impl ser::$trait for Entries {
            type Ok = Value;
            type Error = ValueError;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<()> {
                self.insert(key.to_owned(), value)
            }

            fn end(self) -> Result {
                Ok(self.finish())
            }
        }
    )+};
}

entries!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Entries {
    type Ok = Value;
    type Error = ValueError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<()> {
        self.key = Some(match key.serialize(TreeSerializer)? {
            Value::Text(text) => text,
            // A key of several parts: those in a row.
            key @ (Value::List(_) | Value::Map(_)) => key.in_a_row(),
            plain => plain.to_string(),
        });
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        let key = self.key.take().ok_or_else(|| ValueError::custom("a map's value without a key"))?;
        self.insert(key, value)
    }

    fn end(self) -> Result {
        Ok(self.finish())
    }
}

fn under(variant: Option<&str>, value: Value) -> Value {
    match variant {
        Some(name) => Value::Map(BTreeMap::from([(name.to_owned(), value)])),
        None => value,
    }
}
