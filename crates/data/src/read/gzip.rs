//! Decompression of text files.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

/// First bytes of compressed data.
pub(super) const MAGIC: &[u8] = b"\x1f\x8b";

const BUFFER: usize = 32 << 10;
/// Size up to which data may expand in any proportion, in bytes.
const FREE_BYTES: u64 = 64 << 20;
/// Greatest proportion of larger data to its compressed form. Tables of real texts stay below 20; the format allows 1032.
const MAX_EXPANSION: u64 = 200;

/// Decompressed bytes of one or several members. Zeros after a member are padding, as in Python's `gzip`. Data that expands as
/// tables never do is refused, so that a small file cannot fill the memory.
pub(super) struct Gunzip<R> {
    /// Decoder of a member; none after the last one, or after an error.
    decoder: Option<GzDecoder<BufReader<Counted<R>>>>,
    is_first: bool,
    n_bytes: u64,
}

struct Counted<R> {
    reader: R,
    n_bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.n_bytes += n as u64;
        Ok(n)
    }
}

impl<R: Read> Gunzip<R> {
    pub(super) fn new(reader: R) -> Self {
        let reader = BufReader::with_capacity(BUFFER, Counted { reader, n_bytes: 0 });
        Self { decoder: Some(GzDecoder::new(reader)), is_first: true, n_bytes: 0 }
    }

    fn decode(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.decoder {
            let n = match decoder.read(buffer) {
                Ok(n) => n,
                Err(error) => {
                    // The bytes after a member may only begin as another one does.
                    let is_other = !self.is_first && decoder.header().is_none() && is_invalid(&error);
                    return Err(if is_other { other_bytes() } else { named(error) });
                }
            };
            if n == 0 {
                self.next_member()?;
                continue;
            }
            self.n_bytes += n as u64;
            let n_compressed = decoder.get_ref().get_ref().n_bytes;
            if self.n_bytes > FREE_BYTES.max(n_compressed.saturating_mul(MAX_EXPANSION)) {
                return Err(io::Error::other(format!(
                    "its gzip data expands to more than {MAX_EXPANSION} times its size, as tables of texts do not; decompress it \
                     if it is right"
                )));
            }
            return Ok(n);
        }
        Ok(0)
    }

    /// Goes from the end of a member to the next one, if there is one.
    fn next_member(&mut self) -> io::Result<()> {
        let Some(decoder) = self.decoder.take() else { return Ok(()) };
        let mut reader = decoder.into_inner();
        self.is_first = false;
        match skip_zeros(&mut reader)? {
            None => {}
            Some(byte) if byte == MAGIC[0] => self.decoder = Some(GzDecoder::new(reader)),
            Some(_) => return Err(other_bytes()),
        }
        Ok(())
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let decoded = self.decode(buffer);
        if decoded.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
            self.decoder = None;
        }
        decoded
    }
}

/// Consumes zeros. Returns the byte after them, which is not consumed; `None` at the end.
fn skip_zeros(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let buffer = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            filled => filled?,
        };
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        let (next, is_end) = (buffer.get(zeros).copied(), buffer.is_empty());
        reader.consume(zeros);
        if next.is_some() || is_end {
            return Ok(next);
        }
    }
}

/// The decoder's errors in words; those of the reader below it stay.
fn named(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("its gzip data ends early: the file is cut off"),
        _ if is_invalid(&error) => io::Error::other(format!("its gzip data is damaged: {error}")),
        _ => error,
    }
}

fn is_invalid(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
}

fn other_bytes() -> io::Error {
    io::Error::other(
        "other bytes follow the end of its gzip data; remove them, or decompress the file if the data before them is complete",
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn compressed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("compressed");
        encoder.finish().expect("compressed")
    }

    fn decompressed(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut decompressed = Vec::new();
        let read = Gunzip::new(bytes).read_to_end(&mut decompressed);
        read.map(|_| decompressed).map_err(|error| error.to_string())
    }

    #[test]
    fn members_are_joined() {
        let bytes = [compressed(b"text,label\n"), compressed(b"a,1\n")].concat();
        assert_eq!(decompressed(&bytes).as_deref(), Ok(&b"text,label\na,1\n"[..]));
        assert_eq!(decompressed(&compressed(b"")).as_deref(), Ok(&b""[..]));
    }

    #[test]
    fn damage_is_named() {
        let bytes = compressed(&b"a,1\nb,2\n".repeat(100));
        for end in [3, 12, bytes.len() - 9, bytes.len() - 1] {
            assert!(decompressed(&bytes[..end]).is_err_and(|error| error.contains("cut off")), "{end}");
        }
        let mut damaged = bytes.clone();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(decompressed(&damaged).is_err_and(|error| error.contains("damaged")));
    }

    #[test]
    fn padding_is_accepted() {
        let (first, second) = (compressed(b"text,label\n"), compressed(b"a,1\n"));
        for zeros in [1, 9, 512, 2 * BUFFER] {
            let padding = vec![0_u8; zeros];
            let padded = [&first[..], &padding].concat();
            assert_eq!(decompressed(&padded).as_deref(), Ok(&b"text,label\n"[..]), "{zeros}");
            let between = [&first[..], &padding, &second, &padding].concat();
            assert_eq!(decompressed(&between).as_deref(), Ok(&b"text,label\na,1\n"[..]), "{zeros}");
        }
    }

    #[test]
    fn other_bytes_after_the_end_are_named() {
        let bytes = compressed(b"a,1\nb,2\n");
        let others = [&b"x"[..], b"and a text of some length", b"\0\0x", b"\x1f and a text of some length"];
        for other in others {
            let error = decompressed(&[&bytes[..], other].concat()).expect_err("other bytes");
            assert!(error.contains("other bytes follow the end of its gzip data"), "{other:?}: {error}");
        }
        let cut = [&bytes[..], &bytes[..bytes.len() - 9]].concat();
        assert!(decompressed(&cut).is_err_and(|error| error.contains("cut off")));
    }

    #[test]
    fn error_ends_the_data() {
        let mut gunzip = Gunzip::new(&b"\x1f\x8b\x08\0"[..]);
        let mut buffer = [0; 8];
        assert!(gunzip.read(&mut buffer).is_err());
        assert_eq!(gunzip.read(&mut buffer).expect("the end"), 0);
    }

    #[test]
    fn excessive_expansion_is_refused() {
        let zeros = compressed(&vec![0; 80 << 20]);
        assert!(decompressed(&zeros).is_err_and(|error| error.contains("more than 200 times")));
        assert_eq!(decompressed(&compressed(&vec![0; 1 << 20])).map(|bytes| bytes.len()), Ok(1 << 20));
    }
}
