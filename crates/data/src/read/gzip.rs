//! Decompression of text files.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;

/// First bytes of compressed data.
pub(super) const MAGIC: &[u8] = b"\x1f\x8b";

/// Size up to which data may expand in any proportion, in bytes.
const FREE_BYTES: u64 = 64 << 20;
/// Greatest proportion of larger data to its compressed form. Tables of real texts stay below 20; the format allows 1032.
const MAX_EXPANSION: u64 = 200;

/// Decompressed bytes of one or several members. Data that expands as tables never do is refused, so that a small file cannot
/// fill the memory.
pub(super) struct Gunzip<R> {
    decoder: MultiGzDecoder<Counted<R>>,
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
        Self { decoder: MultiGzDecoder::new(Counted { reader, n_bytes: 0 }), n_bytes: 0 }
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.decoder.read(buffer).map_err(named)?;
        self.n_bytes += n as u64;
        if self.n_bytes > FREE_BYTES.max(self.decoder.get_ref().n_bytes.saturating_mul(MAX_EXPANSION)) {
            return Err(io::Error::other(format!(
                "its gzip data expands to more than {MAX_EXPANSION} times its size, as tables of texts do not; decompress it if it \
                 is right"
            )));
        }
        Ok(n)
    }
}

/// The decoder's errors in words; those of the reader below it stay.
fn named(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("its gzip data ends early: the file is cut off"),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            io::Error::other(format!("its gzip data is damaged: {error}"))
        }
        _ => error,
    }
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
        let followed = [&bytes[..], b"and a text of some length"].concat();
        assert!(decompressed(&followed).is_err_and(|error| error.contains("damaged")));
    }

    #[test]
    fn excessive_expansion_is_refused() {
        let zeros = compressed(&vec![0; 80 << 20]);
        assert!(decompressed(&zeros).is_err_and(|error| error.contains("more than 200 times")));
        assert_eq!(decompressed(&compressed(&vec![0; 1 << 20])).map(|bytes| bytes.len()), Ok(1 << 20));
    }
}
