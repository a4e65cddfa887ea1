//! From the bytes of a text file to UTF-8, and to lines with their numbers.

use std::io::{self, BufRead, Cursor, Read};

use encoding_rs::{Decoder, DecoderResult};

use super::Failure;
use crate::dialect::Encoding;

/// Bytes that tell encodings and foreign formats apart.
const START: usize = 32;
/// Bytes that are decoded at a time.
const BUFFER: usize = 8192;

/// The text of a file, without a byte order mark. If its encoding is UTF-8, the bytes are not checked yet.
pub(super) struct Text {
    pub(super) reader: Box<dyn Read + Send>,
    pub(super) encoding: Encoding,
}

/// Errors if the file is clearly no text.
pub(super) fn open(mut reader: Box<dyn Read + Send>, given: Option<Encoding>) -> Result<Text, Failure> {
    let start = start(&mut *reader)?;
    if let Some(problem) = not_text(&start) {
        return Err(Failure::Broken(problem.into()));
    }
    let (encoding, mark) =
        Encoding::by_mark(&start).unwrap_or_else(|| (given.or_else(|| by_zeros(&start)).unwrap_or(Encoding::UTF_8), 0));
    let bytes = Cursor::new(start[mark..].to_vec()).chain(reader);
    let is_utf8 = encoding == Encoding::UTF_8;
    let reader: Box<dyn Read + Send> =
        if is_utf8 { Box::new(bytes) } else { Box::new(Transcoder::new(bytes, encoding)) };
    Ok(Text { reader, encoding })
}

/// The first bytes; fewer of a terminal, on which someone types a short line.
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

/// The reason why a file is no text, if its first bytes tell one.
fn not_text(start: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 11] = [
        (b"\x1f\x8b", "it is compressed by gzip; decompress it"),
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

/// UTF-16 without a mark: the file begins with two characters of ASCII.
fn by_zeros(start: &[u8]) -> Option<Encoding> {
    match *start {
        [first, 0, second, 0, ..] if first != 0 && second != 0 => Some(Encoding::UTF_16LE),
        [0, first, 0, second, ..] if first != 0 && second != 0 => Some(Encoding::UTF_16BE),
        _ => None,
    }
}

/// A problem of one line.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub(super) struct LineError {
    pub(super) line: usize,
    pub(super) problem: String,
}

/// Text of another encoding as UTF-8.
struct Transcoder<R> {
    reader: R,
    encoding: Encoding,
    decoder: Decoder,
    /// Bytes of the file; those from `next` to `filled` are not decoded yet.
    input: Vec<u8>,
    next: usize,
    filled: usize,
    output: Cursor<Vec<u8>>,
    lines: LineCount,
    ended: bool,
}

impl<R: Read> Transcoder<R> {
    fn new(reader: R, encoding: Encoding) -> Self {
        Self {
            reader,
            encoding,
            decoder: encoding.decoder(),
            input: vec![0; BUFFER],
            next: 0,
            filled: 0,
            output: Cursor::default(),
            lines: LineCount::default(),
            ended: false,
        }
    }

    /// Decodes what is there, or what the reader gives next.
    fn decode(&mut self) -> io::Result<()> {
        if self.next == self.filled {
            (self.next, self.filled) = (0, self.reader.read(&mut self.input)?);
        }
        let last = self.filled == 0;
        let mut output = vec![0; BUFFER];
        let input = &self.input[self.next..self.filled];
        let (result, read, written) = self.decoder.decode_to_utf8_without_replacement(input, &mut output, last);
        output.truncate(written);
        self.lines.pass(&output);
        self.next += read;
        self.output = Cursor::new(output);
        match result {
            DecoderResult::InputEmpty => self.ended = last,
            DecoderResult::OutputFull => {}
            DecoderResult::Malformed(..) => {
                let problem = format!("the bytes there are not valid {}; set another `encoding`", self.encoding);
                return Err(io::Error::other(LineError { line: self.lines.line(), problem }));
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

/// Counts lines, which end with a line feed, a carriage return, or both.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LineCount {
    ended: usize,
    after_return: bool,
}

impl LineCount {
    /// Goes past these bytes.
    pub(super) fn pass(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let is_end = byte == b'\r' || (byte == b'\n' && !self.after_return);
            self.ended += usize::from(is_end);
            self.after_return = byte == b'\r';
        }
    }

    /// The number of the line of the next byte, from 1.
    pub(super) fn line(self) -> usize {
        self.ended + 1
    }
}

/// Lines of a text, one at a time. A line ends with a line feed, a carriage return, or both, as in Python.
pub(super) struct Lines<R> {
    reader: R,
    /// The number of the last line, from 1.
    pub(super) number: usize,
    after_return: bool,
    ended: bool,
    bytes: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, number: 0, after_return: false, ended: false, bytes: Vec::new() }
    }

    /// The next line without its end.
    pub(super) fn next(&mut self) -> Result<Option<&str>, Failure> {
        self.bytes.clear();
        self.ended = !self.fill()? && self.bytes.is_empty();
        if self.ended {
            return Ok(None);
        }
        self.number += 1;
        let line = str::from_utf8(&self.bytes);
        Ok(Some(line.map_err(|error| self.broken(not_utf8(&self.bytes, error)))?))
    }

    /// The line that was read last, if there was one.
    pub(super) fn last(&self) -> Option<&str> {
        str::from_utf8(&self.bytes).ok().filter(|_| !self.ended)
    }

    /// Reads up to the end of a line, or of the text; returns whether the line has an end.
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

    /// A problem of the last line.
    pub(super) fn broken(&self, problem: impl Into<String>) -> Failure {
        broken(self.number, problem)
    }
}

/// A problem of this line.
pub(super) fn broken(line: usize, problem: impl Into<String>) -> Failure {
    Failure::Line(LineError { line, problem: problem.into() })
}

/// Names the first byte that is not valid UTF-8, and a remedy.
pub(super) fn not_utf8(bytes: &[u8], error: std::str::Utf8Error) -> String {
    let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
    format!(
        "the byte 0x{byte:02x} is not valid UTF-8; set `encoding` to that of the file, which may be windows-1252 \
         (latin-1)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8], given: Option<&str>) -> Result<String, Failure> {
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
    fn encodings_are_told_by_marks_or_given() {
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
    fn bytes_of_another_encoding_are_told_with_their_line() {
        let error = decoded(b"fine\r\nfine\rb\x81\xff\n", Some("shift_jis")).expect_err("no shift_jis");
        assert!(matches!(error, Failure::Line(LineError { line: 3, .. })), "{error:?}");
        let cut = [&utf16("a\nb", u16::to_le_bytes)[..], b"\x3d\xd8"].concat();
        let error = decoded(&cut, None).expect_err("half a pair of surrogates");
        assert!(matches!(error, Failure::Line(LineError { line: 2, .. })), "{error:?}");
    }

    #[test]
    fn compressed_files_are_named() {
        for (bytes, expected) in
            [(&b"\x1f\x8b\x08\0"[..], "gzip"), (b"PAR1\x15\x04", "parquet"), (b"\xff\xfe\0\0", "UTF-32")]
        {
            let Err(Failure::Broken(error)) = decoded(bytes, None) else { panic!("{expected}") };
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
    fn counted_lines_are_those_that_are_read() {
        let mut count = LineCount::default();
        for part in ["a\r", "\nb\r", "c\n", "\n"] {
            count.pass(part.as_bytes());
        }
        assert_eq!(count.line(), 5);
    }
}
