//! Check of a precompiled map of characters (SentencePiece): the number of bytes of a trie, the trie, and replacements that
//! zeros end. The library allocates by that number.

/// Longest replacement in bytes, far above those of any map.
const MAX_REPLACEMENT: usize = 1024;

/// Returns the bytes of the longest replacement of a map in base64.
///
/// # Errors
/// The problem.
pub(crate) fn check(text: &str) -> Result<u64, String> {
    let bytes = decode(text).ok_or("its precompiled map of characters is not in base64")?;
    let (trie_len, bytes) = bytes.split_first_chunk::<4>().ok_or("its precompiled map of characters is empty")?;
    let trie_len = u32::from_le_bytes(*trie_len) as usize;
    let replacements = bytes.get(trie_len..).filter(|_| trie_len >= 4).ok_or_else(|| {
        format!("its precompiled map of characters has a trie of {trie_len} bytes in {}", bytes.len())
    })?;
    let longest = replacements.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    if longest > MAX_REPLACEMENT {
        return Err(format!("its precompiled map of characters has a replacement of {longest} bytes"));
    }
    Ok(longest as u64)
}

/// Decodes base64 with its padding; `None` for other characters.
fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut buffer, mut bits) = (0_u32, 0);
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        buffer = buffer << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits & 0xff) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(decode("/+8"), Some(vec![0xff, 0xef]));
        assert_eq!(decode("a b"), None);
    }

    #[test]
    fn maps_larger_than_their_bytes_are_refused() {
        // A trie of one unit and the replacements `ab` and `c`.
        assert_eq!(check("BAAAAAAAAABhYgBjAA=="), Ok(2));
        assert!(check("AAAA").is_err());
        assert!(check("/////wAAAAA=").expect_err("refused").contains("a trie of 4294967295 bytes in 4"));
        assert!(check("AAAAAA==").expect_err("refused").contains("a trie of 0 bytes"));
        assert!(check("!").expect_err("refused").contains("base64"));
    }
}
