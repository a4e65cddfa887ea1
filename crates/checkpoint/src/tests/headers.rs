//! Headers that describe no model, empty tensors, and tensors that are left out.

use std::fs;
use std::ops::Range;

use super::*;
use crate::{screen, write_outline};

/// Header of a file with tensors of bytes, of these lengths.
fn header_of(lengths: &[u64]) -> Vec<u8> {
    let (mut start, mut header) = (0_u64, serde_json::Map::new());
    for (index, length) in lengths.iter().enumerate() {
        let tensor = json!({"dtype": "U8", "shape": [length], "data_offsets": [start, start + length]});
        header.insert(format!("t{index}"), tensor);
        start += length;
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
}

#[test]
fn headers_of_impossible_sizes_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &llama_config());
    for (lengths, needle) in
        [(vec![(1_u64 << 61) - 1; 8], "more bytes than a file can have"), (vec![1_u64 << 47; 3], "numbers")]
    {
        let file = header_of(&lengths);
        let error = screen(folder.path(), &mut |wanted| {
            let part = |range: &Range<u64>| file[range.start as usize..file.len().min(range.end as usize)].to_vec();
            Ok(wanted.iter().map(|(_, range)| part(range)).collect())
        });
        let error = error.expect_err("no file has so many bytes");
        let text = match &error {
            OpenError::Header { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        assert!(text.contains(needle), "{text}");
        fs::write(folder.path().join("model.safetensors"), &file).expect("writes");
        assert!(Checkpoint::open(folder.path()).is_err());
        fs::remove_file(folder.path().join("model.safetensors")).expect("removed");
    }
}

#[test]
fn rows_of_an_output_layer_with_a_bias_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &llama_config());
    let tensors = [("lm_head.weight", vec![5, 8], numbers(40)), ("lm_head.bias", vec![5], numbers(5))];
    write_shard(&folder.path().join("model.safetensors"), &tensors);
    let error = Checkpoint::open(folder.path()).expect("opens").output_rows(&[0]).expect_err("a bias").to_string();
    assert!(error.contains("`lm_head.bias`") && error.contains("use a classification head"), "{error}");
}

#[test]
fn empty_tensors_are_read_without_a_request() {
    let whole = tempfile::tempdir().expect("a folder");
    write_config(whole.path(), &llama_config());
    let tensors = [("model.norm.weight", vec![8], numbers(8)), ("model.unused.weight", vec![0], Vec::new())];
    write_shard(&whole.path().join("model.safetensors"), &tensors);
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &llama_config());
    let file = fs::read(whole.path().join("model.safetensors")).expect("reads");
    write_outline(folder.path(), &mut |wanted| {
        let part = |(_, range): &(String, Range<u64>)| {
            assert!(!range.is_empty(), "{range:?}");
            file[range.start as usize..file.len().min(range.end as usize)].to_vec()
        };
        Ok(wanted.iter().map(part).collect())
    })
    .expect("an outline");
    let (found, expected) = (Checkpoint::open(folder.path()), Checkpoint::open(whole.path()).expect("opens"));
    assert_eq!(found.expect("opens").digest(), expected.digest());
}
