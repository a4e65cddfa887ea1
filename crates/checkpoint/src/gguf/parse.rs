//! Parsing of the beginning of a GGUF file with candle, after a walk over its keys that refuses those with which candle
//! would divide by zero or use far more memory than the file has bytes.

use std::io::{self, Read, Seek, SeekFrom};

use candle_core::Error as CandleError;
use candle_core::quantized::gguf_file::Content;

const ALIGNMENT: &[u8] = b"general.alignment";
/// The largest alignment of tensors in bytes.
const MAX_ALIGNMENT: i64 = 1 << 16;
/// The longest key that the format allows.
const MAX_KEY: u64 = (1 << 16) - 1;
/// The most values of all keys, far above those of any vocabulary. A parsed value has 32 bytes, in a file it may have one.
const MAX_VALUES: u64 = 1 << 23;
/// The deepest list of lists.
const MAX_DEPTH: usize = 8;

const STRING: u32 = 8;
const ARRAY: u32 = 9;

#[derive(Debug, thiserror::Error)]
pub(super) enum ParseError {
    /// More bytes of the file do not change this error.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(transparent)]
    Content(#[from] CandleError),
}

/// Reads the keys and the location of tensors.
pub(super) fn parse<R: Read + Seek>(reader: &mut R) -> Result<Content, ParseError> {
    let start = reader.stream_position()?;
    Walk { reader: &mut *reader, has_short_lengths: false, n_values: 0 }.check()?;
    reader.seek(SeekFrom::Start(start))?;
    Ok(Content::read(reader)?)
}

struct Walk<'a, R> {
    reader: &'a mut R,
    /// True in the first version, whose lengths have 32 bits.
    has_short_lengths: bool,
    /// Number of values so far.
    n_values: u64,
}

impl<R: Read> Walk<'_, R> {
    fn check(&mut self) -> Result<(), ParseError> {
        let [_, version] = [self.word()?, self.word()?];
        // Candle refuses other versions.
        if !(1..=3).contains(&version) {
            return Ok(());
        }
        self.has_short_lengths = version == 1;
        let [_, n_keys] = [self.length()?, self.length()?];
        for _ in 0..n_keys {
            let key = self.key()?;
            let kind = self.word()?;
            if key == ALIGNMENT {
                self.alignment(kind)?;
            } else {
                self.skip_value(kind, 0)?;
            }
        }
        Ok(())
    }

    /// A key as candle reads it, without zeros at its end.
    fn key(&mut self) -> Result<Vec<u8>, ParseError> {
        let length = self.length()?;
        if length > MAX_KEY {
            return Err(ParseError::Refused(format!(
                "a key has {length} bytes, more than the {MAX_KEY} of the format"
            )));
        }
        let mut key = vec![0; length as usize];
        self.reader.read_exact(&mut key)?;
        key.truncate(key.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        Ok(key)
    }

    /// Refuses an alignment by which candle cannot divide, or that it ignores.
    fn alignment(&mut self, kind: u32) -> Result<(), ParseError> {
        let alignment = match kind {
            0 => i64::from(u8::from_le_bytes(self.bytes()?)),
            1 => i64::from(i8::from_le_bytes(self.bytes()?)),
            2 => i64::from(u16::from_le_bytes(self.bytes()?)),
            3 => i64::from(i16::from_le_bytes(self.bytes()?)),
            4 => i64::from(u32::from_le_bytes(self.bytes()?)),
            5 => i64::from(i32::from_le_bytes(self.bytes()?)),
            _ => {
                return Err(ParseError::Refused(
                    "`general.alignment` is no whole number of at most 32 bits".to_owned(),
                ));
            }
        };
        if (1..=MAX_ALIGNMENT).contains(&alignment) {
            return Ok(());
        }
        let problem = format!("`general.alignment` is {alignment}, expected a number from 1 to {MAX_ALIGNMENT}");
        Err(ParseError::Refused(problem))
    }

    fn skip_value(&mut self, kind: u32, depth: usize) -> Result<(), ParseError> {
        self.count(1)?;
        if kind == STRING {
            let length = self.length()?;
            return self.skip(length);
        }
        if kind != ARRAY {
            return self.skip(size(kind)?);
        }
        if depth == MAX_DEPTH {
            return Err(ParseError::Refused(format!("its lists are nested more than {MAX_DEPTH} times")));
        }
        let (kind, length) = (self.word()?, self.length()?);
        if matches!(kind, STRING | ARRAY) {
            return (0..length).try_for_each(|_| self.skip_value(kind, depth + 1));
        }
        self.count(length)?;
        // The number of values is limited.
        self.skip(length * size(kind)?)
    }

    /// Counts values, before memory for them is allocated.
    fn count(&mut self, n_values: u64) -> Result<(), ParseError> {
        self.n_values = self.n_values.saturating_add(n_values);
        if self.n_values > MAX_VALUES {
            let problem = format!("its keys have more than {MAX_VALUES} values, which no model needs");
            return Err(ParseError::Refused(problem));
        }
        Ok(())
    }

    fn skip(&mut self, n_bytes: u64) -> Result<(), ParseError> {
        // Seeking would discard the buffer of the reader.
        if io::copy(&mut self.reader.by_ref().take(n_bytes), &mut io::sink())? < n_bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
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
        Ok(bytes)
    }
}

/// Bytes of a number or flag of a type of the format.
fn size(kind: u32) -> Result<u64, ParseError> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(ParseError::Refused(format!("{kind} is no type of a value"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

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
            (ALIGNMENT, 4, &64_u32.to_le_bytes()),
            (b"texts", ARRAY, &texts),
            (b"nested", ARRAY, &nested),
            (b"x", 12, &[0; 8]),
        ];
        let content = parse(&mut Cursor::new(file(&keys))).expect("parses");
        assert_eq!((content.metadata.len(), content.tensor_data_offset % 64), (4, 0));
    }

    #[test]
    fn alignments_that_are_not_positive_numbers_are_refused() {
        let check = |key: &[u8], kind: u32, value: &[u8]| {
            let error = parse(&mut Cursor::new(file(&[(key, kind, value)]))).expect_err("refused");
            let text = error.to_string();
            assert!(matches!(error, ParseError::Refused(_)) && text.contains("`general.alignment` is"), "{text}");
        };
        check(ALIGNMENT, 4, &[0; 4]);
        check(ALIGNMENT, 0, &[0]);
        check(ALIGNMENT, 4, &[255; 4]);
        check(ALIGNMENT, 5, &[255; 4]);
        check(ALIGNMENT, 10, &[32, 0, 0, 0, 0, 0, 0, 0]);
        // Candle drops the zeros.
        check(&[ALIGNMENT, &[0; 100]].concat(), 4, &[0; 4]);
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
        check(&list(STRING, u64::MAX, &[]), false);
    }
}
