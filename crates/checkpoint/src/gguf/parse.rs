//! Parsing of the beginning of a GGUF file: keys with their values, and the location of tensors.
//!
//! A file may be hostile: counts and lengths are limited before memory is allocated for them, and a text grows only as far
//! as the file has bytes.

use std::collections::{HashMap, hash_map};
use std::io::{self, Read};

use super::number_type::NumberType;
use super::value::Value;

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest alignment of tensors in bytes.
const MAX_ALIGNMENT: i128 = 1 << 16;
/// The longest key that the format allows.
const MAX_KEY: u64 = (1 << 16) - 1;
/// The most values of all keys, far above those of any vocabulary. A parsed value has 32 bytes, in a file it may have one.
const MAX_VALUES: u64 = 1 << 23;
/// The most tensors, far above those of any model.
const MAX_TENSORS: u64 = 1 << 20;
/// The most dimensions of a tensor that the format allows.
const MAX_DIMENSIONS: u32 = 4;
/// The deepest list of lists.
const MAX_DEPTH: usize = 8;

const ARRAY: u32 = 9;

#[derive(Debug, thiserror::Error)]
pub(super) enum ParseError {
    /// More bytes of the file do not change this error.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// The beginning of a file.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, TensorInfo>,
    /// Offset of the first tensor in bytes.
    pub(super) data_offset: u64,
}

/// Type and location of a tensor.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) number_type: NumberType,
    /// Dimensions, the one of a row last.
    pub(super) shape: Vec<usize>,
    /// Bytes after [`Content::data_offset`].
    pub(super) offset: u64,
}

/// Reads the keys and the location of tensors.
pub(super) fn parse<R: Read>(reader: &mut R) -> Result<Content, ParseError> {
    let mut parser = Parser { reader, position: 0, has_short_lengths: false, n_values: 0 };
    if parser.bytes()? != *MAGIC {
        return Err(refused("it is no GGUF file"));
    }
    match parser.word()? {
        version @ 1..=3 => parser.has_short_lengths = version == 1,
        version => return Err(refused(format!("its version is {version}, and the known ones are 1 to 3"))),
    }
    let [n_tensors, n_keys] = [parser.length()?, parser.length()?];
    if n_tensors > MAX_TENSORS {
        return Err(refused(format!("it has {n_tensors} tensors, more than the {MAX_TENSORS} of any model")));
    }
    let (mut metadata, mut tensors) = (HashMap::new(), HashMap::new());
    for _ in 0..n_keys {
        let key = parser.key()?;
        let kind = parser.word()?;
        let value = parser.value(kind, 0)?;
        insert_new(&mut metadata, key, value, "key")?;
    }
    for _ in 0..n_tensors {
        let name = parser.key()?;
        let info = parser.tensor(&name)?;
        insert_new(&mut tensors, name, info, "tensor")?;
    }
    let data_offset = parser.position.next_multiple_of(alignment(metadata.get(ALIGNMENT))?);
    Ok(Content { metadata, tensors, data_offset })
}

fn refused(problem: impl Into<String>) -> ParseError {
    ParseError::Refused(problem.into())
}

/// Inserts a value of a name that may be there only once.
fn insert_new<T>(map: &mut HashMap<String, T>, name: String, value: T, noun: &str) -> Result<(), ParseError> {
    match map.entry(name) {
        hash_map::Entry::Vacant(entry) => drop(entry.insert(value)),
        hash_map::Entry::Occupied(entry) => return Err(refused(format!("it has the {noun} `{}` twice", entry.key()))),
    }
    Ok(())
}

/// Alignment of tensors in bytes.
fn alignment(value: Option<&Value>) -> Result<u64, ParseError> {
    let Some(value) = value else { return Ok(DEFAULT_ALIGNMENT) };
    let number = match value {
        Value::U64(_) | Value::I64(_) => None,
        other => other.to_integer(),
    };
    let Some(number) = number else {
        return Err(refused(format!("`{ALIGNMENT}` is no whole number of at most 32 bits")));
    };
    u64::try_from(number)
        .ok()
        .filter(|_| (1..=MAX_ALIGNMENT).contains(&number))
        .ok_or_else(|| refused(format!("`{ALIGNMENT}` is {number}, expected a number from 1 to {MAX_ALIGNMENT}")))
}

struct Parser<'a, R> {
    reader: &'a mut R,
    /// Bytes that were read.
    position: u64,
    /// True in the first version, whose lengths have 32 bits.
    has_short_lengths: bool,
    /// Number of values so far.
    n_values: u64,
}

impl<R: Read> Parser<'_, R> {
    /// Name of a key or a tensor.
    fn key(&mut self) -> Result<String, ParseError> {
        let length = self.length()?;
        if length > MAX_KEY {
            return Err(refused(format!("a key has {length} bytes, more than the {MAX_KEY} of the format")));
        }
        self.text(length)
    }

    fn tensor(&mut self, name: &str) -> Result<TensorInfo, ParseError> {
        let n_dimensions = self.word()?;
        if n_dimensions > MAX_DIMENSIONS {
            return Err(refused(format!(
                "the tensor `{name}` has {n_dimensions} dimensions, more than the {MAX_DIMENSIONS} of the format"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dimensions {
            let dimension = self.length()?;
            let too_large = || refused(format!("the tensor `{name}` has a dimension of {dimension}"));
            shape.push(usize::try_from(dimension).map_err(|_| too_large())?);
        }
        shape.reverse();
        let code = self.word()?;
        let number_type = NumberType::from_code(code).ok_or_else(|| {
            let read = NumberType::read_names();
            refused(format!(
                "the tensor `{name}` is of the number type {code}, whose size is not known; use a file with the types {read}"
            ))
        })?;
        Ok(TensorInfo { number_type, shape, offset: u64::from_le_bytes(self.bytes()?) })
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, ParseError> {
        self.count(1)?;
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.bytes()?)),
            1 => Value::I8(i8::from_le_bytes(self.bytes()?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes()?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes()?)),
            4 => Value::U32(self.word()?),
            5 => Value::I32(i32::from_le_bytes(self.bytes()?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes()?)),
            7 => match self.bytes()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(refused(format!("{other} is no truth value"))),
            },
            8 => {
                let length = self.length()?;
                Value::String(self.text(length)?)
            }
            ARRAY => self.list(depth)?,
            10 => Value::U64(u64::from_le_bytes(self.bytes()?)),
            11 => Value::I64(i64::from_le_bytes(self.bytes()?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(refused(format!("{kind} is no type of a value"))),
        })
    }

    fn list(&mut self, depth: usize) -> Result<Value, ParseError> {
        if depth == MAX_DEPTH {
            return Err(refused(format!("its lists are nested more than {MAX_DEPTH} times")));
        }
        let (kind, length) = (self.word()?, self.length()?);
        if self.n_values.saturating_add(length) > MAX_VALUES {
            return Err(too_many_values());
        }
        // Memory grows with the values that are there.
        let mut values = Vec::new();
        for _ in 0..length {
            values.push(self.value(kind, depth + 1)?);
        }
        Ok(Value::Array(values))
    }

    /// Counts values, before memory for them is allocated.
    fn count(&mut self, n_values: u64) -> Result<(), ParseError> {
        self.n_values = self.n_values.saturating_add(n_values);
        if self.n_values > MAX_VALUES { Err(too_many_values()) } else { Ok(()) }
    }

    /// Text without zeros at its end, which some files have. Bytes that are no UTF-8 are replaced.
    fn text(&mut self, length: u64) -> Result<String, ParseError> {
        let mut bytes = Vec::new();
        self.position += self.reader.by_ref().take(length).read_to_end(&mut bytes)? as u64;
        if (bytes.len() as u64) < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn length(&mut self) -> Result<u64, ParseError> {
        if self.has_short_lengths { Ok(self.word()?.into()) } else { Ok(u64::from_le_bytes(self.bytes()?)) }
    }

    fn word(&mut self) -> Result<u32, ParseError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(bytes)
    }
}

fn too_many_values() -> ParseError {
    refused(format!("its keys have more than {MAX_VALUES} values, which no model needs"))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const STRING: u32 = 8;
    const ALIGNMENT_KEY: &[u8] = ALIGNMENT.as_bytes();

    /// A file of version 3 without tensors, with these keys.
    fn file(keys: &[(&[u8], u32, &[u8])]) -> Vec<u8> {
        let mut file = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &[0; 8], &(keys.len() as u64).to_le_bytes()].concat();
        for (key, kind, value) in keys {
            file.extend_from_slice(&(key.len() as u64).to_le_bytes());
            file.extend_from_slice(key);
            file.extend_from_slice(&kind.to_le_bytes());
            file.extend_from_slice(value);
        }
        file
    }

    fn list(kind: u32, length: u64, values: &[u8]) -> Vec<u8> {
        [kind.to_le_bytes().as_slice(), &length.to_le_bytes(), values].concat()
    }

    #[test]
    fn valid_keys_are_parsed() {
        let texts = list(STRING, 2, &[3_u64.to_le_bytes().as_slice(), b"abc", &[0; 8]].concat());
        let nested = list(ARRAY, 2, &[list(4, 1, &[0; 4]), list(0, 3, &[0; 3])].concat());
        let keys: [(&[u8], u32, &[u8]); 4] = [
            (ALIGNMENT_KEY, 4, &64_u32.to_le_bytes()),
            (b"texts", ARRAY, &texts),
            (b"nested", ARRAY, &nested),
            (b"x", 12, &[0; 8]),
        ];
        let content = parse(&mut Cursor::new(file(&keys))).expect("parses");
        assert_eq!((content.metadata.len(), content.data_offset % 64), (4, 0));
        let text = |text: &str| Value::String(text.to_owned());
        assert_eq!(content.metadata["texts"], Value::Array(vec![text("abc"), text("")]));
        assert_eq!(content.metadata["x"], Value::F64(0.0));
        assert_eq!(content.metadata[ALIGNMENT], Value::U32(64));
    }

    #[test]
    fn alignments_that_are_not_positive_numbers_are_refused() {
        let check = |key: &[u8], kind: u32, value: &[u8]| {
            let error = parse(&mut Cursor::new(file(&[(key, kind, value)]))).expect_err("refused");
            let text = error.to_string();
            assert!(matches!(error, ParseError::Refused(_)) && text.contains("`general.alignment` is"), "{text}");
        };
        check(ALIGNMENT_KEY, 4, &[0; 4]);
        check(ALIGNMENT_KEY, 0, &[0]);
        check(ALIGNMENT_KEY, 4, &[255; 4]);
        check(ALIGNMENT_KEY, 5, &[255; 4]);
        check(ALIGNMENT_KEY, 10, &[32, 0, 0, 0, 0, 0, 0, 0]);
        // The zeros are dropped.
        check(&[ALIGNMENT_KEY, &[0; 100]].concat(), 4, &[0; 4]);
    }

    #[test]
    fn lists_beyond_memory_are_refused() {
        let check = |value: &[u8], is_final: bool| {
            let error = parse(&mut Cursor::new(file(&[(b"list", ARRAY, value)]))).expect_err("refused");
            assert_eq!(matches!(error, ParseError::Refused(_)), is_final, "{error}");
        };
        check(&list(0, u64::MAX, &[]), true);
        check(&list(0, MAX_VALUES, &[]), true);
        check(&(0..9).fold(Vec::new(), |inner, _| list(ARRAY, 1, &inner)), true);
        check(&list(13, 1, &[0; 8]), true);
        // More values than the file has bytes.
        check(&list(10, 1000, &[0; 8]), false);
        check(&list(STRING, u64::MAX, &[]), true);
        check(&list(STRING, 1, &u64::MAX.to_le_bytes()), false);
    }

    /// A file of version 3 with a name, dimensions and a number type for each tensor.
    fn file_of_tensors(tensors: &[(&str, &[u64], u32)]) -> Vec<u8> {
        let mut file =
            [MAGIC.as_slice(), &3_u32.to_le_bytes(), &(tensors.len() as u64).to_le_bytes(), &[0; 8]].concat();
        for (name, shape, code) in tensors {
            file.extend((name.len() as u64).to_le_bytes());
            file.extend(name.as_bytes());
            file.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|dimension| file.extend(dimension.to_le_bytes()));
            file.extend(code.to_le_bytes());
            file.extend(96_u64.to_le_bytes());
        }
        file
    }

    #[test]
    fn tensors_are_located() {
        let content = parse(&mut Cursor::new(file_of_tensors(&[("w", &[64, 3], 8), ("b", &[3], 0)]))).expect("parses");
        let weight = &content.tensors["w"];
        assert_eq!(
            (weight.number_type, weight.shape.as_slice(), weight.offset),
            (NumberType::named("Q8_0"), &[3, 64][..], 96)
        );
        assert_eq!((content.tensors.len(), content.data_offset % DEFAULT_ALIGNMENT), (2, 0));
    }

    #[test]
    fn invalid_tensors_and_starts_are_refused() {
        let check = |file: &[u8], needle: &str| {
            let error = parse(&mut Cursor::new(file)).expect_err("refused");
            assert!(matches!(error, ParseError::Refused(_)) && error.to_string().contains(needle), "{error}");
        };
        check(&file_of_tensors(&[("w", &[1; 5], 0)]), "5 dimensions");
        check(&file_of_tensors(&[("w", &[1], 99)]), "number type 99");
        check(&file_of_tensors(&[("w", &[1], 0), ("w", &[2], 0)]), "the tensor `w` twice");
        check(&file(&[(b"k", 7, &[1]), (b"k", 7, &[0])]), "the key `k` twice");
        check(&file(&[(b"k", 7, &[2])]), "2 is no truth value");
        check(&[MAGIC.as_slice(), &4_u32.to_le_bytes()].concat(), "its version is 4");
        check(b"GGML\x01\0\0\0", "no GGUF file");
        let many = [MAGIC.as_slice(), &3_u32.to_le_bytes(), &u64::MAX.to_le_bytes(), &[0; 8]].concat();
        check(&many, "more than the 1048576 of any model");
    }

    #[test]
    fn parse_of_any_shorter_file_ends_early() {
        let whole = file(&[(b"list", ARRAY, &list(STRING, 1, &[&3_u64.to_le_bytes()[..], b"abc"].concat()))]);
        for length in 0..whole.len() {
            let error = parse(&mut Cursor::new(&whole[..length])).expect_err("the end is missing");
            assert!(matches!(error, ParseError::Read(_)), "{length}: {error}");
        }
    }
}
