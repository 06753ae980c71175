//! `#[derive(Snapshot)]`: see `hibernet_snapshot::Snapshot` for what it makes.

#![forbid(unsafe_code)]

mod expand;
mod generics;
mod model;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `Snapshot` and makes the saved form, a type `FooSaved` next to `Foo`.
///
/// Every field states its class, `#[snapshot(saved)]`, `#[snapshot(redrawn)]`, `#[snapshot(rebuilt = function)]` or
/// `#[snapshot(supplied)]`; see the trait for what each means and for the types that are made.
#[proc_macro_derive(Snapshot, attributes(snapshot))]
pub fn derive_snapshot(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    match model::Item::parse(&input) {
        Ok(item) => expand::expand(&item).into(),
        Err(error) => error.into_compile_error().into(),
    }
}
