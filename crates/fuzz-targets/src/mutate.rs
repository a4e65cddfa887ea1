//! Mutations of inputs, by a generator of its own so that a run can be repeated.

/// Numbers at which parsers go wrong.
const NUMBERS: [u64; 14] = [
    0,
    1,
    3,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];
/// The same in texts.
const DIGITS: [&str; 10] =
    ["0", "-1", "255", "65536", "2147483648", "4294967295", "9007199254740993", "18446744073709551615", "1e999", "0.5"];
/// Longest input.
const MAX_LEN: usize = 1 << 16;
/// Most mutations of one input.
const MAX_MUTATIONS: usize = 6;

/// Source of mutated inputs. Equal seeds give equal inputs.
#[derive(Debug, Clone)]
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Returns a number below `end`, which is at least 1 (SplitMix64).
    pub fn below(&mut self, end: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((word ^ (word >> 31)) % end.max(1) as u64).unwrap_or(0)
    }

    /// Returns a mutation of `input`. `other` is another input of the target, and `dictionary` has words of its language.
    pub fn mutate(&mut self, input: &[u8], other: &[u8], dictionary: &[&str]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(MAX_MUTATIONS) {
            self.mutate_once(&mut bytes, other, dictionary);
            bytes.truncate(MAX_LEN);
        }
        bytes
    }

    fn mutate_once(&mut self, bytes: &mut Vec<u8>, other: &[u8], dictionary: &[&str]) {
        let start = self.below(bytes.len() + 1);
        let length = self.below(bytes.len() - start + 1).min(1 << self.below(12));
        match self.below(10) {
            0 => self.change(bytes, |byte, bit| byte ^ (1 << (bit % 8))),
            1 => self.change(bytes, |_, byte| byte),
            2 => self.overwrite_number(bytes, start),
            3 => drop(bytes.drain(start..start + length)),
            4 => {
                let copy = bytes[start..start + length].to_vec();
                insert(bytes, start, &copy);
            }
            5 => bytes.truncate(start),
            6 => {
                let from = self.below(other.len() + 1);
                bytes.truncate(start);
                bytes.extend(&other[from..]);
            }
            7 | 8 => self.replace_digits(bytes, start),
            _ => {
                let word = dictionary.get(self.below(dictionary.len())).copied().unwrap_or_default();
                insert(bytes, start, word.as_bytes());
            }
        }
    }

    /// Replaces one byte by a function of it and a random one.
    fn change(&mut self, bytes: &mut [u8], change: impl Fn(u8, u8) -> u8) {
        let (index, random) = (self.below(bytes.len()), self.below(256));
        if let Some(byte) = bytes.get_mut(index) {
            *byte = change(*byte, u8::try_from(random).unwrap_or(0));
        }
    }

    /// Writes a number of 1, 2, 4 or 8 bytes over those at `start`.
    fn overwrite_number(&mut self, bytes: &mut [u8], start: usize) {
        let number = NUMBERS[self.below(NUMBERS.len())].to_le_bytes();
        let width = 1 << self.below(4);
        for (byte, new) in bytes[start..].iter_mut().zip(&number[..width]) {
            *byte = *new;
        }
    }

    /// Replaces the first number in a text behind `start`.
    fn replace_digits(&mut self, bytes: &mut Vec<u8>, start: usize) {
        let Some(begin) = bytes[start..].iter().position(u8::is_ascii_digit).map(|offset| start + offset) else {
            return;
        };
        let length = bytes[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = DIGITS[self.below(DIGITS.len())];
        bytes.splice(begin..begin + length, number.bytes());
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    bytes.splice(at..at, new.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_inputs() {
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..50).map(|_| mutator.mutate(b"{\"a\": 17}", b"[true]", &["null"])).collect::<Vec<_>>()
        };
        assert_eq!(inputs(3), inputs(3));
        assert_ne!(inputs(3), inputs(4));
    }

    #[test]
    fn inputs_of_any_length_are_mutated() {
        let mut mutator = Mutator::new(1);
        for length in [0, 1, 2, 9, MAX_LEN] {
            for _ in 0..300 {
                assert!(mutator.mutate(&vec![b'7'; length], &[], &[]).len() <= MAX_LEN);
            }
        }
    }

    #[test]
    fn numbers_in_texts_are_replaced() {
        let mut mutator = Mutator::new(5);
        let mut seen = Vec::new();
        for _ in 0..200 {
            let mut text = b"{\"id\": 123}".to_vec();
            mutator.replace_digits(&mut text, 0);
            let text = String::from_utf8(text).expect("UTF-8");
            assert!(text.starts_with("{\"id\": ") && text.ends_with('}') && !text.contains("123}"), "{text}");
            seen.push(text);
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), DIGITS.len());
    }
}
