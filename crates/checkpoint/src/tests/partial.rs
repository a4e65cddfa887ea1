//! Models in parts of a GGUF file, and models of which only some files or pieces are there.

use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;

use candle_core::Device;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{Content, Value as Meta};
use tempfile::TempDir;

use super::gguf::write;
use super::*;
use crate::layout;
use crate::outline::Outline;
use crate::{FetchRanges, Part, ReadError, missing_shards, write_outline};

fn golden(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens")).join(name)
}

/// Keys of a part, counted from 0, of a model with this number of tensors.
fn part_keys(number: u16, count: u16, n_tensors: usize) -> Vec<(&'static str, Meta)> {
    vec![
        ("split.no", Meta::U16(number)),
        ("split.count", Meta::U16(count)),
        ("split.tensors.count", Meta::I32(n_tensors as i32)),
    ]
}

/// A tiny GGUF model in three parts: ends, block 0, other blocks.
struct Parts {
    folder: TempDir,
    content: Content,
    file: File,
}

impl Parts {
    fn new(name: &str) -> Self {
        let mut file = File::open(golden(name)).expect("a golden");
        let content = Content::read(&mut file).expect("parses");
        let parts = Self { folder: tempfile::tempdir().expect("a folder"), content, file };
        let n_tensors = parts.content.tensor_infos.len();
        (0..3).for_each(|number| parts.write(number, part_keys(number, 3, n_tensors), |_| true));
        parts
    }

    fn path(&self, number: u16) -> PathBuf {
        self.folder.path().join(format!("tiny-{:05}-of-00003.gguf", number + 1))
    }

    /// Writes a part with these keys and those of its tensors that `has` chooses.
    fn write(&self, number: u16, keys: Vec<(&'static str, Meta)>, has: impl Fn(&str) -> bool) {
        let part = |name: &str| match name.strip_prefix("blk.") {
            None => 0,
            Some(block) => 2 - u16::from(block.starts_with("0.")),
        };
        let mut names: Vec<&String> = self.content.tensor_infos.keys().collect();
        names.retain(|name| part(name) == number && has(name));
        names.sort();
        let read = |name: &&String| self.content.tensor(&mut &self.file, name, &Device::Cpu).expect("reads");
        let tensors: Vec<(&str, QTensor)> = names.iter().map(|name| (name.as_str(), read(name))).collect();
        let model = self.content.metadata.iter().map(|(key, value)| (key.as_str(), value.clone()));
        let mut metadata: Vec<(&str, Meta)> = if number == 0 { model.collect() } else { Vec::new() };
        metadata.extend(keys);
        write(&self.path(number), &metadata, &tensors);
    }
}

/// Reads ranges of the files in a folder.
pub(super) fn ranges_of(folder: &Path) -> Box<FetchRanges<'static>> {
    let folder = folder.to_owned();
    Box::new(move |wanted: &[(String, Range<u64>)]| {
        let part = |(file, range): &(String, Range<u64>)| {
            let bytes = fs::read(folder.join(file))?;
            let end = bytes.len().min(range.end as usize);
            Ok(bytes[range.start as usize..end].to_vec())
        };
        wanted.iter().map(part).collect()
    })
}

fn assert_same_tensors(found: &Checkpoint, expected: &Checkpoint) {
    assert!(found.names().eq(expected.names()));
    for name in expected.names() {
        assert_eq!(found.tensor(name).expect("reads"), expected.tensor(name).expect("reads"), "{name}");
    }
}

fn blocks(text: &str) -> Part {
    Part::Blocks(text.parse().expect("a span"))
}

#[test]
fn parts_equal_the_joined_file() {
    for name in ["tiny-llama-gqa.gguf", "tiny-mistral.gguf", "tiny-phi3-longrope.gguf"] {
        let (parts, joined) = (Parts::new(name), Checkpoint::open(golden(name)).expect("opens"));
        let paths = [parts.path(0), parts.path(1), parts.path(2), parts.folder.path().to_owned()];
        for path in paths {
            let checkpoint = Checkpoint::open(&path).expect("opens");
            assert_eq!(checkpoint.digest(), joined.digest(), "{}", path.display());
            assert_eq!(
                (checkpoint.config(), checkpoint.describe().dtypes),
                (joined.config(), joined.describe().dtypes)
            );
            assert_same_tensors(&checkpoint, &joined);
            assert_eq!(checkpoint.missing_files(Part::All), Vec::<String>::new());
        }
        assert_eq!(missing_shards(parts.path(2)).expect("three parts"), Vec::<String>::new());
    }
}

#[test]
fn folder_with_two_models_in_parts_is_refused() {
    let parts = Parts::new("tiny-llama-gqa.gguf");
    fs::copy(parts.path(0), parts.folder.path().join("other-00001-of-00002.gguf")).expect("copied");
    let (_, text) = open_error(parts.folder.path());
    assert!(text.contains("4 .gguf files") && text.contains("the first one"), "{text}");
}

#[test]
fn missing_part_is_named() {
    let parts = Parts::new("tiny-llama-gqa.gguf");
    for number in [1, 0] {
        fs::remove_file(parts.path(number)).expect("removed");
        for path in [parts.path(0), parts.path(2), parts.folder.path().to_owned()] {
            let (error, text) = open_error(&path);
            let OpenError::NoOutline { path: missing, .. } = &error else { panic!("{text}") };
            assert!(*missing == parts.path(number) && text.contains("missing"), "{text}");
        }
    }
}

#[test]
fn parts_of_other_models_are_refused() {
    let parts = Parts::new("tiny-llama-gqa.gguf");
    let n_tensors = parts.content.tensor_infos.len();
    let check = |keys: Vec<(&'static str, Meta)>, needle: &str| {
        parts.write(2, keys, |_| true);
        let (_, text) = open_error(&parts.path(0));
        assert!(text.contains("tiny-00003-of-00003.gguf") && text.contains(needle), "{text}");
    };
    check(part_keys(1, 3, n_tensors), "`split.no` is 1, expected 2");
    check(part_keys(2, 4, n_tensors), "`split.count` is 4, expected 3");
    check(part_keys(2, 3, 7), "`split.tensors.count` is 7");
    check(Vec::new(), "`split.count` is absent");
    // A tensor is missing, or in two parts.
    parts.write(2, part_keys(2, 3, n_tensors), |name| !name.starts_with("blk.1.ffn_down."));
    let (_, text) = open_error(&parts.path(0));
    assert!(text.contains(&format!("`split.tensors.count` is {n_tensors}, expected {}", n_tensors - 1)), "{text}");
    fs::copy(parts.path(1), parts.path(2)).expect("copied");
    let (_, text) = open_error(&parts.path(0));
    assert!(text.contains("`split.no` is 1"), "{text}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test needs no sync")]
fn renamed_parts_are_refused() {
    let parts = Parts::new("tiny-llama-gqa.gguf");
    let renamed = parts.folder.path().join("model.gguf");
    fs::rename(parts.path(0), &renamed).expect("renamed");
    let (_, text) = open_error(&renamed);
    assert!(text.contains("`split.count` is 3") && text.contains("NAME-00001-of-00003.gguf"), "{text}");
}

#[test]
fn outline_replaces_missing_parts() {
    for name in ["tiny-llama-gqa.gguf", "tiny-phi3-longrope.gguf"] {
        let (parts, joined) = (Parts::new(name), Checkpoint::open(golden(name)).expect("opens"));
        let whole = parts.folder.path();
        let file_names = [0, 1, 2].map(|number| layout::file_name(&parts.path(number)));
        let folder = tempfile::tempdir().expect("a folder");
        let first = folder.path().join(&file_names[0]);
        assert_eq!(missing_shards(&first).expect("by their names"), file_names);
        let outline = write_outline(&first, &mut *ranges_of(whole)).expect("fetched").expect("an outline");
        let partial = Checkpoint::open(&first).expect("opens without a part");
        assert_eq!((partial.digest(), partial.config()), (joined.digest(), joined.config()));
        assert_eq!(partial.missing_files(Part::Ends), file_names[..1]);
        assert_eq!(partial.missing_files(blocks("0:1")), file_names[1..2]);
        assert_eq!(partial.missing_files(Part::All), file_names);
        assert_eq!(partial.missing_ranges(Part::All), None, "parts are fetched whole");
        let vocabulary =
            |checkpoint: &Checkpoint| checkpoint.tokenizer().map(|tokenizer| tokenizer.digest().to_owned());
        assert_eq!(vocabulary(&partial).ok(), vocabulary(&joined).ok());
        let tensor = joined.names().find(|name| name.contains(".0.")).expect("a tensor of block 0");
        assert!(matches!(partial.tensor(tensor), Err(ReadError::MissingShard { .. })));

        // A part that arrives is found, also from a folder without the first part.
        fs::copy(parts.path(1), folder.path().join(&file_names[1])).expect("copied");
        assert_eq!(partial.tensor(tensor).expect("it came"), joined.tensor(tensor).expect("reads"));
        let again = Checkpoint::open(folder.path()).expect("opens");
        assert_eq!((again.digest(), again.missing_files(blocks("0:1"))), (joined.digest(), Vec::new()));

        // The outline of the complete model is the same.
        let written = fs::read(&outline).expect("reads");
        let complete = write_outline(whole, &mut |_| panic!("all is here")).expect("written").expect("an outline");
        let known = |path: &Path, file: &str| Outline::read(path).known(Path::new(file));
        for file in &file_names {
            let (fetched, local) = (known(&outline, file), known(&complete, file));
            assert!(local.iter().all(|(offset, bytes)| fetched.get(offset) == Some(bytes)), "{file}");
        }
        assert_eq!(write_outline(&first, &mut |_| panic!("it is described")).expect("kept"), Some(outline.clone()));
        assert_eq!(fs::read(&outline).expect("reads"), written);
    }
}

#[test]
fn outline_of_other_files_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny-00001-of-00002.gguf");
    let fail = |bytes: &[u8], needle: &str| {
        let error = write_outline(&path, &mut |wanted| Ok(vec![bytes.to_vec(); wanted.len()])).expect_err("refused");
        let OpenError::Fetch { source, .. } = &error else { panic!("{error}") };
        assert!(source.to_string().contains(needle), "{source}");
    };
    fail(b"no model", "no GGUF file");
    fail(&[b"GGUF".as_slice(), &9_u32.to_le_bytes()].concat(), "no GGUF file of a known version");
    fail(&[b"GGUF".as_slice(), &3_u32.to_be_bytes()].concat(), "big-endian");
    fail(&[b"GGUF".as_slice(), &3_u32.to_le_bytes()].concat(), "cannot be parsed");
    let alignment =
        [17_u64.to_le_bytes().as_slice(), b"general.alignment".as_slice(), &4_u32.to_le_bytes(), &[0; 4]].concat();
    let start = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &[0; 8], &1_u64.to_le_bytes()].concat();
    fail(&[start, alignment].concat(), "`general.alignment` is 0");
    // Factors of positions are at most 64 KiB.
    let shape = [1_u64, 1 << 30].map(u64::to_le_bytes).concat();
    let name = [17_u64.to_le_bytes().as_slice(), b"rope_freqs.weight".as_slice(), &2_u32.to_le_bytes()].concat();
    let start = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &1_u64.to_le_bytes(), &[0; 8]].concat();
    let file = [start, name, shape, vec![0; 12], vec![0; 64]].concat();
    fail(&file, "`rope_freqs.weight` in tiny-00001-of-00002.gguf has 4294967296 bytes");
}

/// Writes these ranges of a file as its pieces.
pub(super) fn write_pieces(path: &Path, complete: &Path, ranges: &[Range<u64>]) {
    let folder = PathBuf::from(format!("{}.pieces", path.display()));
    fs::create_dir_all(&folder).expect("a folder");
    let bytes = fs::read(complete).expect("reads");
    for range in ranges {
        let piece = &bytes[range.start as usize..range.end as usize];
        fs::write(folder.join(format!("{:015}-0123", range.start)), piece).expect("written");
    }
}

/// Checks the model at `model`, whose only file `file` is missing at first, then there in pieces, then complete.
fn check_pieces(model: &Path, file: &Path, complete: &Path, expected: &Checkpoint) {
    assert_eq!(missing_shards(model).expect("one file"), [layout::file_name(file)]);
    let fetched_from = complete.parent().expect("a folder");
    write_outline(model, &mut *ranges_of(fetched_from)).expect("fetched").expect("an outline");
    let partial = Checkpoint::open(model).expect("opens");
    assert_eq!((partial.digest(), partial.config()), (expected.digest(), expected.config()));
    let (name, ranges) = partial.missing_ranges(blocks("1:2")).expect("its file is not there");
    assert_eq!(name, layout::file_name(file));
    assert!(
        ranges.iter().all(|range| range.start < range.end) && ranges.windows(2).all(|two| two[0].end < two[1].start)
    );
    let is_here = |checkpoint: &Checkpoint, name: &str| match checkpoint.tensor(name) {
        Ok(tensor) => tensor == expected.tensor(name).expect("reads"),
        Err(ReadError::MissingShard { .. }) => false,
        Err(error) => panic!("{error}"),
    };
    let large = |name: &&str| expected.tensor(name).expect("reads").data().len() > 4096;
    let check = |checkpoint: &Checkpoint, is_wanted: &dyn Fn(&str) -> bool| {
        for name in expected.names().filter(large) {
            assert_eq!(is_here(checkpoint, name), is_wanted(name), "{name}");
        }
    };
    check(&partial, &|_| false);
    write_pieces(file, complete, &ranges);
    let reopened = Checkpoint::open(model).expect("opens");
    for checkpoint in [&partial, &reopened] {
        check(checkpoint, &|name| name.contains(".1."));
        assert_eq!(checkpoint.digest(), expected.digest());
        assert_eq!(checkpoint.missing_files(blocks("1:2")), [layout::file_name(file)], "it is not complete");
    }
    fs::copy(complete, file).expect("copied");
    assert_same_tensors(&partial, expected);
    assert_eq!(partial.missing_ranges(Part::All), None);
}

#[test]
fn pieces_of_one_file_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let (complete, file) = (golden("tiny-llama-gqa.gguf"), folder.path().join("tiny-llama-gqa.gguf"));
    check_pieces(&file, &file, &complete, &Checkpoint::open(&complete).expect("opens"));

    let folder = tempfile::tempdir().expect("a folder");
    let complete = golden("tiny-llama-gqa");
    fs::copy(complete.join("config.json"), folder.path().join("config.json")).expect("copied");
    let file = folder.path().join("model.safetensors");
    check_pieces(
        folder.path(),
        &file,
        &complete.join("model.safetensors"),
        &Checkpoint::open(&complete).expect("opens"),
    );
}

#[test]
fn model_in_pieces_beside_a_gguf_file_is_the_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let complete = golden("tiny-llama-gqa");
    fs::copy(complete.join("config.json"), folder.path().join("config.json")).expect("copied");
    write_outline(folder.path(), &mut *ranges_of(&complete)).expect("fetched").expect("an outline");
    fs::copy(golden("tiny-mistral.gguf"), folder.path().join("tiny-mistral.gguf")).expect("copied");
    write_pieces(&folder.path().join("model.safetensors"), &complete.join("model.safetensors"), &[]);
    let found = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(found.digest(), Checkpoint::open(&complete).expect("opens").digest());
}

#[test]
fn tensor_of_which_bytes_are_missing_is_not_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let complete = golden("tiny-llama-gqa");
    fs::copy(complete.join("config.json"), folder.path().join("config.json")).expect("copied");
    write_outline(folder.path(), &mut *ranges_of(&complete)).expect("fetched").expect("an outline");
    let partial = Checkpoint::open(folder.path()).expect("opens");
    let (name, stored) = partial.store.tensors.iter().max_by_key(|(_, stored)| stored.len).expect("a tensor");
    let (start, end) = (stored.offset, stored.offset + stored.len);
    let write = |range: Range<u64>| {
        let file = "model.safetensors";
        write_pieces(&folder.path().join(file), &complete.join(file), &[range]);
    };
    write(start..end - 1);
    assert!(matches!(partial.tensor(name), Err(ReadError::MissingShard { .. })));
    assert!(partial.store.files[0].has(start, stored.len - 1) && !partial.store.files[0].has(start, stored.len));
    write(end - 1..end);
    let expected = Checkpoint::open(&complete).expect("opens").tensor(name).expect("reads");
    assert_eq!(partial.tensor(name).expect("reads"), expected);
}

#[test]
fn complete_file_needs_no_outline() {
    let written =
        write_outline(golden("tiny-llama-gqa.gguf"), &mut |_| panic!("all is here")).expect("nothing to write");
    assert_eq!(written, None);
    let written = write_outline(golden("tiny-llama-gqa"), &mut |_| panic!("all is here")).expect("nothing to write");
    assert_eq!(written, None);
    let (error, text) = open_error(&golden("nowhere.gguf"));
    assert!(matches!(error, OpenError::Io { .. }) && text.contains("nowhere.gguf"), "{text}");
}
