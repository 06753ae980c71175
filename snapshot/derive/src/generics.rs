//! Which type parameters a generated type keeps, and what they have to be.

use std::collections::BTreeSet;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::{GenericParam, Generics, Type, WherePredicate, parse_quote, parse_quote_spanned};

use crate::model::{Class, Field, Item};

/// The item's own generics, and what the classes of the fields `of` interest ask of the types in them.
pub(crate) fn bounded(item: &Item, of: fn(&Field) -> bool) -> Generics {
    let fields: Vec<_> = item.fields().filter(|field| of(field)).collect();
    let mut needs = Vec::new();
    for param in item.generics.type_params() {
        let ident = &param.ident;
        let name = ident.to_string();
        let classes = || {
            fields.iter().filter(|field| names(field.ty.to_token_stream()).contains(&name)).map(|field| &field.class)
        };
        if classes().any(|class| matches!(class, Class::Saved { nested: false })) {
            needs.push(parse_quote!(#ident: ::hibernet_snapshot::Snapshot<Supplied = ()>));
        } else if classes().any(|class| matches!(class, Class::Saved { nested: true })) {
            needs.push(parse_quote!(#ident: ::hibernet_snapshot::Snapshot));
        }
    }
    for Field { ty, class, .. } in fields {
        // Asked up front, a missing saved form is one error at the field; else it is one at every use of the field.
        let span = ty.span();
        match (class, is_generic(ty, &item.generics)) {
            (Class::Saved { nested: false }, false) => {
                needs.push(parse_quote_spanned!(span=> #ty: ::hibernet_snapshot::__private::SavedField));
            }
            (Class::Saved { nested: true }, false) => {
                needs.push(parse_quote_spanned!(span=> #ty: ::hibernet_snapshot::Snapshot));
            }
            (Class::Redrawn, true) => needs.push(parse_quote_spanned!(span=> #ty: ::hibernet_snapshot::Redraw)),
            _ => {}
        }
    }
    let mut generics = item.generics.clone();
    if !needs.is_empty() {
        generics.make_where_clause().predicates.extend::<Vec<WherePredicate>>(needs);
    }
    generics
}

/// The part of `generics` that `types` mention: a parameter that is not used is not allowed.
pub(crate) fn used<'a>(generics: &Generics, types: impl Iterator<Item = &'a Type>) -> Generics {
    let mentioned: BTreeSet<String> = types.flat_map(|ty| names(ty.to_token_stream())).collect();
    let all: BTreeSet<String> = generics.params.iter().map(param_name).collect();
    let dropped: BTreeSet<&String> = all.difference(&mentioned).collect();
    let keeps =
        |predicate: &WherePredicate| names(predicate.to_token_stream()).iter().all(|name| !dropped.contains(name));

    let mut kept = Generics::default();
    let mut predicates: Vec<WherePredicate> = Vec::new();
    for param in &generics.params {
        if dropped.contains(&param_name(param)) {
            continue;
        }
        let mut param = param.clone();
        match &mut param {
            GenericParam::Type(param) => {
                param.default = None;
                let (ident, bounds) = (&param.ident, core::mem::take(&mut param.bounds));
                if !bounds.is_empty() {
                    predicates.push(parse_quote!(#ident: #bounds));
                }
            }
            GenericParam::Lifetime(param) => {
                let (lifetime, bounds) = (&param.lifetime, core::mem::take(&mut param.bounds));
                if !bounds.is_empty() {
                    predicates.push(parse_quote!(#lifetime: #bounds));
                }
            }
            GenericParam::Const(param) => param.default = None,
        }
        kept.params.push(param);
    }
    predicates.extend(generics.where_clause.iter().flat_map(|clause| clause.predicates.iter().cloned()));
    predicates.retain(keeps);
    if !predicates.is_empty() {
        kept.make_where_clause().predicates.extend(predicates);
    }
    kept
}

fn is_generic(ty: &Type, generics: &Generics) -> bool {
    let mentioned = names(ty.to_token_stream());
    generics.params.iter().any(|param| mentioned.contains(&param_name(param)))
}

fn param_name(param: &GenericParam) -> String {
    match param {
        GenericParam::Type(param) => param.ident.to_string(),
        GenericParam::Lifetime(param) => param.lifetime.to_string(),
        GenericParam::Const(param) => param.ident.to_string(),
    }
}

/// Every identifier and lifetime in `tokens`.
fn names(tokens: TokenStream) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut tick = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) => names.extend(self::names(group.stream())),
            TokenTree::Ident(ident) => {
                names.insert(if tick { format!("'{ident}") } else { ident.to_string() });
                tick = false;
            }
            TokenTree::Punct(punct) => tick = punct.as_char() == '\'',
            TokenTree::Literal(_) => {}
        }
    }
    names
}
