//! Decoding of text files to UTF-8, and to numbered lines.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use encoding_rs::{Decoder, DecoderResult};

use super::DecodeError;
use super::gzip::{self, Gunzip};
use crate::Remedy;
use crate::dialect::Encoding;

/// Number of bytes that tell encodings and foreign formats apart.
const START: usize = 32;
const BUFFER: usize = 8192;

/// Text of a file, without a byte order mark. UTF-8 is not validated yet.
pub(super) struct Text {
    pub(super) reader: Box<dyn Read + Send>,
    pub(super) encoding: Encoding,
}

/// Decompresses gzip. Error if the first bytes are those of another binary file.
pub(super) fn open(mut reader: Box<dyn Read + Send>, encoding: Option<Encoding>) -> Result<Text, DecodeError> {
    let mut first = start(&mut *reader)?;
    if first.starts_with(gzip::MAGIC) {
        reader = Box::new(Gunzip::new(Cursor::new(first).chain(reader)));
        first = start(&mut *reader)?;
    }
    decode(first, reader, encoding)
}

/// Text of these first bytes and those of the reader.
fn decode(start: Vec<u8>, reader: Box<dyn Read + Send>, encoding: Option<Encoding>) -> Result<Text, DecodeError> {
    if let Some(problem) = binary_problem(&start) {
        return Err(DecodeError::Broken(problem.into()));
    }
    let (encoding, mark) = Encoding::from_bom(&start)
        .unwrap_or_else(|| (encoding.or_else(|| utf16_by_zeros(&start)).unwrap_or(Encoding::UTF_8), 0));
    let bytes = Cursor::new(start[mark..].to_vec()).chain(reader);
    let is_utf8 = encoding == Encoding::UTF_8;
    let reader: Box<dyn Read + Send> =
        if is_utf8 { Box::new(bytes) } else { Box::new(Transcoder::new(bytes, encoding)) };
    Ok(Text { reader, encoding })
}

/// Reads the first bytes; fewer of ASCII text, so that a short line typed on a terminal is not waited for.
fn start(reader: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    let mut buffer = [0; START];
    while start.len() < START {
        let n = match reader.read(&mut buffer[start.len()..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        start.extend_from_slice(&buffer[start.len()..start.len() + n]);
        if n == 0 || start.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~')) {
            break;
        }
    }
    Ok(start)
}

fn binary_problem(start: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 11] = [
        (b"\x1f\x8b", "it is compressed by gzip twice; decompress it"),
        (b"\x28\xb5\x2f\xfd", "it is compressed by zstd; decompress it"),
        (b"\x04\x22\x4d\x18", "it is compressed by lz4; decompress it"),
        (b"\xfd7zXZ\0", "it is compressed by xz; decompress it"),
        (b"PK\x03\x04", "it is a zip archive or a spreadsheet; unpack it, or save it as csv"),
        (b"\xd0\xcf\x11\xe0", "it is a spreadsheet; save it as csv"),
        (b"PAR1", "it is a parquet file; give that format"),
        (b"ARROW1\0", "it is an arrow file; give that format"),
        (b"version https://git-lfs", "it is a pointer of Git LFS; fetch the file that it stands for"),
        (b"\xff\xfe\0\0", "it is in UTF-32; write it in UTF-8"),
        (b"\0\0\xfe\xff", "it is in UTF-32; write it in UTF-8"),
    ];
    KNOWN.into_iter().find(|(mark, _)| start.starts_with(mark)).map(|(_, problem)| problem)
}

/// UTF-16 without a byte order mark, if the file begins with two ASCII characters.
fn utf16_by_zeros(start: &[u8]) -> Option<Encoding> {
    match *start {
        [first, 0, second, 0, ..] if first != 0 && second != 0 => Some(Encoding::UTF_16LE),
        [0, first, 0, second, ..] if first != 0 && second != 0 => Some(Encoding::UTF_16BE),
        _ => None,
    }
}

#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub(super) struct LineError {
    pub(super) line: usize,
    pub(super) problem: String,
    pub(super) remedy: Option<Remedy>,
}

struct Transcoder<R> {
    reader: BufReader<R>,
    encoding: Encoding,
    decoder: Decoder,
    output: Cursor<Vec<u8>>,
    lines: LineCount,
    ended: bool,
}

impl<R: Read> Transcoder<R> {
    fn new(reader: R, encoding: Encoding) -> Self {
        let reader = BufReader::with_capacity(BUFFER, reader);
        let (output, lines) = (Cursor::default(), LineCount::default());
        Self { reader, encoding, decoder: encoding.decoder(), output, lines, ended: false }
    }

    fn decode(&mut self) -> io::Result<()> {
        let input = self.reader.fill_buf()?;
        let is_last = input.is_empty();
        let mut output = vec![0; BUFFER];
        let (result, read, written) = self.decoder.decode_to_utf8_without_replacement(input, &mut output, is_last);
        self.reader.consume(read);
        output.truncate(written);
        self.lines.advance(&output);
        self.output = Cursor::new(output);
        match result {
            DecoderResult::InputEmpty => self.ended = is_last,
            DecoderResult::OutputFull => {}
            DecoderResult::Malformed(..) => {
                let problem = format!("the bytes there are not valid {}", self.encoding);
                let remedy = Some(Remedy::Encoding);
                return Err(io::Error::other(LineError { line: self.lines.line(), problem, remedy }));
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Transcoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.output.read(buffer)?;
            if n > 0 || self.ended || buffer.is_empty() {
                return Ok(n);
            }
            self.decode()?;
        }
    }
}

/// Counter of lines, which end with a line feed, a carriage return, or both.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LineCount {
    ended: usize,
    after_return: bool,
}

impl LineCount {
    pub(super) fn advance(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let is_end = byte == b'\r' || (byte == b'\n' && !self.after_return);
            self.ended += usize::from(is_end);
            self.after_return = byte == b'\r';
        }
    }

    /// Number of the line of the next byte, from 1.
    pub(super) fn line(self) -> usize {
        self.ended + 1
    }
}

/// Lines of a text, one at a time. A line ends with a line feed, a carriage return, or both, as in Python.
pub(super) struct Lines<R> {
    reader: R,
    /// Number of the last line, from 1.
    pub(super) number: usize,
    after_return: bool,
    ended: bool,
    bytes: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, number: 0, after_return: false, ended: false, bytes: Vec::new() }
    }

    /// Lines of a text of which the line before `number` ends there.
    pub(super) fn starting_at(reader: R, number: usize) -> Self {
        Self { number: number.saturating_sub(1), ..Self::new(reader) }
    }

    pub(super) fn next(&mut self) -> Result<Option<&str>, DecodeError> {
        self.bytes.clear();
        self.ended = !self.fill()? && self.bytes.is_empty();
        if self.ended {
            return Ok(None);
        }
        self.number += 1;
        let line = str::from_utf8(&self.bytes);
        Ok(Some(line.map_err(|error| not_utf8(self.number, &self.bytes, error))?))
    }

    pub(super) fn last(&self) -> Option<&str> {
        str::from_utf8(&self.bytes).ok().filter(|_| !self.ended)
    }

    /// Reads up to the end of a line or of the text. Returns true if the line has an end.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            let buffer = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                filled => filled?,
            };
            if buffer.is_empty() {
                return Ok(false);
            }
            if std::mem::take(&mut self.after_return) && buffer[0] == b'\n' {
                self.reader.consume(1);
                continue;
            }
            match buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                Some(end) => {
                    self.bytes.extend_from_slice(&buffer[..end]);
                    self.after_return = buffer[end] == b'\r';
                    self.reader.consume(end + 1);
                    return Ok(true);
                }
                None => {
                    let n = buffer.len();
                    self.bytes.extend_from_slice(buffer);
                    self.reader.consume(n);
                }
            }
        }
    }
}

pub(super) fn broken(line: usize, problem: impl Into<String>) -> DecodeError {
    DecodeError::Line(LineError { line, problem: problem.into(), remedy: None })
}

pub(super) fn not_utf8(line: usize, bytes: &[u8], error: std::str::Utf8Error) -> DecodeError {
    DecodeError::Line(LineError { line, problem: wrong_byte(bytes, error), remedy: Some(Remedy::Encoding) })
}

fn wrong_byte(bytes: &[u8], error: std::str::Utf8Error) -> String {
    let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
    format!("the byte 0x{byte:02x} is not valid UTF-8; the file may be in windows-1252 (latin-1)")
}

/// Text of a file that has to be UTF-8.
///
/// # Errors
/// The encoding that the file seems to be in, or the line of its first wrong byte.
pub fn utf8_text(bytes: Vec<u8>) -> Result<String, String> {
    // Its mark begins as that of UTF-16.
    if bytes.starts_with(b"\xff\xfe\0\0") {
        return Err("it is in utf-32".to_owned());
    }
    let marked = Encoding::from_bom(&bytes).map(|(encoding, _)| encoding);
    if let Some(encoding) = marked.or_else(|| utf16_by_zeros(&bytes)).filter(|encoding| *encoding != Encoding::UTF_8) {
        return Err(format!("it is in {encoding}"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let (bytes, error) = (error.as_bytes(), error.utf8_error());
        let mut lines = LineCount::default();
        lines.advance(&bytes[..error.valid_up_to()]);
        format!("line {}: {}", lines.line(), wrong_byte(bytes, error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8], given: Option<&str>) -> Result<String, DecodeError> {
        let given = given.map(|label| label.parse().expect(label));
        let mut text = open(Box::new(Cursor::new(bytes.to_vec())), given)?;
        let mut decoded = String::new();
        text.reader.read_to_string(&mut decoded)?;
        Ok(decoded)
    }

    fn utf16(text: &str, order: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(order).collect()
    }

    #[test]
    fn encoding_is_detected_or_given() {
        let text = "text,label\nété 🎬,1\n";
        let check = |bytes: &[u8], given| assert_eq!(decoded(bytes, given).expect("text"), text, "{given:?}");
        check(text.as_bytes(), None);
        check(format!("\u{feff}{text}").as_bytes(), Some("latin-1"));
        for order in [u16::to_le_bytes, u16::to_be_bytes] {
            check(&utf16(&format!("\u{feff}{text}"), order), None);
            check(&utf16(text, order), None);
        }
        check(&utf16(text, u16::to_le_bytes), Some("utf-16"));
        assert_eq!(decoded(b"\xe9t\xe9 \x80", Some("latin-1")).expect("text"), "été €");
        // longer than a buffer, with characters across its end
        let long = "xé🎬".repeat(10_000);
        assert_eq!(decoded(&utf16(&long, u16::to_be_bytes), Some("utf-16be")).expect("text"), long);
    }

    #[test]
    fn invalid_bytes_are_reported_with_their_line() {
        let error = decoded(b"fine\r\nfine\rb\x81\xff\n", Some("shift_jis")).expect_err("no shift_jis");
        assert!(matches!(error, DecodeError::Line(LineError { line: 3, .. })), "{error:?}");
        let cut = [&utf16("a\nb", u16::to_le_bytes)[..], b"\x3d\xd8"].concat();
        let error = decoded(&cut, None).expect_err("half a pair of surrogates");
        assert!(matches!(error, DecodeError::Line(LineError { line: 2, .. })), "{error:?}");
    }

    #[test]
    fn text_that_is_no_utf8_is_named_by_its_encoding_or_line() {
        assert_eq!(utf8_text("été\n".into()), Ok("été\n".to_owned()));
        let problem = |bytes: &[u8]| utf8_text(bytes.to_vec()).expect_err("no UTF-8");
        for (text, name) in
            [(utf16("\u{feff}name: a", u16::to_le_bytes), "utf-16le"), (utf16("name: a", u16::to_be_bytes), "utf-16be")]
        {
            assert_eq!(problem(&text), format!("it is in {name}"));
        }
        assert_eq!(problem(b"\xff\xfe\0\0n\0\0\0"), "it is in utf-32");
        let latin = problem(b"name: a\r\n# caf\xe9\n");
        assert!(
            latin.starts_with("line 2: the byte 0xe9 is not valid UTF-8; the file may be in windows-1252"),
            "{latin}"
        );
    }

    #[test]
    fn compressed_files_are_named() {
        for (bytes, expected) in [
            (&b"\x1f\x8b\x08\0"[..], "gzip data ends early"),
            (b"PAR1\x15\x04", "parquet"),
            (b"\xff\xfe\0\0", "UTF-32"),
        ] {
            let Err(DecodeError::Broken(error)) = decoded(bytes, None) else { panic!("{expected}") };
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn lines_end_as_in_python() {
        let check = |text: &str, capacity: usize| {
            let mut lines = Lines::new(io::BufReader::with_capacity(capacity, text.as_bytes()));
            let mut found = Vec::new();
            while let Some(line) = lines.next().expect("lines") {
                found.push(line.to_owned());
            }
            assert_eq!(lines.number, found.len());
            found
        };
        for capacity in [1, 3, 100] {
            assert_eq!(check("a\nb\r\n\rc\r", capacity), ["a", "b", "", "c"]);
            assert_eq!(check("\n\na", capacity), ["", "", "a"]);
            assert_eq!(check("", capacity), Vec::<String>::new());
        }
    }

    #[test]
    fn line_count_matches_lines_read() {
        let mut count = LineCount::default();
        for part in ["a\r", "\nb\r", "c\n", "\n"] {
            count.advance(part.as_bytes());
        }
        assert_eq!(count.line(), 5);
    }
}
