use std::fs;
use std::path::{Path, PathBuf};

use sepal_assets::{AssetOptions, ignore_events};
use sepal_checkpoint::ReadError;
use sepal_core::Span;
use sepal_testkit::hub::{Fault, LoopbackHub};
use serde_json::json;
use tempfile::TempDir;

use super::*;

const WEIGHTS: &str = "model.safetensors";
const EMBEDDINGS: &str = "model.embed_tokens.weight";

/// Client with its own cache in `folder`, for which files above 1 MB are large.
fn client(hub: &LoopbackHub, folder: &Path) -> Assets {
    let mut options = AssetOptions::from_env();
    options.cache = folder.join("sepal");
    options.hub_cache = folder.join("hub");
    options.hub_endpoint = hub.endpoint().to_owned();
    options.hub_offline = false;
    options.hub_token = None;
    options.hub_complete_bytes = 1 << 20;
    Assets::new(options)
}

fn open(assets: &Assets, source: &str) -> ModelFiles {
    let source: Source = source.parse().expect("a source");
    ModelFiles::open(assets, &[source], &mut ignore_events).expect("opens")
}

fn blocks(start: usize, end: usize) -> Part {
    Part::Blocks(Span::new(start, end).expect("a span"))
}

/// Writes a Llama of 25 MB in one file: embeddings, two small blocks, the final norm, and the output layer.
fn write_large_model(folder: &Path) {
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 32, "vocab_size": 49_152, "rms_norm_eps": 1e-5,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let tensors = [
        (EMBEDDINGS, [49_152, 64]),
        ("model.layers.0.mlp.up_proj.weight", [32, 64]),
        ("model.layers.1.mlp.up_proj.weight", [32, 64]),
        ("model.norm.weight", [8, 8]),
        ("lm_head.weight", [49_152, 64]),
    ];
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let begin = end;
        end += shape[0] * shape[1] * 4;
        header.insert(name.to_owned(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] }));
    }
    let header = serde_json::to_vec(&header).expect("JSON");
    let data = (0..end).map(|position| (position % 251) as u8);
    let bytes = (header.len() as u64).to_le_bytes().into_iter().chain(header).chain(data);
    fs::write(folder.join(WEIGHTS), bytes.collect::<Vec<u8>>()).expect("written");
}

/// Hub with the large model, its complete folder, and a folder for caches.
fn large_model() -> (LoopbackHub, TempDir, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    write_large_model(folder.path());
    (LoopbackHub::from_folder(folder.path()), folder, tempfile::tempdir().expect("a folder"))
}

fn pieces(files: &ModelFiles) -> Vec<PathBuf> {
    let folder = files.asset.folder().join(format!("{WEIGHTS}.pieces"));
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.extension().is_none()).collect()
}

#[test]
fn large_file_is_fetched_in_parts() {
    let (hub, complete, caches) = large_model();
    let expected = Checkpoint::open(complete.path()).expect("opens");
    let is_equal = |files: &ModelFiles, name: &str| {
        files.checkpoint.tensor(name).is_ok_and(|tensor| tensor == expected.tensor(name).expect("reads"))
    };

    let assets = client(&hub, &caches.path().join("server"));
    let server = open(&assets, "hub:a/b");
    assert_eq!(server.checkpoint.digest(), expected.digest());
    let read: usize = hub.requests().iter().filter(|request| request.file == WEIGHTS).map(|request| request.sent).sum();
    assert!(read < 200_000, "headers and samples: {read} bytes");
    assert!(pieces(&server).is_empty());
    server.fetch(&assets, blocks(1, 2), &mut ignore_events).expect("fetched");
    assert_eq!(pieces(&server).len(), 1, "both blocks are in one piece");
    assert!(is_equal(&server, "model.layers.1.mlp.up_proj.weight") && !is_equal(&server, "lm_head.weight"));
    let error = server.checkpoint.tensor(EMBEDDINGS).expect_err("not fetched");
    assert!(matches!(error, ReadError::MissingShard { .. }), "{error}");

    // A client reads single rows of the embeddings.
    let assets = client(&hub, &caches.path().join("client"));
    let client = open(&assets, "hub:a/b");
    client.fetch(&assets, Part::Ends, &mut ignore_events).expect("fetched");
    assert_eq!(pieces(&client).len(), 2);
    let rows = |checkpoint: &Checkpoint| checkpoint.rows(EMBEDDINGS, &[49_151, 7]).expect("reads").data().clone();
    assert_eq!(rows(&client.checkpoint), rows(&expected));
    assert_eq!(client.checkpoint.digest(), expected.digest());

    // Everything else is in the remaining bytes, so that the file is fetched complete.
    client.fetch(&assets, Part::All, &mut ignore_events).expect("fetched");
    assert_eq!(
        fs::read(client.asset.path.join(WEIGHTS)).expect("reads"),
        fs::read(complete.path().join(WEIGHTS)).expect("reads")
    );
    assert!(pieces(&client).is_empty() && is_equal(&client, "lm_head.weight"));
    hub.requests();
    let again = open(&assets, "hub:a/b");
    again.fetch(&assets, blocks(0, 2), &mut ignore_events).expect("nothing to fetch");
    assert_eq!((again.checkpoint.digest(), hub.requests()), (expected.digest(), Vec::new()));
}

#[test]
fn large_file_of_a_hub_without_ranges_is_fetched_complete() {
    let (hub, complete, caches) = large_model();
    hub.fail_parts(WEIGHTS, [Fault::Whole; 40]);
    let files = open(&client(&hub, caches.path()), "hub:a/b");
    let size = |folder: &Path| fs::metadata(folder.join(WEIGHTS)).expect("a file").len();
    assert_eq!(size(&files.asset.path), size(complete.path()));
    assert_eq!(files.checkpoint.digest(), Checkpoint::open(complete.path()).expect("opens").digest());
}

/// Value of a GGUF key.
enum Meta {
    Text(&'static str),
    Count(u32),
    Number(f32),
}

/// A GGUF file of fp32 matrices `[rows, 8]`.
fn gguf(metadata: &[(&str, Meta)], tensors: &[(&str, u64)]) -> Vec<u8> {
    let text = |text: &str| [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat();
    let mut file = [b"GGUF".as_slice(), &3_u32.to_le_bytes()].concat();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        file.extend(text(key));
        let (kind, bytes) = match value {
            Meta::Text(value) => (8_u32, text(value)),
            Meta::Count(count) => (4, count.to_le_bytes().to_vec()),
            Meta::Number(number) => (6, number.to_le_bytes().to_vec()),
        };
        file.extend(kind.to_le_bytes());
        file.extend(bytes);
    }
    let mut offset = 0_u64;
    for (name, rows) in tensors {
        file.extend(text(name));
        file.extend(2_u32.to_le_bytes());
        file.extend([8, *rows].map(u64::to_le_bytes).concat());
        file.extend(0_u32.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset += rows * 8 * 4;
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend((0..offset).map(|position| (position % 64) as u8));
    file
}

/// A Llama of two blocks in two parts.
fn parts() -> [(String, Vec<u8>); 2] {
    let split = |number: u32| {
        [("split.no", Meta::Count(number)), ("split.count", Meta::Count(2)), ("split.tensors.count", Meta::Count(3))]
    };
    let model = [
        ("general.architecture", Meta::Text("llama")),
        ("llama.block_count", Meta::Count(2)),
        ("llama.embedding_length", Meta::Count(8)),
        ("llama.feed_forward_length", Meta::Count(16)),
        ("llama.attention.head_count", Meta::Count(2)),
        ("llama.attention.head_count_kv", Meta::Count(1)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::Number(1e-5)),
    ];
    let first: Vec<(&str, Meta)> = model.into_iter().chain(split(0)).collect();
    // Large enough that the outline has only some of its bytes.
    let tensors = [("token_embd.weight", 4000), ("blk.0.attn_v.weight", 4)];
    [
        ("q/m-00001-of-00002.gguf".to_owned(), gguf(&first, &tensors)),
        ("q/m-00002-of-00002.gguf".to_owned(), gguf(&split(1), &[("blk.1.attn_v.weight", 4)])),
    ]
}

#[test]
fn parts_of_a_gguf_file_are_fetched_by_block() {
    let (hub, caches) = (LoopbackHub::new(parts()), tempfile::tempdir().expect("a folder"));
    let complete = tempfile::tempdir().expect("a folder");
    fs::create_dir(complete.path().join("q")).expect("a folder");
    for (name, bytes) in parts() {
        fs::write(complete.path().join(name), bytes).expect("written");
    }
    let expected = Checkpoint::open(complete.path().join("q")).expect("opens");
    let [first, second] = parts().map(|(name, _)| name);
    let assets = client(&hub, caches.path());
    // Any part stands for the model.
    for part in [&second, &first] {
        let files = open(&assets, &format!("hub:a/b/{part}"));
        assert_eq!(files.checkpoint.digest(), expected.digest());
        assert_eq!(hub.downloads(), Vec::<String>::new());
    }
    let files = open(&assets, &format!("hub:a/b/{first}"));
    files.fetch(&assets, blocks(1, 2), &mut ignore_events).expect("fetched");
    assert_eq!(hub.downloads(), [second.as_str()]);
    let name = "model.layers.1.self_attn.v_proj.weight";
    assert_eq!(files.checkpoint.tensor(name).expect("reads"), expected.tensor(name).expect("reads"));
    let error = files.checkpoint.tensor(EMBEDDINGS).expect_err("not fetched");
    assert!(matches!(error, ReadError::MissingShard { .. }), "{error}");
    files.fetch(&assets, Part::Ends, &mut ignore_events).expect("fetched");
    assert_eq!(hub.downloads(), [first.as_str()]);
    assert_eq!(files.checkpoint.tensor(EMBEDDINGS).expect("reads"), expected.tensor(EMBEDDINGS).expect("reads"));
}

#[test]
fn tensors_of_a_type_that_is_not_read_are_not_fetched() {
    const NAME: &[u8] = b"blk.1.attn_v.weight";
    let [first, (second, mut bytes)] = parts();
    let name = bytes.windows(NAME.len()).position(|window| window == NAME).expect("the tensor");
    // The type I32, after the name, the number of dimensions and two of them.
    let at = name + NAME.len() + 4 + 2 * 8;
    bytes[at..at + 4].copy_from_slice(&26_u32.to_le_bytes());
    let (hub, caches) = (LoopbackHub::new([first.clone(), (second, bytes)]), tempfile::tempdir().expect("a folder"));
    let assets = client(&hub, caches.path());
    let files = open(&assets, &format!("hub:a/b/{}", first.0));
    for part in [Part::All, blocks(1, 2)] {
        let error = files.fetch(&assets, part, &mut ignore_events).expect_err("the type is not read");
        let text = sepal_core::in_one_line(&error);
        for words in ["model.layers.1.self_attn.v_proj.weight", "its type I32", "Q4_K"] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
    }
    assert_eq!(hub.downloads(), Vec::<String>::new());
    files.fetch(&assets, blocks(0, 1), &mut ignore_events).expect("the other tensors can be used");
    assert_eq!(hub.downloads(), [first.0.as_str()]);
}
