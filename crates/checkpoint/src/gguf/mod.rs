//! GGUF files: metadata, location of the tensors, and vocabulary.

mod config;
mod heads;
mod names;
mod number_type;
mod parse;
mod parts;
mod value;
mod vocab;

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::Path;

use sepal_core::ModelConfig;
use sepal_tokenize::GgufVocab;
use serde_json::Map;

use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::keys::Keys;
use crate::layout::file_name;
use crate::model_path::ModelPath;
use crate::outline::Outline;
use crate::rows::Rows;
use crate::store::{Encoding, Store, Stored};

use self::parse::{Content, TensorInfo, parse};
use self::value::Value;
pub(crate) use heads::insert_heads;
pub(crate) use number_type::NumberType;
pub(crate) use parts::PartName;

/// Reads the metadata and checks that every tensor lies within its file. `path` is the first file of a model in parts;
/// `outline` describes missing files.
pub(crate) fn open(path: &Path, outline: &Outline) -> Result<(ModelConfig, Store), OpenError> {
    let first = GgufFile::open(path, outline)?;
    let metadata = first.scalars();
    let keys = Keys::new(path, &metadata);
    let mut store = parts::join(first, keys, outline)?;
    store.check_size(path)?;
    let model = config::read_model(keys, &store)?;
    store.tensors = names::to_hf(path, &model, store.tensors)?;
    Ok((model.config, store))
}

/// The vocabulary inside the file.
pub(crate) fn vocab(file: &WeightsFile) -> Result<GgufVocab, OpenError> {
    vocab::vocab(file.path(), &content(file)?.metadata)
}

/// A file with its metadata.
struct GgufFile {
    file: WeightsFile,
    metadata: HashMap<String, Value>,
    /// Location of the tensors, by the names of the file.
    tensors: BTreeMap<String, Stored>,
    /// Offset of the first tensor's bytes, or the length of a file without tensors.
    data_offset: u64,
}

impl GgufFile {
    /// Opens a file, or its description in `outline` if it is missing.
    fn open(path: &Path, outline: &Outline) -> Result<Self, OpenError> {
        if path.is_file() {
            return Self::present(path);
        }
        match outline.gguf_head(path) {
            Some(head) => Self::outlined(path, head, outline.known(path)),
            None if PartName::parse(path).is_some() => {
                let outline = file_name(&ModelPath::Gguf(PartName::first(path)).outline());
                Err(OpenError::NoOutline { path: path.to_owned(), outline })
            }
            // Reports that it is missing.
            None => Self::present(path),
        }
    }

    fn present(path: &Path) -> Result<Self, OpenError> {
        let file = WeightsFile::open(path)?;
        let mut start = [0; 8];
        if file.len() >= 8 && file.read_at(0, &mut start).is_ok() && is_big_endian(&start) {
            return Err(OpenError::BigEndian { path: path.to_owned() });
        }
        let content = content(&file)?;
        let tensors = tensors(&file, &content)?;
        let expected = end(&tensors);
        if expected > file.len() {
            return Err(OpenError::Length { path: path.to_owned(), expected, found: file.len() });
        }
        Ok(Self { data_offset: content.data_offset.min(file.len()), metadata: content.metadata, file, tensors })
    }

    /// A missing file with these bytes before the tensors.
    fn outlined(path: &Path, head: Vec<u8>, known: BTreeMap<u64, Vec<u8>>) -> Result<Self, OpenError> {
        let unknown = WeightsFile::absent(path, Vec::new(), 0, BTreeMap::new());
        let content = parse(&mut Cursor::new(&head)).map_err(|source| unknown.header(source))?;
        let tensors = tensors(&unknown, &content)?;
        let len = end(&tensors).max(head.len() as u64);
        let file = WeightsFile::absent(path, head, len, known);
        Ok(Self { data_offset: content.data_offset, metadata: content.metadata, file, tensors })
    }

    /// The metadata without the vocabulary, as a configuration.
    fn scalars(&self) -> Map<String, serde_json::Value> {
        self.metadata.iter().filter_map(|(key, value)| Some((key.clone(), value.to_json()?))).collect()
    }

    /// The bytes before the tensors.
    fn head(&self) -> Result<Vec<u8>, OpenError> {
        let mut head = vec![0; self.data_offset as usize];
        self.file.read_at(0, &mut head).map_err(|source| self.file.io(source))?;
        Ok(head)
    }
}

/// True if the version after the magic number, or both, are big-endian. Versions are small numbers.
fn is_big_endian(start: &[u8]) -> bool {
    match start {
        [b'F', b'U', b'G', b'G', ..] => true,
        [b'G', b'G', b'U', b'F', 0, 0, _, last, ..] => *last != 0,
        _ => false,
    }
}

fn content(file: &WeightsFile) -> Result<Content, OpenError> {
    parse(&mut file.reader()).map_err(|source| file.header(source))
}

/// Location of the tensors, by the names of the file.
fn tensors(file: &WeightsFile, content: &Content) -> Result<BTreeMap<String, Stored>, OpenError> {
    let mut tensors = BTreeMap::new();
    for (name, info) in &content.tensors {
        let stored = locate(content.data_offset, info)
            .ok_or_else(|| file.header(format!("the size of tensor `{name}` is invalid")))?;
        tensors.insert(name.clone(), stored);
    }
    match overlapping(&tensors) {
        None => Ok(tensors),
        Some((first, second)) => {
            Err(file.header(format!("its tensors `{first}` and `{second}` are at the same bytes")))
        }
    }
}

/// Names of two tensors that have a byte in common, which no program writes.
fn overlapping(tensors: &BTreeMap<String, Stored>) -> Option<(&str, &str)> {
    let mut by_offset: Vec<(&String, &Stored)> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, stored)| stored.offset);
    let pairs = by_offset.windows(2).map(|pair| (pair[0], pair[1]));
    let mut shared = pairs.filter(|((_, first), (_, second))| first.offset + first.len > second.offset);
    shared.next().map(|((first, _), (second, _))| (first.as_str(), second.as_str()))
}

/// Offset of the byte after the last tensor.
fn end(tensors: &BTreeMap<String, Stored>) -> u64 {
    tensors.values().map(|stored| stored.offset + stored.len).max().unwrap_or(0)
}

/// Location of a tensor; `None` if its size is invalid. No tensor is empty.
fn locate(data: u64, info: &TensorInfo) -> Option<Stored> {
    let shape = info.shape.clone();
    if shape.contains(&0) {
        return None;
    }
    let count = shape.iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim))?;
    let (block_len, block_bytes) = (info.number_type.block_len(), info.number_type.block_bytes());
    // A tensor without dimensions is one number, which is no whole block.
    let whole_rows = shape.last().copied().unwrap_or(1).is_multiple_of(block_len);
    let len = u64::try_from((count / block_len).checked_mul(block_bytes)?).ok()?;
    let offset = data.checked_add(info.offset)?;
    offset.checked_add(len)?;
    let encoding = Encoding::Gguf(info.number_type);
    whole_rows.then_some(Stored { file: 0, encoding, shape, offset, len, rows: Rows::Same })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_at_the_same_bytes_are_found() {
        let tensors = |offsets: [u64; 3]| {
            let stored = |(name, offset): (&str, u64)| {
                let info = TensorInfo { number_type: NumberType::named("F32"), shape: vec![8], offset };
                Some((name.to_owned(), locate(64, &info)?))
            };
            ["a", "b", "c"].into_iter().zip(offsets).filter_map(stored).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(overlapping(&tensors([64, 0, 32])), None);
        assert_eq!(overlapping(&tensors([64, 0, 31])), Some(("b", "c")));
        assert_eq!(overlapping(&tensors([0, 64, 0])), Some(("a", "c")));
    }

    #[test]
    fn only_tensors_of_whole_blocks_are_located() {
        let length = |number_type, shape: &[usize]| {
            let info = TensorInfo { number_type, shape: shape.to_vec(), offset: 32 };
            locate(64, &info).map(|stored| (stored.offset, stored.len))
        };
        assert_eq!(length(NumberType::named("F32"), &[]), Some((96, 4)));
        assert_eq!(length(NumberType::named("Q4_0"), &[3, 64]), Some((96, 3 * 2 * 18)));
        let invalid: [&[usize]; 5] = [&[], &[0], &[3, 33], &[usize::MAX, 64], &[1 << 40, 0, 32]];
        for shape in invalid {
            assert_eq!(length(NumberType::named("Q4_0"), shape), None, "{shape:?}");
        }
    }
}
