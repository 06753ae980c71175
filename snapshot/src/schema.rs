//! The layout of a saved form, as a constant.

/// The layout of a saved form: names, types and classes, all known at compile time.
///
/// Its [`text`](Self::text) belongs in a reviewed test snapshot, so that a change of layout is seen; its
/// [`fingerprint`](Self::fingerprint) belongs in the image, so that a change of layout is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// A type without parts.
    Leaf {
        /// The type's name.
        name: &'static str,
    },
    /// A container of other types, such as `Vec<u8>`.
    Container {
        /// The container's name.
        name: &'static str,
        /// The types it holds.
        arguments: &'static [Schema],
    },
    /// An array.
    Array {
        /// The type of its elements.
        element: &'static Schema,
        /// How many there are.
        length: usize,
    },
    /// A tuple.
    Tuple {
        /// The types of its elements.
        elements: &'static [Schema],
    },
    /// A struct.
    Struct {
        /// The type's name.
        name: &'static str,
        /// Its fields in order of declaration.
        fields: &'static [FieldSchema],
    },
    /// An enum.
    Enum {
        /// The type's name.
        name: &'static str,
        /// Its variants in order of declaration, which is the order of their numbers.
        variants: &'static [VariantSchema],
    },
}

/// One field of a [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldSchema {
    /// The field's name, or its number in a tuple struct.
    pub name: &'static str,
    /// What becomes of it.
    pub class: FieldClass,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldClass {
    /// Written, in this layout.
    Saved(Schema),
    /// Drawn afresh on restore.
    Redrawn,
    /// Computed on restore.
    Rebuilt,
    /// Handed in on restore.
    Supplied,
}

/// One variant of a [`Schema::Enum`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VariantSchema {
    /// The variant's name.
    pub name: &'static str,
    /// Its fields in order of declaration.
    pub fields: &'static [FieldSchema],
}

impl Schema {
    /// The layout in full, a field a line, with the class of each.
    pub fn text(self) -> String {
        let mut bytes = vec![0; self.walk(Sink::new(&mut [], false)).length];
        self.walk(Sink::new(&mut bytes, false));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// 64 bits that differ when what is written differs: FNV-1a over the text, but for the fields that are not saved.
    pub const fn fingerprint(self) -> u64 {
        self.walk(Sink::new(&mut [], true)).hash
    }

    const fn walk<'a>(&self, sink: Sink<'a>) -> Sink<'a> {
        self.walk_at(sink, 0)
    }

    const fn walk_at<'a>(&self, sink: Sink<'a>, depth: usize) -> Sink<'a> {
        match *self {
            Self::Leaf { name } => sink.text(name),
            Self::Container { name, arguments } => walk_list(arguments, sink.text(name).text("<"), depth).text(">"),
            Self::Array { element, length } => {
                element.walk_at(sink.text("["), depth).text("; ").number(length).text("]")
            }
            Self::Tuple { elements } => walk_list(elements, sink.text("("), depth).text(")"),
            Self::Struct { name, fields } => walk_fields(fields, sink.text("struct ").text(name), depth),
            Self::Enum { name, mut variants } => {
                let mut sink = sink.text("enum ").text(name).text(" {");
                while let [variant, rest @ ..] = variants {
                    sink = walk_fields(variant.fields, sink.line(depth + 1).text(variant.name), depth + 1);
                    variants = rest;
                }
                sink.line(depth).text("}")
            }
        }
    }
}

const fn walk_list<'a>(mut schemas: &[Schema], mut sink: Sink<'a>, depth: usize) -> Sink<'a> {
    while let [schema, rest @ ..] = schemas {
        sink = schema.walk_at(sink, depth);
        if !rest.is_empty() {
            sink = sink.text(", ");
        }
        schemas = rest;
    }
    sink
}

/// The fields in braces, if there are any to be shown.
const fn walk_fields<'a>(mut fields: &[FieldSchema], mut sink: Sink<'a>, depth: usize) -> Sink<'a> {
    let mut open = false;
    while let [field, rest @ ..] = fields {
        fields = rest;
        let class = match field.class {
            FieldClass::Saved(_) => "saved ",
            _ if sink.saved_only => continue,
            FieldClass::Redrawn => "redrawn ",
            FieldClass::Rebuilt => "rebuilt ",
            FieldClass::Supplied => "supplied ",
        };
        if !open {
            sink = sink.text(" {");
            open = true;
        }
        sink = sink.line(depth + 1).text(class).text(field.name);
        if let FieldClass::Saved(schema) = &field.class {
            sink = schema.walk_at(sink.text(": "), depth + 1);
        }
    }
    if open { sink.line(depth).text("}") } else { sink }
}

/// Where a walk over a schema goes: hashed, counted, and written as far as there is room.
///
/// One walk for the text and the hash, so that they cannot disagree; and `const`, which rules out `fmt::Write`.
struct Sink<'a> {
    room: &'a mut [u8],
    length: usize,
    hash: u64,
    saved_only: bool,
}

impl<'a> Sink<'a> {
    const fn new(room: &'a mut [u8], saved_only: bool) -> Self {
        Self { room, length: 0, hash: FNV_OFFSET_BASIS, saved_only }
    }

    const fn text(mut self, text: &str) -> Self {
        let mut bytes = text.as_bytes();
        while let [byte, rest @ ..] = bytes {
            self = self.byte(*byte);
            bytes = rest;
        }
        self
    }

    const fn line(self, depth: usize) -> Self {
        let mut sink = self.text("\n");
        let mut indent = 0;
        while indent < depth {
            sink = sink.text("  ");
            indent += 1;
        }
        sink
    }

    const fn number(self, number: usize) -> Self {
        let sink = if number >= 10 { self.number(number / 10) } else { self };
        sink.byte(b'0' + (number % 10) as u8)
    }

    #[expect(clippy::indexing_slicing, reason = "checked on the line before; `get_mut` is not const")]
    const fn byte(mut self, byte: u8) -> Self {
        if self.length < self.room.len() {
            self.room[self.length] = byte;
        }
        self.length += 1;
        self.hash = (self.hash ^ byte as u64).wrapping_mul(FNV_PRIME);
        self
    }
}

/// FNV-1a, 64 bits: draft-eastlake-fnv, section 5.
const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: FieldSchema = FieldSchema { name: "port", class: FieldClass::Saved(Schema::Leaf { name: "u16" }) };
    const KEY: FieldSchema = FieldSchema { name: "key", class: FieldClass::Redrawn };

    #[test]
    fn the_fingerprint_is_fnv_1a_of_the_text() {
        // The published test vector for "foobar".
        assert_eq!(Schema::Leaf { name: "foobar" }.fingerprint(), 0x8594_4171_f739_67e8);
        assert_eq!(Schema::Leaf { name: "" }.fingerprint(), FNV_OFFSET_BASIS);
    }

    #[test]
    fn the_fingerprint_is_a_constant() {
        const FINGERPRINT: u64 = Schema::Tuple { elements: &[Schema::Leaf { name: "u16" }] }.fingerprint();
        assert_eq!(FINGERPRINT, Schema::Leaf { name: "(u16)" }.fingerprint());
    }

    #[test]
    fn only_saved_fields_count_for_the_fingerprint_but_all_are_in_the_text() {
        let plain = Schema::Struct { name: "Table", fields: &[PORT] };
        let keyed = Schema::Struct { name: "Table", fields: &[KEY, PORT] };
        assert_eq!(plain.fingerprint(), keyed.fingerprint());
        assert_eq!(plain.text(), "struct Table {\n  saved port: u16\n}");
        assert_eq!(keyed.text(), "struct Table {\n  redrawn key\n  saved port: u16\n}");
    }

    #[test]
    fn a_long_array_prints_its_length() {
        let array = Schema::Array { element: &Schema::Leaf { name: "u8" }, length: 4096 };
        assert_eq!(array.text(), "[u8; 4096]");
    }
}
