//! The generated code.
//!
//! Patterns and values are written with braces and numbered members (`Foo { 0: field_0 }`), which fits structs, tuple structs and
//! unit structs alike; so is the distance small between a struct and a variant.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{GenericParam, Generics, Lifetime, LifetimeParam, Member, Visibility};

use crate::generics::{bounded, used};
use crate::model::{Class, Field, Fields, Item, Shape, Style};

pub(crate) fn expand(item: &Item) -> TokenStream {
    let saved = Derived::saved(item);
    let supplied = item.fields().any(Field::is_supplied).then(|| Derived::supplied(item));

    let saved_type = declare_saved(item, &saved);
    let supplied_type = supplied.as_ref().map(|supplied| declare_supplied(item, supplied));
    let parts = cases(item).filter(Case::has_rebuilt).map(|case| declare_parts(item, &case)).collect::<TokenStream>();
    let snapshot = implement_snapshot(item, &saved, supplied.as_ref());
    quote! { #saved_type #supplied_type #parts #snapshot }
}

/// A struct, or one variant of an enum.
struct Case<'a> {
    /// The variant, if it is one.
    variant: Option<&'a Ident>,
    fields: &'a Fields,
}

impl Case<'_> {
    fn has_rebuilt(&self) -> bool {
        self.fields.list.iter().any(|field| matches!(field.class, Class::Rebuilt(_)))
    }

    /// The path to this case in the type `name`: `Foo` or `Foo::Bar`.
    fn of(&self, name: &Ident) -> TokenStream {
        match self.variant {
            Some(variant) => quote!(#name::#variant),
            None => quote!(#name),
        }
    }

    fn parts_ident(&self, item: &Item) -> Ident {
        match self.variant {
            Some(variant) => format_ident!("{}{}Parts", item.ident, variant),
            None => format_ident!("{}Parts", item.ident),
        }
    }
}

fn cases(item: &Item) -> impl Iterator<Item = Case<'_>> {
    match &item.shape {
        Shape::Struct(fields) => vec![Case { variant: None, fields }],
        Shape::Enum(variants) => {
            variants.iter().map(|variant| Case { variant: Some(&variant.ident), fields: &variant.fields }).collect()
        }
    }
    .into_iter()
}

/// A generated type that holds something for some of the fields.
struct Derived {
    ident: Ident,
    generics: Generics,
    /// Whether it has a field for this one.
    has: fn(&Field) -> bool,
    /// The type of that field.
    ty: fn(&Field) -> TokenStream,
}

impl Derived {
    fn saved(item: &Item) -> Self {
        let types = item.fields().filter(|field| field.is_saved()).map(|field| &field.ty);
        Self {
            ident: format_ident!("{}Saved", item.ident),
            generics: used(&bounded(item, Field::is_saved), types),
            has: Field::is_saved,
            ty: |field| {
                let ty = &field.ty;
                quote_spanned!(ty.span()=> <#ty as ::hibernet_snapshot::Snapshot>::Saved)
            },
        }
    }

    fn supplied(item: &Item) -> Self {
        let types = item.fields().filter(|field| field.is_supplied()).map(|field| &field.ty);
        Self {
            ident: format_ident!("{}Supplied", item.ident),
            generics: used(&bounded(item, Field::is_supplied), types),
            has: Field::is_supplied,
            ty: |field| {
                let ty = &field.ty;
                match field.class {
                    Class::Supplied => ty.to_token_stream(),
                    _ => quote_spanned!(ty.span()=> <#ty as ::hibernet_snapshot::Snapshot>::Supplied),
                }
            },
        }
    }

    /// The fields it has of `fields`, with their members in it: a tuple's are numbered anew.
    fn members<'a>(&self, fields: &'a Fields) -> Vec<(&'a Field, Member)> {
        members(fields, self.has)
    }

    /// A pattern or value of this type in which each field is `prefix` and the field's binding.
    fn braced(&self, case: &Case<'_>, prefix: &str) -> TokenStream {
        let path = case.of(&self.ident);
        let members = self.members(case.fields).into_iter().map(|(field, member)| {
            let binding = prefixed(prefix, field);
            quote!(#member: #binding)
        });
        quote!(#path { #(#members),* })
    }

    /// The declaration but for attributes.
    fn declare(&self, item: &Item, describe: &str) -> TokenStream {
        let Self { ident, generics, .. } = self;
        let vis = &item.vis;
        let (params, _, clause) = generics.split_for_impl();
        match &item.shape {
            Shape::Struct(fields) => {
                let body = self.body(fields, describe, true);
                match fields.style {
                    Style::Named => quote!(#vis struct #ident #params #clause #body),
                    Style::Tuple | Style::Unit => quote!(#vis struct #ident #params #body #clause;),
                }
            }
            Shape::Enum(variants) => {
                let variants = variants.iter().map(|variant| {
                    let doc = format!("{describe} `{}`.", variant.ident);
                    let body = self.body(&variant.fields, describe, false);
                    let ident = &variant.ident;
                    quote!(#[doc = #doc] #ident #body)
                });
                quote!(#vis enum #ident #params #clause { #(#variants),* })
            }
        }
    }

    fn body(&self, fields: &Fields, describe: &str, with_vis: bool) -> TokenStream {
        let list = self.members(fields).into_iter().map(|(field, _)| {
            declare_field(
                field,
                &format!("{describe} `{}`.", field.name),
                with_vis.then_some(&field.vis),
                &(self.ty)(field),
            )
        });
        match fields.style {
            Style::Named => quote!({ #(#list),* }),
            Style::Tuple => quote!(( #(#list),* )),
            Style::Unit => TokenStream::new(),
        }
    }
}

fn declare_saved(item: &Item, saved: &Derived) -> TokenStream {
    let doc = format!("The saved form of [`{}`].", item.ident);
    let declaration = saved.declare(item, "The saved form of");
    let ident = &saved.ident;
    let name = ident.to_string();
    let (params, arguments, clause) = saved.generics.split_for_impl();

    // Not derived: a derive would ask `T: Clone` of each parameter, where `T::Saved: Clone` is known already.
    let all: Vec<_> = cases(item).collect();
    let clones = all.iter().map(|case| {
        let from = saved.braced(case, "");
        let path = case.of(ident);
        let fields = saved.members(case.fields).into_iter().map(|(field, member)| {
            let binding = &field.binding;
            quote!(#member: ::core::clone::Clone::clone(#binding))
        });
        quote!(#from => #path { #(#fields),* })
    });
    let debugs = all.iter().map(|case| {
        let from = saved.braced(case, "");
        let name = case.variant.map_or(name.clone(), ToString::to_string);
        let fields = saved.members(case.fields).into_iter().map(|(Field { binding, name, .. }, _)| {
            if case.fields.style == Style::Named { quote!(.field(#name, #binding)) } else { quote!(.field(#binding)) }
        });
        let builder = if case.fields.style == Style::Named { quote!(debug_struct) } else { quote!(debug_tuple) };
        quote!(#from => formatter.#builder(#name) #(#fields)* .finish())
    });
    let equals = all.iter().map(|case| {
        let (left, right) = (saved.braced(case, ""), saved.braced(case, "other_"));
        let fields = saved.members(case.fields).into_iter().map(|(field, _)| {
            let (binding, other) = (&field.binding, prefixed("other_", field));
            quote!(&& #binding == #other)
        });
        quote!((#left, #right) => true #(#fields)*)
    });
    let unequal = (all.len() > 1).then(|| quote!(_ => false,));
    quote! {
        #[doc = #doc]
        #[allow(private_bounds, reason = "a saved field may have a type more private than its struct")]
        #[derive(::hibernet_snapshot::__private::serde::Serialize, ::hibernet_snapshot::__private::serde::Deserialize)]
        #[serde(crate = "::hibernet_snapshot::__private::serde", bound = "")]
        #declaration

        #[automatically_derived]
        impl #params ::core::clone::Clone for #ident #arguments #clause {
            fn clone(&self) -> Self {
                match self { #(#clones,)* }
            }
        }

        #[automatically_derived]
        impl #params ::core::fmt::Debug for #ident #arguments #clause {
            fn fmt(&self, formatter: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                match self { #(#debugs,)* }
            }
        }

        #[automatically_derived]
        impl #params ::core::cmp::PartialEq for #ident #arguments #clause {
            fn eq(&self, other: &Self) -> bool {
                match (self, other) { #(#equals,)* #unequal }
            }
        }
    }
}

fn declare_supplied(item: &Item, supplied: &Derived) -> TokenStream {
    let doc = format!("What the embedder hands in to restore a [`{}`].", item.ident);
    let declaration = supplied.declare(item, "Supplied for");
    quote! {
        #[doc = #doc]
        #[allow(private_bounds, reason = "a nested field may have a type more private than its struct")]
        #declaration
    }
}

fn declare_parts(item: &Item, case: &Case<'_>) -> TokenStream {
    let ident = case.parts_ident(item);
    let vis = &item.vis;
    let doc = format!("The saved and redrawn fields of [`{}`], for the functions that rebuild the others.", item.ident);
    let parts: Vec<_> = case.fields.list.iter().filter(|field| field.is_part()).collect();
    let lifetime = Lifetime::new("'parts", Span::mixed_site());
    let mut generics = used(&item.generics, parts.iter().map(|field| &field.ty));
    // A parameter in a reference outlives it by itself; without parts the lifetime still has to be used.
    generics.params.insert(0, GenericParam::Lifetime(LifetimeParam::new(lifetime.clone())));
    let (params, _, clause) = generics.split_for_impl();
    let list: Vec<_> = parts
        .iter()
        .map(|field| {
            let ty = &field.ty;
            let vis = if case.variant.is_none() { &field.vis } else { vis };
            declare_field(field, &format!("The field `{}`.", field.name), Some(vis), &quote!(&#lifetime #ty))
        })
        .collect();
    let attributes = quote! {
        #[doc = #doc]
        #[allow(dead_code, reason = "a rebuilding function need not look at every part")]
    };
    if list.is_empty() {
        return quote!(#attributes #vis struct #ident<#lifetime>(::core::marker::PhantomData<&#lifetime ()>););
    }
    match case.fields.style {
        Style::Named => quote!(#attributes #vis struct #ident #params #clause { #(#list),* }),
        Style::Tuple | Style::Unit => quote!(#attributes #vis struct #ident #params (#(#list),*) #clause;),
    }
}

fn implement_snapshot(item: &Item, saved: &Derived, supplied: Option<&Derived>) -> TokenStream {
    let ident = &item.ident;
    let generics = bounded(item, |_| true);
    let (params, arguments, clause) = generics.split_for_impl();
    let (saved_ident, (_, saved_arguments, _)) = (&saved.ident, saved.generics.split_for_impl());
    let supplied_type = supplied.map_or(quote!(()), |supplied| {
        let (ident, (_, arguments, _)) = (&supplied.ident, supplied.generics.split_for_impl());
        quote!(#ident #arguments)
    });

    let schema = schema(item);
    let all: Vec<_> = cases(item).collect();
    let saves = all.iter().map(|case| {
        let from = pattern(case, ident, Field::is_saved);
        let path = case.of(&saved.ident);
        let fields = saved.members(case.fields).into_iter().map(|(Field { binding, ty, .. }, member)| {
            quote_spanned!(ty.span()=> #member: <#ty as ::hibernet_snapshot::Snapshot>::save(#binding))
        });
        quote!(#from => #path { #(#fields),* })
    });
    let restores = all.iter().map(|case| restore_case(item, case, saved, supplied));
    let mismatch = (all.len() > 1 && supplied.is_some()).then(|| refuse_other_variant(item, &all, saved, supplied));
    quote! {
        #[automatically_derived]
        impl #params ::hibernet_snapshot::Snapshot for #ident #arguments #clause {
            type Saved = #saved_ident #saved_arguments;
            type Supplied = #supplied_type;
            const SCHEMA: ::hibernet_snapshot::Schema = #schema;

            fn save(&self) -> Self::Saved {
                match self { #(#saves,)* }
            }

            fn restore(
                saved: Self::Saved,
                supplied: Self::Supplied,
                entropy: &mut ::hibernet_snapshot::Entropy,
            ) -> ::core::result::Result<Self, ::hibernet_snapshot::Invalid> {
                let _ = &entropy;
                match (saved, supplied) { #(#restores,)* #mismatch }
            }
        }
    }
}

fn restore_case(item: &Item, case: &Case<'_>, saved: &Derived, supplied: Option<&Derived>) -> TokenStream {
    let saved_pattern = saved.braced(case, "");
    let supplied_pattern = supplied.map_or(quote!(()), |supplied| supplied.braced(case, "supplied_"));

    let fields = &case.fields.list;
    let parts = fields.iter().filter(|field| field.is_part()).map(restore_part);
    let supplied_fields = fields.iter().filter(|field| matches!(field.class, Class::Supplied)).map(|field| {
        let (binding, supplied) = (&field.binding, prefixed("supplied_", field));
        quote!(let #binding = #supplied;)
    });
    let rebuilt = rebuild(item, case);
    let result = pattern(case, &item.ident, |_| true);
    let validate = item.validate.as_ref().map(|function| quote_spanned!(function.span()=> #function(&restored)?;));
    quote! {
        (#saved_pattern, #supplied_pattern) => {
            #(#parts)*
            #(#supplied_fields)*
            #rebuilt
            let restored = #result;
            #validate
            ::core::result::Result::Ok(restored)
        }
    }
}

fn restore_part(field: &Field) -> TokenStream {
    let Field { binding, name, ty, .. } = field;
    match field.class {
        Class::Saved { nested } => {
            let supplied = prefixed("supplied_", field);
            let restored = if nested {
                quote_spanned!(ty.span()=> <#ty as ::hibernet_snapshot::Snapshot>::restore(#binding, #supplied, entropy))
            } else {
                quote_spanned!(ty.span()=> <#ty as ::hibernet_snapshot::__private::SavedField>::restore_field(#binding, entropy))
            };
            quote! {
                let #binding = #restored.map_err(|invalid| ::hibernet_snapshot::Invalid::within(invalid, #name))?;
            }
        }
        _ => quote_spanned!(ty.span()=> let #binding = <#ty as ::hibernet_snapshot::Redraw>::redraw(entropy);),
    }
}

fn rebuild(item: &Item, case: &Case<'_>) -> TokenStream {
    if !case.has_rebuilt() {
        return TokenStream::new();
    }
    let ident = case.parts_ident(item);
    let members = members(case.fields, Field::is_part);
    let parts = if members.is_empty() {
        quote!(#ident(::core::marker::PhantomData))
    } else {
        let members = members.into_iter().map(|(Field { binding, .. }, member)| quote!(#member: &#binding));
        quote!(#ident { #(#members),* })
    };
    let rebuilt = case.fields.list.iter().filter_map(|Field { binding, name, ty, class, .. }| match class {
        Class::Rebuilt(function) => Some(quote_spanned! {function.span()=>
            let #binding: #ty = #function(&parts).map_err(|invalid| ::hibernet_snapshot::Invalid::within(invalid, #name))?;
        }),
        _ => None,
    });
    quote! {
        let parts = #parts;
        #(#rebuilt)*
    }
}

/// An enum whose supplied value is of another variant than the saved one.
fn refuse_other_variant(item: &Item, all: &[Case<'_>], saved: &Derived, supplied: Option<&Derived>) -> TokenStream {
    let names = |derived: &Derived| {
        let ident = &derived.ident;
        let arms = all.iter().filter_map(|case| case.variant).map(|variant| {
            let name = variant.to_string();
            quote!(#ident::#variant { .. } => #name)
        });
        quote!(#(#arms),*)
    };
    let (saved, supplied) = (names(saved), supplied.map(names));
    let found = format!("what `{}::{{}}` wants supplied", item.ident);
    let expected = format!("what `{}::{{}}` wants", item.ident);
    quote! {
        (saved, supplied) => {
            let (saved, supplied) = (match saved { #saved }, match supplied { #supplied });
            ::core::result::Result::Err(::hibernet_snapshot::Invalid::new(
                "",
                ::std::format!(#found, supplied),
                ::std::format!(#expected, saved),
            ))
        }
    }
}

fn schema(item: &Item) -> TokenStream {
    let name = item.ident.to_string();
    match &item.shape {
        Shape::Struct(fields) => {
            let fields = schema_fields(fields);
            quote!(::hibernet_snapshot::Schema::Struct { name: #name, fields: &[#fields] })
        }
        Shape::Enum(variants) => {
            let variants = variants.iter().map(|variant| {
                let (name, fields) = (variant.ident.to_string(), schema_fields(&variant.fields));
                quote!(::hibernet_snapshot::VariantSchema { name: #name, fields: &[#fields] })
            });
            quote!(::hibernet_snapshot::Schema::Enum { name: #name, variants: &[#(#variants),*] })
        }
    }
}

fn schema_fields(fields: &Fields) -> TokenStream {
    let fields = fields.list.iter().map(|Field { name, ty, class, .. }| {
        let class = match class {
            Class::Saved { .. } => {
                quote_spanned!(ty.span()=> Saved(<#ty as ::hibernet_snapshot::Snapshot>::SCHEMA))
            }
            Class::Redrawn => quote!(Redrawn),
            Class::Rebuilt(_) => quote!(Rebuilt),
            Class::Supplied => quote!(Supplied),
        };
        quote!(::hibernet_snapshot::FieldSchema { name: #name, class: ::hibernet_snapshot::FieldClass::#class })
    });
    quote!(#(#fields),*)
}

/// A pattern or value of the type itself: the fields in `bound` by their bindings, in a pattern the others ignored one by one.
fn pattern(case: &Case<'_>, ident: &Ident, bound: fn(&Field) -> bool) -> TokenStream {
    let path = case.of(ident);
    let fields = case.fields.list.iter().map(|field| {
        let Field { member, binding, .. } = field;
        if bound(field) { quote!(#member: #binding) } else { quote!(#member: _) }
    });
    quote!(#path { #(#fields),* })
}

fn members(fields: &Fields, has: fn(&Field) -> bool) -> Vec<(&Field, Member)> {
    let renumber = |(index, field): (usize, _)| -> (&Field, Member) {
        let field: &Field = field;
        match &field.member {
            Member::Named(_) => (field, field.member.clone()),
            Member::Unnamed(_) => (field, Member::from(index)),
        }
    };
    fields.list.iter().filter(|field| has(field)).enumerate().map(renumber).collect()
}

fn declare_field(field: &Field, doc: &str, vis: Option<&Visibility>, ty: &TokenStream) -> TokenStream {
    match &field.member {
        Member::Named(ident) => quote!(#[doc = #doc] #vis #ident: #ty),
        Member::Unnamed(_) => quote!(#[doc = #doc] #vis #ty),
    }
}

fn prefixed(prefix: &str, field: &Field) -> Ident {
    format_ident!("{prefix}{}", field.binding)
}
