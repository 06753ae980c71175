//! What the user wrote: a type whose every field has a class, or an error that says what to write instead.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident};
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Generics, Ident, Index, Member, Path, Result, Type, Visibility};

pub(crate) struct Item {
    pub(crate) ident: Ident,
    pub(crate) vis: Visibility,
    pub(crate) generics: Generics,
    pub(crate) validate: Option<Path>,
    pub(crate) shape: Shape,
}

pub(crate) enum Shape {
    Struct(Fields),
    Enum(Vec<Variant>),
}

pub(crate) struct Variant {
    pub(crate) ident: Ident,
    pub(crate) fields: Fields,
}

pub(crate) struct Fields {
    pub(crate) style: Style,
    pub(crate) list: Vec<Field>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Named,
    Tuple,
    Unit,
}

pub(crate) struct Field {
    pub(crate) member: Member,
    /// The member as text.
    pub(crate) name: String,
    /// The variable that holds the field in generated code.
    pub(crate) binding: Ident,
    pub(crate) vis: Visibility,
    pub(crate) ty: Type,
    pub(crate) class: Class,
}

pub(crate) enum Class {
    /// `nested`: the field's own type has something to be supplied.
    Saved {
        nested: bool,
    },
    Redrawn,
    Rebuilt(Path),
    Supplied,
}

impl Item {
    pub(crate) fn parse(input: &DeriveInput) -> Result<Self> {
        let validate = parse_validate(&input.attrs)?;
        let owner = input.ident.to_string();
        let shape = match &input.data {
            Data::Struct(data) => Shape::Struct(Fields::parse(&data.fields, &owner)?),
            Data::Enum(data) if data.variants.is_empty() => {
                return Err(Error::new_spanned(
                    &input.ident,
                    format!("`{owner}` has no variants: there is nothing to save"),
                ));
            }
            Data::Enum(data) => Shape::Enum(all(data.variants.iter().map(|variant| {
                if let Some(attr) = variant.attrs.iter().find(|attr| attr.path().is_ident("snapshot")) {
                    let message =
                        format!("a variant has no class: classify the fields of `{owner}::{}`", variant.ident);
                    return Err(Error::new_spanned(attr, message));
                }
                let fields = Fields::parse(&variant.fields, &format!("{owner}::{}", variant.ident))?;
                Ok(Variant { ident: variant.ident.clone(), fields })
            }))?),
            Data::Union(_) => {
                return Err(Error::new_spanned(
                    &input.ident,
                    format!("`{owner}` is a union: save a struct or an enum"),
                ));
            }
        };
        let (ident, vis, generics) = (input.ident.clone(), input.vis.clone(), input.generics.clone());
        Ok(Self { ident, vis, generics, validate, shape })
    }

    /// Every field, of every variant.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &Field> {
        match &self.shape {
            Shape::Struct(fields) => vec![fields],
            Shape::Enum(variants) => variants.iter().map(|variant| &variant.fields).collect(),
        }
        .into_iter()
        .flat_map(|fields| &fields.list)
    }
}

impl Fields {
    fn parse(fields: &syn::Fields, owner: &str) -> Result<Self> {
        let style = match fields {
            syn::Fields::Named(_) => Style::Named,
            syn::Fields::Unnamed(_) => Style::Tuple,
            syn::Fields::Unit => Style::Unit,
        };
        let list = all(fields.iter().enumerate().map(|(index, field)| Field::parse(field, index, owner)))?;
        Ok(Self { style, list })
    }
}

impl Field {
    fn parse(field: &syn::Field, index: usize, owner: &str) -> Result<Self> {
        let member = match &field.ident {
            Some(ident) => Member::Named(ident.clone()),
            None => Member::Unnamed(Index { index: index as u32, span: field.ty.span() }),
        };
        let name = match &member {
            Member::Named(ident) => ident.to_string().trim_start_matches("r#").to_owned(),
            Member::Unnamed(index) => index.index.to_string(),
        };
        let at = Place { name: &name, owner, ty: &field.ty };
        let class = at.class(field)?;
        let binding = format_ident!("field_{name}", span = Span::mixed_site());
        Ok(Self { member, name, binding, vis: field.vis.clone(), ty: field.ty.clone(), class })
    }

    pub(crate) fn is_saved(&self) -> bool {
        matches!(self.class, Class::Saved { .. })
    }

    /// Whether a rebuilding function gets to see it.
    pub(crate) fn is_part(&self) -> bool {
        matches!(self.class, Class::Saved { .. } | Class::Redrawn)
    }

    /// Whether the embedder has to hand in something for it.
    pub(crate) fn is_supplied(&self) -> bool {
        matches!(self.class, Class::Saved { nested: true } | Class::Supplied)
    }
}

/// The field that is being read, for the messages.
struct Place<'a> {
    name: &'a str,
    owner: &'a str,
    ty: &'a Type,
}

impl Place<'_> {
    fn class(&self, field: &syn::Field) -> Result<Class> {
        let mut found: Option<(String, Class)> = None;
        let mut nested = None;
        for attr in field.attrs.iter().filter(|attr| attr.path().is_ident("snapshot")) {
            attr.parse_nested_meta(|meta| {
                let word = meta.path.to_token_stream().to_string();
                let class = match word.as_str() {
                    "saved" => Class::Saved { nested: false },
                    "redrawn" => Class::Redrawn,
                    "supplied" => Class::Supplied,
                    "rebuilt" if meta.input.peek(syn::Token![=]) => Class::Rebuilt(meta.value()?.parse()?),
                    "rebuilt" => return Err(Error::new_spanned(&meta.path, self.no_function())),
                    "nested" => {
                        nested = Some(meta.path.span());
                        return Ok(());
                    }
                    _ => return Err(Error::new_spanned(&meta.path, self.unknown(&word))),
                };
                if let Some((first, _)) = &found {
                    return Err(Error::new_spanned(&meta.path, self.two_classes(first, &word)));
                }
                found = Some((word, class));
                Ok(())
            })?;
        }
        match (found, nested) {
            (None, _) => Err(Error::new_spanned(field, self.no_class())),
            (Some((_, Class::Saved { .. })), _) if names_secret(self.ty.to_token_stream()) => {
                Err(Error::new_spanned(self.ty, self.saved_secret()))
            }
            (Some((_, Class::Saved { .. })), nested) => Ok(Class::Saved { nested: nested.is_some() }),
            (Some((word, _)), Some(span)) => Err(Error::new(span, self.misplaced_nested(&word))),
            (Some((_, class)), None) => Ok(class),
        }
    }

    fn no_class(&self) -> String {
        let Self { name, owner, .. } = self;
        format!("field `{name}` of `{owner}` has no snapshot class: write one of {CLASSES}")
    }

    fn unknown(&self, word: &str) -> String {
        let Self { name, owner, .. } = self;
        format!("field `{name}` of `{owner}`: `{word}` is no snapshot class: write one of {CLASSES}")
    }

    fn two_classes(&self, first: &str, second: &str) -> String {
        let Self { name, owner, .. } = self;
        format!("field `{name}` of `{owner}` has two snapshot classes, `{first}` and `{second}`: keep one")
    }

    fn no_function(&self) -> String {
        let Self { name, owner, .. } = self;
        let parts = owner.replace("::", "");
        format!(
            "field `{name}` of `{owner}`: `rebuilt` needs the function that computes it: write `#[snapshot(rebuilt = function)]`, \
             where `function` takes a `&{parts}Parts<'_>` and returns a `Result` of the field's type or `Invalid`"
        )
    }

    fn saved_secret(&self) -> String {
        let Self { name, owner, .. } = self;
        format!(
            "field `{name}` of `{owner}`: a secret is never saved: write `#[snapshot(redrawn)]`, \
             and it is drawn afresh on restore"
        )
    }

    fn misplaced_nested(&self, class: &str) -> String {
        let Self { name, owner, .. } = self;
        format!("field `{name}` of `{owner}`: `nested` goes with `saved`, not with `{class}`: remove `nested`")
    }
}

fn parse_validate(attrs: &[Attribute]) -> Result<Option<Path>> {
    let mut validate = None;
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("snapshot")) {
        attr.parse_nested_meta(|meta| {
            if !meta.path.is_ident("validate") {
                let message = "a type takes `#[snapshot(validate = function)]` only: the classes go on its fields";
                return Err(Error::new_spanned(&meta.path, message));
            }
            validate = Some(meta.value()?.parse()?);
            Ok(())
        })?;
    }
    Ok(validate)
}

/// Whether a type spells `Secret<`. Catches most secrets in saved places with the clearest message; the trait catches the rest.
fn names_secret(tokens: TokenStream) -> bool {
    let mut after_secret = false;
    tokens.into_iter().any(|token| match token {
        TokenTree::Group(group) => names_secret(group.stream()),
        TokenTree::Ident(ident) => {
            after_secret = ident == "Secret";
            false
        }
        TokenTree::Punct(punct) => core::mem::take(&mut after_secret) && punct.as_char() == '<',
        TokenTree::Literal(_) => false,
    })
}

/// All values, or all errors.
fn all<T>(results: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let mut errors: Option<Error> = None;
    for result in results {
        match (result, &mut errors) {
            (Ok(value), _) => values.push(value),
            (Err(error), Some(errors)) => errors.combine(error),
            (Err(error), None) => errors = Some(error),
        }
    }
    errors.map_or(Ok(values), Err)
}

const CLASSES: &str =
    "`#[snapshot(saved)]`, `#[snapshot(redrawn)]`, `#[snapshot(rebuilt = function)]`, `#[snapshot(supplied)]`";
