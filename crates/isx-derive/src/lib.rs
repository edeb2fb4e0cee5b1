//! `#[derive(Record)]` ties a struct to a service of isx, `#[derive(Choice)]` an enum to the texts of a field.
//!
//! Names are those that serde writes: `rename` and `rename_all` are followed. What a field may hold comes from its type (the
//! trait `isx::typed::Value`), what else is known of it from `#[isx(...)]`:
//!
//! | on | attribute | |
//! |---|---|---|
//! | struct | `service = "campaign"` | which service (required) |
//! | struct | `rules = include_str!("rules.toml")` | TOML that is added to the schema: actions, accepts, aggregates, pools, limits |
//! | field | `key` | holds the entity's key, which is not part of the document |
//! | field | `children`, `on_delete = "cascade"` (`detach`, `refuse`) | a `Vec` of another `Record`: children of the combined object |
//! | field | `parent = "campaign"` | holds the key of a parent in that service |
//! | field | `min`, `max`, `min_length`, `max_length` | bounds |
//! | field | `default = 0` | filled in where a document lacks the field |
//! | field | `timestamp` | a text that is a time by RFC 3339 |
//! | field | `index` | an index is kept over it |
use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, Data, DeriveInput, Error, Expr, Fields, Ident, LitStr, Result, parse_macro_input};

/// See the crate's page.
#[proc_macro_derive(Record, attributes(isx))]
pub fn record(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand_record(&input).unwrap_or_else(Error::into_compile_error).into()
}

/// An enum whose variants hold nothing: the texts that serde writes for them are what the field may be.
#[proc_macro_derive(Choice, attributes(isx))]
pub fn choice(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand_choice(&input).unwrap_or_else(Error::into_compile_error).into()
}

fn expand_record(input: &DeriveInput) -> Result<TokenStream> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, "a Record is a struct"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new_spanned(&input.ident, "a Record has named fields"));
    };
    let (mut service, mut rules) = (None::<LitStr>, None::<Expr>);
    for attribute in input.attrs.iter().filter(|a| a.path().is_ident("isx")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("service") {
                service = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("rules") {
                rules = Some(meta.value()?.parse()?);
            } else {
                return Err(meta.error("`service` and `rules` are known here"));
            }
            Ok(())
        })?;
    }
    let Some(service) = service else {
        let why = "which service? Write #[isx(service = \"...\")] above the struct";
        return Err(Error::new_spanned(&input.ident, why));
    };
    let rename_all = serde_name(&input.attrs, "rename_all")?;
    let (mut plain, mut children, mut parents, mut key) = (Vec::new(), Vec::new(), Vec::new(), None::<String>);
    for field in &fields.named {
        let ident = field.ident.as_ref().expect("named, see above");
        let name = match serde_name(&field.attrs, "rename")? {
            Some(name) => name,
            None => rename(&ident_text(ident), rename_all.as_deref(), false),
        };
        let ty = &field.ty;
        let found = FieldAttributes::of(&field.attrs)?;
        if found.is_key {
            if key.replace(name).is_some() {
                return Err(Error::new_spanned(ident, "a Record has one key"));
            }
            continue;
        }
        if found.is_children {
            let on_delete = found
                .on_delete
                .as_ref()
                .map_or_else(|| "cascade".to_owned(), LitStr::value);
            if !["cascade", "detach", "refuse"].contains(&on_delete.as_str()) {
                return Err(Error::new_spanned(&found.on_delete, "`cascade`, `detach` or `refuse`"));
            }
            children.push(quote! {
                ::isx::typed::Children::of::<<#ty as ::isx::typed::Many>::Item>(#name, #on_delete)
            });
            continue;
        }
        if let Some(service) = &found.parent {
            parents.push(quote!(::isx::typed::Parent { field: #name, service: #service }));
            continue;
        }
        let calls = &found.calls;
        plain.push(quote!(::isx::typed::Field::of::<#ty>(#name) #(#calls)*));
    }
    let key = match key {
        Some(key) => quote!(::core::option::Option::Some(#key)),
        None => quote!(::core::option::Option::None),
    };
    let rules = rules.map_or_else(|| quote!(""), |rules| quote!(#rules));
    let name = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::isx::typed::Record for #name #arguments #bounds {
            const SERVICE: &'static str = #service;
            const KEY_FIELD: ::core::option::Option<&'static str> = #key;
            const RULES: &'static str = #rules;
            fn fields() -> ::std::vec::Vec<::isx::typed::Field> {
                ::std::vec![#(#plain),*]
            }
            fn children() -> ::std::vec::Vec<::isx::typed::Children> {
                ::std::vec![#(#children),*]
            }
            fn parents() -> ::std::vec::Vec<::isx::typed::Parent> {
                ::std::vec![#(#parents),*]
            }
        }
    })
}

/// What `#[isx(...)]` says of a field.
#[derive(Default)]
struct FieldAttributes {
    is_key: bool,
    is_children: bool,
    on_delete: Option<LitStr>,
    parent: Option<LitStr>,
    /// Calls of the builder of `isx::typed::Field`.
    calls: Vec<TokenStream>,
}

impl FieldAttributes {
    fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut found = Self::default();
        for attribute in attributes.iter().filter(|a| a.path().is_ident("isx")) {
            attribute.parse_nested_meta(|meta| {
                let name = meta.path.get_ident().map(Ident::to_string).unwrap_or_default();
                match name.as_str() {
                    "key" => found.is_key = true,
                    "children" => found.is_children = true,
                    "on_delete" => found.on_delete = Some(meta.value()?.parse()?),
                    "parent" => found.parent = Some(meta.value()?.parse()?),
                    "timestamp" | "index" => {
                        let call = Ident::new(&name, proc_macro2::Span::call_site());
                        found.calls.push(quote!(.#call()));
                    }
                    "min" | "max" | "min_length" | "max_length" | "default" => {
                        let call = Ident::new(&format!("with_{name}"), proc_macro2::Span::call_site());
                        let value: Expr = meta.value()?.parse()?;
                        found.calls.push(quote!(.#call(#value)));
                    }
                    _ => return Err(meta.error("no attribute of isx has this name")),
                }
                Ok(())
            })?;
        }
        Ok(found)
    }
}

fn expand_choice(input: &DeriveInput) -> Result<TokenStream> {
    let Data::Enum(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, "a Choice is an enum"));
    };
    let rename_all = serde_name(&input.attrs, "rename_all")?;
    let mut texts = Vec::new();
    for variant in &data.variants {
        if !matches!(variant.fields, Fields::Unit) {
            return Err(Error::new_spanned(variant, "a variant of a Choice holds nothing"));
        }
        texts.push(match serde_name(&variant.attrs, "rename")? {
            Some(name) => name,
            None => rename(&ident_text(&variant.ident), rename_all.as_deref(), true),
        });
    }
    let name = &input.ident;
    Ok(quote! {
        impl ::isx::typed::Value for #name {
            fn shape() -> ::isx::typed::Shape {
                ::isx::typed::Shape::Enum(::std::vec![#(#texts),*])
            }
        }
    })
}

fn ident_text(ident: &Ident) -> String {
    let text = ident.to_string();
    text.strip_prefix("r#").map(str::to_owned).unwrap_or(text)
}

/// The value of `#[serde(<what> = "...")]`, if there is one. Other attributes of serde's are none of our business.
fn serde_name(attributes: &[Attribute], what: &str) -> Result<Option<String>> {
    let mut found = None;
    for attribute in attributes.iter().filter(|a| a.path().is_ident("serde")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident(what) && meta.input.peek(syn::Token![=]) {
                found = Some(meta.value()?.parse::<LitStr>()?.value());
            } else if meta.input.peek(syn::Token![=]) {
                meta.value()?.parse::<Expr>()?;
            } else if meta.input.peek(syn::token::Paren) {
                // serde(rename(serialize = ..., deserialize = ...)): two names for one field can't be one schema's.
                if meta.path.is_ident(what) {
                    return Err(meta.error("one name for both directions, please"));
                }
                let inside;
                syn::parenthesized!(inside in meta.input);
                inside.parse::<TokenStream>()?;
            }
            Ok(())
        })?;
    }
    Ok(found)
}

/// The name as serde writes it under `rename_all`.
fn rename(name: &str, rule: Option<&str>, is_variant: bool) -> String {
    let Some(rule) = rule else { return name.to_owned() };
    let words: Vec<String> = if is_variant {
        let mut words: Vec<String> = Vec::new();
        for letter in name.chars() {
            match words.last_mut() {
                Some(word) if !letter.is_uppercase() => word.push(letter),
                _ => words.push(letter.to_string()),
            }
        }
        words.iter().map(|word| word.to_lowercase()).collect()
    } else {
        name.split('_').map(str::to_lowercase).collect()
    };
    let capital = |word: &String| {
        let mut letters = word.chars();
        letters
            .next()
            .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
    };
    match rule {
        "lowercase" if is_variant => words.concat(),
        "UPPERCASE" if is_variant => words.concat().to_uppercase(),
        "UPPERCASE" => name.to_uppercase(),
        "PascalCase" => words.iter().map(capital).collect(),
        "camelCase" => {
            let pascal: String = words.iter().map(capital).collect();
            let mut letters = pascal.chars();
            letters
                .next()
                .map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
        }
        "snake_case" => words.join("_"),
        "SCREAMING_SNAKE_CASE" => words.join("_").to_uppercase(),
        "kebab-case" => words.join("-"),
        "SCREAMING-KEBAB-CASE" => words.join("-").to_uppercase(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::rename;

    #[test]
    fn names_are_those_that_serde_writes() {
        for (name, rule, is_variant, wanted) in [
            ("InReview", "lowercase", true, "inreview"),
            ("InReview", "snake_case", true, "in_review"),
            ("InReview", "kebab-case", true, "in-review"),
            ("InReview", "camelCase", true, "inReview"),
            ("age_min", "camelCase", false, "ageMin"),
            ("age_min", "PascalCase", false, "AgeMin"),
            ("age_min", "kebab-case", false, "age-min"),
            ("age_min", "lowercase", false, "age_min"),
            ("age_min", "SCREAMING_SNAKE_CASE", false, "AGE_MIN"),
        ] {
            assert_eq!(rename(name, Some(rule), is_variant), wanted, "{name} {rule}");
        }
        assert_eq!(rename("InReview", None, true), "InReview");
    }
}
