//! Values of the keys of a GGUF file.

use serde_json::{Number, Value as Json};

/// Longest list of a configuration. Longer lists are vocabularies.
const LONGEST_LIST: usize = 4096;

/// Value of a key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Vec<Value>),
}

impl Value {
    /// Name of the type in the format's own words.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "U8",
            Self::I8(_) => "I8",
            Self::U16(_) => "U16",
            Self::I16(_) => "I16",
            Self::U32(_) => "U32",
            Self::I32(_) => "I32",
            Self::U64(_) => "U64",
            Self::I64(_) => "I64",
            Self::F32(_) => "F32",
            Self::F64(_) => "F64",
            Self::Bool(_) => "Bool",
            Self::String(_) => "String",
            Self::Array(_) => "Array",
        }
    }

    /// A whole number of any type.
    pub(super) fn to_integer(&self) -> Option<i128> {
        Some(match self {
            Self::U8(number) => (*number).into(),
            Self::I8(number) => (*number).into(),
            Self::U16(number) => (*number).into(),
            Self::I16(number) => (*number).into(),
            Self::U32(number) => (*number).into(),
            Self::I32(number) => (*number).into(),
            Self::U64(number) => (*number).into(),
            Self::I64(number) => (*number).into(),
            _ => return None,
        })
    }

    /// A value of a configuration; `None` for a vocabulary. NaN and infinity become texts, which no key accepts: a missing
    /// value would become the default of its key.
    pub(super) fn to_json(&self) -> Option<Json> {
        let float =
            |number: f64| Number::from_f64(number).map_or_else(|| Json::String(number.to_string()), Json::Number);
        Some(match self {
            // Through the decimal text, so that 1e-5 as f32 becomes 1e-5.
            Self::F32(number) => float(number.to_string().parse().ok()?),
            Self::F64(number) => float(*number),
            Self::Bool(flag) => (*flag).into(),
            Self::String(text) => text.clone().into(),
            Self::Array(values) if values.len() <= LONGEST_LIST => {
                values.iter().map(Self::to_json).collect::<Option<_>>()?
            }
            Self::Array(_) => return None,
            Self::U64(number) => (*number).into(),
            number => i64::try_from(number.to_integer()?).ok()?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_stay_visible() {
        assert_eq!(Value::F32(1e-5).to_json(), Number::from_f64(1e-5).map(Json::Number));
        assert_eq!(Value::F32(f32::NAN).to_json(), Some("NaN".into()));
        assert_eq!(Value::F64(f64::NEG_INFINITY).to_json(), Some("-inf".into()));
    }
}
