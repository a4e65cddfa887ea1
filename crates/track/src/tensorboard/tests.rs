use std::path::Path;

use super::*;
use crate::examples::{evaluation, manifest, run_info, step};
use crate::python::{Script, python_with};

/// Bitwise CRC-32C.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0_u32, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))))
}

fn masked(bytes: &[u8]) -> u32 {
    let crc = crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[derive(Debug, Clone, PartialEq)]
enum Field<'a> {
    Varint(u64),
    Double(f64),
    Float(f32),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(n);
    *bytes = rest;
    taken
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut bytes)),
            1 => Field::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().expect("8 bytes"))),
            2 => {
                let length = varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, length))
            }
            5 => Field::Float(f32::from_le_bytes(take(&mut bytes, 4).try_into().expect("4 bytes"))),
            other => panic!("no such wire type: {other}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn field(message: &[u8], number: u64) -> Option<Field<'_>> {
    fields(message).into_iter().find(|&(n, _)| n == number).map(|(_, field)| field)
}

fn bytes(message: &[u8], number: u64) -> &[u8] {
    match field(message, number) {
        Some(Field::Bytes(bytes)) => bytes,
        other => panic!("expected bytes in field {number}, found {other:?}"),
    }
}

/// Payloads of a file, with all checksums verified.
fn events(path: &Path) -> Vec<Vec<u8>> {
    let content = std::fs::read(path).expect("it can be read");
    let (mut rest, mut events) = (&content[..], Vec::new());
    while !rest.is_empty() {
        let length = take(&mut rest, 8);
        assert_eq!(take(&mut rest, 4), masked(length).to_le_bytes());
        let payload = take(&mut rest, u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize);
        assert_eq!(take(&mut rest, 4), masked(payload).to_le_bytes());
        events.push(payload.to_vec());
    }
    events
}

fn event_step(event: &[u8]) -> u64 {
    match field(event, 2) {
        Some(Field::Varint(step)) => step,
        None => 0,
        other => panic!("expected a number, found {other:?}"),
    }
}

fn scalars(event: &[u8]) -> Vec<(String, f32)> {
    let values = fields(bytes(event, 5)).into_iter().map(|(number, value)| match value {
        Field::Bytes(value) if number == 1 => value,
        other => panic!("expected a value, found {other:?}"),
    });
    values
        .map(|value| {
            let tag = String::from_utf8(bytes(value, 1).to_vec()).expect("a tag is text");
            match field(value, 2) {
                Some(Field::Float(number)) => (tag, number),
                other => panic!("expected a number in {tag}, found {other:?}"),
            }
        })
        .collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("listed").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// Writes three steps and an evaluation, and then resumes from step 2 to step 4.
fn interrupted_run(folder: &Path) {
    let mut run = run_info(folder.to_owned());
    let mut first = TensorBoard::new(TensorBoardConfig::default());
    first.start(&run).expect("begun");
    (1..=3).for_each(|i| first.step(&step(i)).expect("written"));
    first.evaluation(&evaluation(3)).expect("written");
    run.resumed_at = 2;
    let mut second = TensorBoard::new(TensorBoardConfig::default());
    second.start(&run).expect("begun");
    (3..=4).for_each(|i| second.step(&StepRecord { loss: 10.0 * i as f64, ..step(i) }).expect("written"));
    second.evaluation(&evaluation(4)).expect("written");
    second.finish(&manifest()).expect("written");
}

#[test]
fn event_files_have_exact_bytes() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
    let folder = tempfile::tempdir().expect("a folder");
    interrupted_run(folder.path());
    let files = files(&folder.path().join("tensorboard"));
    assert_eq!(files.len(), 2);

    let first = events(&files[0]);
    assert_eq!(bytes(&first[0], 3), b"brain.Event:2");
    assert!(matches!(field(&first[0], 1), Some(Field::Double(time)) if time > 1.6e9));
    let options = bytes(bytes(&first[1], 5), 1);
    assert_eq!(bytes(options, 1), b"options");
    let text = String::from_utf8(bytes(bytes(options, 8), 8).to_vec()).expect("text");
    assert!(text.contains("| optimizer.with.lr | 0.01 |"), "{text}");
    assert_eq!(bytes(bytes(bytes(options, 9), 1), 1), b"text");
    assert_eq!(bytes(bytes(bytes(bytes(bytes(&first[2], 5), 1), 9), 1), 1), b"hparams");
    assert_eq!(first[3..].iter().map(|event| event_step(event)).collect::<Vec<_>>(), [1, 2, 3, 3]);
    assert!(scalars(&first[4]).contains(&("train/loss".to_owned(), 0.5)));
    assert!(scalars(&first[6]).contains(&("eval/accuracy".to_owned(), 0.75)));

    let second = events(&files[1]);
    assert_eq!((event_step(&second[1]), field(bytes(&second[1], 7), 1)), (3, Some(Field::Varint(1))));
    assert_eq!(second[2..].iter().map(|event| event_step(event)).collect::<Vec<_>>(), [3, 4, 4, 3]);
}

#[test]
fn common_folder_has_subfolder_per_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut tracker = TensorBoard::new(TensorBoardConfig { folder: Some(folder.path().join("all")) });
    tracker.start(&run_info("/nowhere".into())).expect("begun");
    assert_eq!(files(&folder.path().join("all/demo-1")).len(), 1);
}

#[test]
fn tensorboard_reads_event_files() {
    let Some(python) = python_with("tensorboard") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    interrupted_run(folder.path());
    let read = Script { python: &python, code: include_str!("read.py") }.json(&[&folder.path().join("tensorboard")]);
    let points = |values: &[(u64, f64)]| serde_json::json!(values);
    assert_eq!(read["train/loss"], points(&[(1, 1.0), (2, 0.5), (3, 30.0), (4, 40.0)]));
    assert_eq!(read["eval/accuracy"], points(&[(4, 0.75)]));
    assert!(read["options"].as_str().is_some_and(|text| text.contains("| train.seed | 7 |")), "{read}");
    let hparams =
        serde_json::json!({ "name": "demo", "train.seed": 7.0, "optimizer.with.lr": 0.01, "loader.drop_last": true });
    assert_eq!(read["hparams"], hparams);
    assert_eq!(read["status"], 1);
}

#[test]
fn tensorboard_reads_odd_names() {
    let Some(python) = python_with("tensorboard") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let labels =
        ["Spam", "spam", "/r/news", "..", ".", "", "a.b", "a/b", "差评", "好评", "a\\b", "\"", "\n", "C++", "😀"];
    let metrics = labels.iter().enumerate().map(|(i, label)| (format!("f1/{label}"), i as f64)).collect();
    let mut run = run_info(folder.path().to_owned());
    run.options.push(("data.where.a|b".to_owned(), "c|d".to_owned()));
    let mut tracker = TensorBoard::new(TensorBoardConfig::default());
    tracker.start(&run).expect("begun");
    tracker.evaluation(&EvaluationRecord { metrics, ..evaluation(1) }).expect("written");
    tracker.finish(&manifest()).expect("written");
    let read = Script { python: &python, code: include_str!("read.py") }.json(&[&folder.path().join("tensorboard")]);
    for (i, label) in labels.iter().enumerate() {
        assert_eq!(read[format!("eval/f1/{label}")], serde_json::json!([(1, i as f64)]), "{label:?}");
    }
    assert!(read["options"].as_str().is_some_and(|text| text.contains("| data.where.a\\|b | c\\|d |")), "{read}");
}
