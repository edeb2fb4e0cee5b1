//! Which Rust types are which fields.
use std::collections::{BTreeMap, HashMap};

/// What a field may hold, as a schema says it.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Text.
    String,
    /// A whole number, with the bounds that its type has.
    Integer(Option<i64>, Option<i64>),
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A time by RFC 3339, as text.
    Timestamp,
    /// One of these texts.
    Enum(Vec<&'static str>),
    /// An array.
    List(Box<Shape>),
    /// An object whose names are data.
    Map(Box<Shape>),
    /// Anything.
    Json,
}

/// A type that a field may have.
pub trait Value {
    /// Whether a document may lack the field.
    const MAY_BE_ABSENT: bool = false;

    /// What the field may hold.
    fn shape() -> Shape;
}

/// A list of records: the type of a field with children.
pub trait Many {
    /// What it holds.
    type Item: super::Record;
}

impl<R: super::Record> Many for Vec<R> {
    type Item = R;
}

impl<R: super::Record> Many for Option<Vec<R>> {
    type Item = R;
}

macro_rules! values {
    ($($type:ty => $shape:expr;)*) => {
        $(impl Value for $type {
            fn shape() -> Shape {
                $shape
            }
        })*
    };
}

values! {
    String => Shape::String;
    bool => Shape::Boolean;
    f32 => Shape::Number;
    f64 => Shape::Number;
    i64 => Shape::Integer(None, None);
    i32 => Shape::Integer(Some(i32::MIN.into()), Some(i32::MAX.into()));
    i16 => Shape::Integer(Some(i16::MIN.into()), Some(i16::MAX.into()));
    i8 => Shape::Integer(Some(i8::MIN.into()), Some(i8::MAX.into()));
    // Integers of a schema have 64 bits with a sign.
    u64 => Shape::Integer(Some(0), None);
    u32 => Shape::Integer(Some(0), Some(u32::MAX.into()));
    u16 => Shape::Integer(Some(0), Some(u16::MAX.into()));
    u8 => Shape::Integer(Some(0), Some(u8::MAX.into()));
}

impl Value for serde_json::Value {
    const MAY_BE_ABSENT: bool = true;

    fn shape() -> Shape {
        Shape::Json
    }
}

impl<T: Value> Value for Option<T> {
    const MAY_BE_ABSENT: bool = true;

    fn shape() -> Shape {
        T::shape()
    }
}

impl<T: Value> Value for Box<T> {
    const MAY_BE_ABSENT: bool = T::MAY_BE_ABSENT;

    fn shape() -> Shape {
        T::shape()
    }
}

impl<T: Value> Value for Vec<T> {
    fn shape() -> Shape {
        Shape::List(Box::new(T::shape()))
    }
}

impl<T: Value> Value for BTreeMap<String, T> {
    fn shape() -> Shape {
        Shape::Map(Box::new(T::shape()))
    }
}

impl<T: Value, S> Value for HashMap<String, T, S> {
    fn shape() -> Shape {
        Shape::Map(Box::new(T::shape()))
    }
}
