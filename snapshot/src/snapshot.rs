//! The trait.

use core::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Entropy, Invalid, Schema};

/// A value that can be saved and rebuilt elsewhere.
///
/// Derive it: the derive makes [`Saved`](Self::Saved) a type `FooSaved` that holds the `saved` fields alone, and
/// [`Supplied`](Self::Supplied) a type `FooSupplied`, if there is something to supply.
///
/// # What the derive makes of a type `Foo`
/// - `FooSaved`: like `Foo`, with the `saved` fields alone, each in its own saved form.
/// - `FooSupplied`, if there are `supplied` fields, or fields `#[snapshot(saved, nested)]`: those whose own type has something
///   to supply. For an enum it is an enum too, and restoring refuses a variant other than the saved one.
/// - `FooParts<'_>`, if there are `rebuilt` fields: references to the saved fields, restored, and to the redrawn ones. It is what
///   `function` gets in `#[snapshot(rebuilt = function)]`, with the signature `fn(&FooParts<'_>) -> Result<FieldType, Invalid>`; so nothing
///   can be rebuilt before the redraw. For a variant `Bar` of an enum it is `FooBarParts<'_>`.
/// - `#[snapshot(validate = function)]` on the type names a `fn(&Foo) -> Result<(), Invalid>` that has the last word.
///
/// A type parameter in a saved field must be `Snapshot<Supplied = ()>`, or just `Snapshot` if the field is `nested`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no saved form",
    note = "a secret (`Secret<..>`, or a type that holds one) is never saved: classify the field `#[snapshot(redrawn)]`",
    note = "a value computed from other fields is `#[snapshot(rebuilt = function)]`; one from the embedder is `#[snapshot(supplied)]`",
    note = "a type that is to be saved needs `#[derive(Snapshot)]`; in the place of an `Instant`, save the remaining `Duration`"
)]
pub trait Snapshot: Sized {
    /// What is written. The bounds let tests compare and print it.
    type Saved: Serialize + DeserializeOwned + Clone + Debug + PartialEq;

    /// What the embedder must hand in to restore; `()` if nothing.
    type Supplied;

    /// The layout of [`Saved`](Self::Saved).
    const SCHEMA: Schema;

    /// What is to be written, leaving `self` as it is.
    fn save(&self) -> Self::Saved;

    /// Builds the value: restores the saved fields, redraws the secrets, rebuilds the rest, validates.
    ///
    /// # Errors
    /// If a saved value breaks a rule. Then nothing was built.
    fn restore(saved: Self::Saved, supplied: Self::Supplied, entropy: &mut Entropy) -> Result<Self, Invalid>;
}

/// A type for fields that are `saved` and not `nested`: every `Snapshot<Supplied = ()>`.
// `Supplied = ()` is asked by the implementation alone: as a supertrait it would be reported in place of this message.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be in a field that is just `#[snapshot(saved)]`",
    label = "this type has parts of its own to be supplied",
    note = "classify the field `#[snapshot(saved, nested)]`: the generated `..Supplied` type gets a field for them"
)]
pub trait SavedField: Snapshot {
    /// Restores a field that needs nothing from the embedder.
    fn restore_field(saved: Self::Saved, entropy: &mut Entropy) -> Result<Self, Invalid>;
}

#[diagnostic::do_not_recommend]
impl<T: Snapshot<Supplied = ()>> SavedField for T {
    fn restore_field(saved: Self::Saved, entropy: &mut Entropy) -> Result<Self, Invalid> {
        Self::restore(saved, (), entropy)
    }
}
