//! Integers of a few bits in 32-bit words. Groups of a row's numbers share a factor and a zero: a weight is
//! `factor * (number - zero)`.

use std::ops::Range;

use sepal_core::RowEncoding;

use super::sources::Sources;
use crate::error::ReadError;
use crate::store::Stored;

#[derive(Debug)]
pub(crate) struct Grouped {
    pub(super) shape: [usize; 2],
    /// Bits of a number and of a zero.
    pub(super) bits: usize,
    /// Numbers of a row that share a factor, an even number.
    pub(super) group: usize,
    pub(super) numbers: Words,
    pub(super) zeros: Zeros,
    pub(super) factors: Stored,
    /// Distance of the factors of neighbouring outputs and of neighbouring groups.
    pub(super) factor_strides: [usize; 2],
    /// Group of each input, int32 `[inputs]`, unless inputs are grouped in order.
    pub(super) groups: Option<Stored>,
    /// True if the configuration says that inputs are not grouped in order.
    pub(super) is_reordered: bool,
}

/// Zeros of groups.
#[derive(Debug)]
pub(super) enum Zeros {
    Constant(i16),
    /// The stored numbers, and what is added to them.
    Stored(Words, Offset),
}

/// Addition to stored zeros.
#[derive(Debug, Clone, Copy)]
pub(super) enum Offset {
    /// The same number to each zero.
    Number(i16),
    /// These words, in turns, to consecutive words. Sums of a word wrap, and those of a zero carry into the next one.
    Words([u32; 3]),
}

/// A matrix of numbers of a few bits: consecutive bits of consecutive words, beginning with the lowest. A number may end in
/// the next word.
#[derive(Debug)]
pub(super) struct Words {
    pub(super) stored: Stored,
    /// True if the numbers of neighbouring outputs lie next to each other; false if those of neighbouring inputs, or groups,
    /// do.
    pub(super) is_along_outputs: bool,
    /// Distance of consecutive words.
    pub(super) word_stride: usize,
    /// Distance of words of neighbours in the other direction.
    pub(super) other_stride: usize,
    /// Places of each eight numbers in their word.
    pub(super) order: [usize; 8],
}

/// Numbers in order.
pub(super) const IN_ORDER: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

impl Words {
    /// The number of an output and an input or group.
    fn number(&self, words: &[u32], bits: usize, output: usize, column: usize) -> u8 {
        let (packed, other) = if self.is_along_outputs { (output, column) } else { (column, output) };
        let bit = (packed / 8 * 8 + self.order[packed % 8]) * bits;
        let (first, shift) = (bit / 32 * self.word_stride + other * self.other_stride, bit % 32);
        let mut number = u32::from_le(words[first]) >> shift;
        if shift + bits > 32 {
            number |= u32::from_le(words[first + self.word_stride]) << (32 - shift);
        }
        (number & ((1_u32 << bits) - 1)) as u8
    }
}

impl Grouped {
    pub(super) fn sources(&self) -> Vec<&Stored> {
        let zeros = match &self.zeros {
            Zeros::Constant(_) => None,
            Zeros::Stored(words, _) => Some(&words.stored),
        };
        [&self.numbers.stored, &self.factors].into_iter().chain(zeros).chain(&self.groups).collect()
    }

    pub(super) fn encoding(&self) -> RowEncoding {
        let group = u32::try_from(self.group).unwrap_or(u32::MAX);
        if self.bits > 4 { RowEncoding::Uint8 { group } } else { RowEncoding::Int4 { group } }
    }

    pub(super) fn is_reordered(&self) -> bool {
        self.is_reordered && self.groups.is_some()
    }

    /// Inputs in the order of their groups; `None` if they are in this order.
    pub(super) fn column_order(&self, sources: &Sources<'_>) -> Result<Option<Vec<usize>>, ReadError> {
        let Some(stored) = &self.groups else { return Ok(None) };
        let groups: Vec<u32> = sources.words(stored)?.into_iter().map(u32::from_le).collect();
        let is_of = |(place, group): (usize, u32)| u32::try_from(place / self.group).is_ok_and(|own| own == group);
        if groups.iter().copied().enumerate().all(is_of) {
            return Ok(None);
        }
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by_key(|column| groups[*column]);
        if !order.iter().map(|column| groups[*column]).enumerate().all(is_of) {
            let problem = format!("its inputs are not divided into groups of {}", self.group);
            return Err(sources.decode(stored, problem));
        }
        Ok(Some(order))
    }

    /// Encodes rows, with inputs in the order of their groups.
    pub(super) fn encode(&self, sources: &Sources<'_>, rows: Range<usize>) -> Result<Vec<u8>, ReadError> {
        let inputs = self.shape[1];
        let order = self.column_order(sources)?;
        let words = sources.words(&self.numbers.stored)?;
        let factors = sources.floats(&self.factors)?;
        let zeros = match &self.zeros {
            Zeros::Constant(_) => Vec::new(),
            Zeros::Stored(zeros, offset) => offset.added(sources.words(&zeros.stored)?, zeros),
        };
        let row_bytes = self.encoding().row_bytes(inputs).unwrap_or(0);
        let mut data = Vec::with_capacity(rows.len() * row_bytes);
        for output in rows {
            let number = |place: usize| {
                let column = order.as_ref().map_or(place, |order| order[place]);
                self.numbers.number(&words, self.bits, output, column)
            };
            for (group, start) in (0..inputs).step_by(self.group).enumerate() {
                let factor = factors[output * self.factor_strides[0] + group * self.factor_strides[1]];
                data.extend_from_slice(&factor.to_le_bytes());
                data.extend_from_slice(&self.zero(&zeros, output, group).to_le_bytes());
                let end = inputs.min(start + self.group);
                if self.bits > 4 {
                    data.extend((start..end).map(number));
                } else {
                    let high = |place: usize| if place < end { number(place) << 4 } else { 0 };
                    data.extend((start..end).step_by(2).map(|place| number(place) | high(place + 1)));
                }
            }
        }
        Ok(data)
    }

    fn zero(&self, words: &[u32], output: usize, group: usize) -> i16 {
        match &self.zeros {
            Zeros::Constant(zero) => *zero,
            Zeros::Stored(zeros, Offset::Number(more)) => {
                i16::from(zeros.number(words, self.bits, output, group)) + more
            }
            Zeros::Stored(zeros, Offset::Words(_)) => i16::from(zeros.number(words, self.bits, output, group)),
        }
    }
}

impl Offset {
    /// Adds words, if that is the kind of the addition, to the stored words of zeros, which lie one after another.
    fn added(self, mut stored: Vec<u32>, zeros: &Words) -> Vec<u32> {
        if let Self::Words(more) = self {
            for row in stored.chunks_mut(zeros.other_stride) {
                let words = row.iter_mut().zip(more.iter().cycle());
                words.for_each(|(word, more)| *word = u32::from_le(*word).wrapping_add(*more).to_le());
            }
        }
        stored
    }
}
