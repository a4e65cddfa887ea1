use std::fs;
use std::path::PathBuf;

use sepal_testkit::hub::{COMMIT, Fault, LoopbackHub};
use tempfile::TempDir;

use super::super::pieces::PIECE;
use super::super::tests::{WEIGHTS, bytes, cached, fixture_for, hub, ranges};
use super::*;
use crate::{AssetOptions, ignore_events};

/// Size of the weights: four pieces, the last one short.
const SIZE: u64 = 3 * PIECE + 10;

/// Hub of a model with its weights in one large file, which is fetched in parts, and the file's bytes.
fn large_model() -> (LoopbackHub, TempDir, AssetOptions, Vec<u8>) {
    let content = bytes(SIZE as usize);
    let hub = hub(&[("config.json", b"{}"), (WEIGHTS, &content)]);
    let (folder, mut options) = fixture_for(&hub);
    options.hub_complete_bytes = PIECE;
    (hub, folder, options, content)
}

fn fetch_model(assets: &Assets, text: &str) -> Result<Asset, FetchError> {
    let source: Source = text.parse().expect("a source");
    assets.fetch_first_model(&[source], &mut |_| Ok(()), &mut ignore_events)
}

/// Pieces of the weights by their offset, sorted.
fn pieces(asset: &Asset) -> Vec<(u64, Vec<u8>)> {
    let folder = asset.folder().join(format!("{WEIGHTS}.pieces"));
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    let piece = |path: PathBuf| {
        let offset = path.file_name()?.to_str()?.split_once('-')?.0.parse().ok()?;
        Some((offset, fs::read(path).expect("a piece")))
    };
    let mut pieces: Vec<(u64, Vec<u8>)> = entries.filter_map(piece).collect();
    pieces.sort();
    pieces
}

fn offsets_of(asset: &Asset) -> Vec<u64> {
    pieces(asset).into_iter().map(|(offset, _)| offset / PIECE).collect()
}

/// Sorted values of the header `Range`.
fn requested(hub: &LoopbackHub) -> Vec<String> {
    let requests = hub.requests();
    let mut found: Vec<String> = ranges(&requests).iter().map(|(range, _)| range.unwrap_or("all").to_owned()).collect();
    found.sort();
    found
}

/// Value of the header for pieces by their index.
fn headers(indices: &[u64]) -> Vec<String> {
    let header = |index: &u64| format!("bytes={}-{}", index * PIECE, ((index + 1) * PIECE).min(SIZE) - 1);
    let mut headers: Vec<String> = indices.iter().map(header).collect();
    headers.sort();
    headers
}

#[test]
fn fetch_ranges_downloads_missing_pieces_only() {
    let (hub, _folder, mut options, content) = large_model();
    let assets = Assets::new(options.clone());
    let asset = fetch_model(&assets, "hub:a/b").expect("without weights");
    assert_eq!(hub.downloads(), ["config.json"]);
    assert!(!asset.path.join(WEIGHTS).exists());

    let fetch = |ranges: &[Range<u64>]| {
        assets.fetch_ranges(&asset, WEIGHTS, ranges, &mut ignore_events).expect("fetched");
        requested(&hub)
    };
    assert_eq!(fetch(&[10..20, SIZE - 4..SIZE]), headers(&[0, 3]));
    assert_eq!(fetch(std::slice::from_ref(&(0..PIECE))), headers(&[]));
    assert_eq!(fetch(std::slice::from_ref(&(PIECE - 1..PIECE + 1))), headers(&[1]));
    for (offset, piece) in pieces(&asset) {
        assert_eq!(piece, content[offset as usize..(offset as usize + piece.len())]);
    }
    assert_eq!(offsets_of(&asset), [0, 1, 3]);
    assert_eq!(cached(&options, "blobs").len(), 1, "Python tools see no weights");

    // Cached pieces need no hub, also if the model is opened again.
    options.hub_endpoint = "http://127.0.0.1:1".to_owned();
    let assets = Assets::new(options);
    let asset = fetch_model(&assets, "hub:a/b").expect("cached");
    let wanted = 0..PIECE + 1;
    assets.fetch_ranges(&asset, WEIGHTS, std::slice::from_ref(&wanted), &mut ignore_events).expect("cached");
    assert!(assets.hub.get().is_none(), "the hub was asked");
    let missing = 2 * PIECE..2 * PIECE + 1;
    let error = assets.fetch_ranges(&asset, WEIGHTS, &[missing], &mut ignore_events).expect_err("no hub");
    assert!(matches!(error, FetchError::HubUnreachable { .. }), "{error}");
}

#[test]
fn range_beyond_the_file_is_refused() {
    let (_hub, _folder, options, _) = large_model();
    let assets = Assets::new(options);
    let asset = fetch_model(&assets, "hub:a/b").expect("without weights");
    for end in [SIZE + 1, u64::MAX] {
        let error = assets
            .fetch_ranges(&asset, WEIGHTS, std::slice::from_ref(&(0..end)), &mut ignore_events)
            .expect_err("beyond the end");
        let FetchError::Hub { what, source } = &error else { panic!("{error}") };
        let text = source.to_string();
        assert!(what.ends_with(WEIGHTS) && text.contains(&end.to_string()), "{what}: {text}");
        assert!(text.contains(&SIZE.to_string()), "{text}");
    }
    assert_eq!(offsets_of(&asset), [0_u64; 0]);
}

#[test]
fn weights_that_are_left_out_have_a_folder_of_pieces() {
    let (_hub, _folder, options, _) = large_model();
    let assets = Assets::new(options);
    let asset = fetch_model(&assets, "hub:a/b").expect("without weights");
    let pieces = asset.folder().join(format!("{WEIGHTS}.pieces"));
    assert!(pieces.join("entry.json").is_file() && offsets_of(&asset).is_empty());
    // A snapshot of an earlier version gets it with the next fetch.
    fs::remove_dir_all(&pieces).expect("removed");
    fetch_model(&assets, "hub:a/b").expect("without weights");
    assert!(pieces.join("entry.json").is_file());
}

#[test]
fn empty_range_is_read_without_a_request() {
    let (hub, _folder, options, content) = large_model();
    let assets = Assets::new(options);
    let asset = fetch_model(&assets, "hub:a/b").expect("without weights");
    hub.requests();
    let wanted = [(WEIGHTS.to_owned(), 0..0), (WEIGHTS.to_owned(), 1..3), (WEIGHTS.to_owned(), 7..7)];
    let expected = [Vec::new(), content[1..3].to_vec(), Vec::new()];
    assert_eq!(assets.read_ranges(&asset, &wanted).expect("bytes"), expected);
    assert_eq!(requested(&hub), ["bytes=1-2"]);
}

#[test]
fn damaged_piece_is_fetched_again() {
    let (hub, _folder, options, content) = large_model();
    let assets = Assets::new(options);
    let asset = fetch_model(&assets, "hub:a/b").expect("without weights");
    let fetch = || assets.fetch_ranges(&asset, WEIGHTS, &[0..1, PIECE..PIECE + 1], &mut ignore_events);
    fetch().expect("fetched");
    let folder = asset.folder().join(format!("{WEIGHTS}.pieces"));
    let is_second = |path: &PathBuf| path.display().to_string().contains(&format!("/{PIECE:015}-"));
    let mut paths = fs::read_dir(folder).expect("pieces").map(|entry| entry.expect("an entry").path());
    let second = paths.find(is_second).expect("the second piece");
    for damaged in [vec![0; PIECE as usize], vec![1, 2, 3]] {
        fs::write(&second, damaged).expect("written");
        hub.requests();
        fetch().expect("fetched");
        assert_eq!(requested(&hub), headers(&[1]));
        assert_eq!(pieces(&asset)[1].1, content[PIECE as usize..2 * PIECE as usize]);
    }
}

#[test]
fn interrupted_pieces_resume() {
    let (hub, _folder, options, _) = large_model();
    let assets = Assets::new(options);
    let asset = fetch_model(&assets, "hub:a/b").expect("without weights");
    let fetch = |end: u64| assets.fetch_ranges(&asset, WEIGHTS, std::slice::from_ref(&(0..end)), &mut ignore_events);
    fetch(PIECE).expect("fetched");
    for fault in [Fault::Cut(1000), Fault::Refuse(503)] {
        hub.fail_parts(WEIGHTS, [fault]);
        let error = fetch(2 * PIECE).expect_err("the second piece breaks off");
        let FetchError::Interrupted { bytes_done, size, .. } = error else { panic!("{error}") };
        assert_eq!((bytes_done, size), (PIECE, 2 * PIECE));
        assert_eq!(offsets_of(&asset), [0], "no part of a piece is left");
    }
    hub.requests();
    fetch(2 * PIECE).expect("fetched");
    assert_eq!((requested(&hub), offsets_of(&asset)), (headers(&[1]), vec![0, 1]));
}

#[test]
fn hub_without_ranges_sends_the_complete_file() {
    let (hub, _folder, options, content) = large_model();
    let assets = Assets::new(options);
    let asset = fetch_model(&assets, "hub:a/b").expect("without weights");
    hub.fail_parts(WEIGHTS, [Fault::Whole]);
    let error = assets.read_ranges(&asset, &[(WEIGHTS.to_owned(), 5..8)]).expect_err("no ranges");
    assert!(error.is_without_ranges(), "{error}");
    hub.fail_parts(WEIGHTS, [Fault::Whole, Fault::Whole]);
    assets.fetch_ranges(&asset, WEIGHTS, std::slice::from_ref(&(0..2 * PIECE)), &mut ignore_events).expect("fetched");
    assert_eq!(fs::read(asset.path.join(WEIGHTS)).expect("a file"), content);
    assert!(pieces(&asset).is_empty());
}

#[test]
fn most_of_a_file_and_small_files_are_fetched_complete() {
    let (hub, _folder, options, content) = large_model();
    let assets = Assets::new(options);
    let asset = fetch_model(&assets, "hub:a/b").expect("without weights");
    assets.fetch_ranges(&asset, WEIGHTS, std::slice::from_ref(&(0..1)), &mut ignore_events).expect("fetched");
    assert_eq!(offsets_of(&asset), [0]);
    hub.requests();
    assets.fetch_ranges(&asset, WEIGHTS, &[0..2 * PIECE, SIZE - 1..SIZE], &mut ignore_events).expect("fetched");
    assert_eq!(hub.downloads(), [WEIGHTS]);
    assert_eq!(fs::read(asset.path.join(WEIGHTS)).expect("a file"), content);
    assert!(pieces(&asset).is_empty(), "the complete file replaces its pieces");
    assets.fetch_ranges(&asset, WEIGHTS, std::slice::from_ref(&(0..1)), &mut ignore_events).expect("nothing to fetch");
    assert_eq!(hub.requests(), []);

    let (hub, _folder, options, _) = large_model();
    let options = AssetOptions { hub_complete_bytes: SIZE, ..options };
    let asset = fetch_model(&Assets::new(options), "hub:a/b").expect("fetched");
    assert_eq!(hub.downloads(), ["config.json", WEIGHTS]);
    assert!(asset.path.join(WEIGHTS).is_file());
}

#[test]
fn concurrent_fetches_download_each_piece_once() {
    let (hub, _folder, options, _) = large_model();
    let asset = fetch_model(&Assets::new(options.clone()), "hub:a/b").expect("without weights");
    hub.requests();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let fetch = || {
                let assets = Assets::new(options.clone());
                assets
                    .fetch_ranges(&asset, WEIGHTS, std::slice::from_ref(&(0..2 * PIECE)), &mut ignore_events)
                    .expect("fetched");
            };
            scope.spawn(fetch);
        }
    });
    assert_eq!(requested(&hub), headers(&[0, 1]));
}

#[test]
fn event_handler_break_stops_between_pieces() {
    let (_hub, _folder, options, _) = large_model();
    let assets = Assets::new(options);
    let asset = fetch_model(&assets, "hub:a/b").expect("without weights");
    let mut on_event = |event: FetchEvent<'_>| match event {
        FetchEvent::Progress { bytes_done } if bytes_done > 0 => std::ops::ControlFlow::Break(()),
        _ => std::ops::ControlFlow::Continue(()),
    };
    let error = assets
        .fetch_ranges(&asset, WEIGHTS, std::slice::from_ref(&(0..2 * PIECE)), &mut on_event)
        .expect_err("stopped");
    assert!(matches!(error, FetchError::Stopped), "{error}");
    assert_eq!(pieces(&asset).len(), 1, "received pieces are kept");
}

#[test]
fn parts_of_a_gguf_file_are_fetched_by_name() {
    let parts = ["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"];
    let hub = hub(&[(parts[0], b"first"), (parts[1], b"second"), ("q/other.gguf", b"other"), ("m.gguf", b"root")]);
    let (_folder, mut options) = fixture_for(&hub);
    let assets = Assets::new(options.clone());
    let source = format!("hub:a/b/{}", parts[1]);
    let asset = fetch_model(&assets, &source).expect("without its bytes");
    assert_eq!(asset.folder(), options.hub_cache.join("models--a--b/snapshots").join(COMMIT).join("q"));
    assert!(asset.path.ends_with(parts[1]) && !asset.path.exists());
    assert_eq!(hub.requests(), []);

    let names = parts.map(|part| part["q/".len()..].to_owned());
    let wanted = [(names[0].clone(), 1..3), (names[1].clone(), 0..100)];
    assert_eq!(assets.read_ranges(&asset, &wanted).expect("bytes"), [b"ir".to_vec(), b"second".to_vec()]);
    hub.requests();
    assets.fetch_files(&asset, &names[..1], &mut ignore_events).expect("fetched");
    assert_eq!(hub.downloads(), parts[..1]);
    assert_eq!(fs::read(asset.folder().join(&names[0])).expect("a part"), b"first");
    let error = assets.fetch_files(&asset, &["m-00003-of-00002.gguf".to_owned()], &mut ignore_events);
    assert!(matches!(error, Err(FetchError::NotFromHub { .. })), "{error:?}");

    // A small file of its own is fetched at once, and a recorded model needs no hub.
    assert!(fetch_model(&assets, "hub:a/b/m.gguf").expect("fetched").path.is_file());
    options.hub_endpoint = "http://127.0.0.1:1".to_owned();
    let again = Assets::new(options);
    assert_eq!(fetch_model(&again, &source).expect("recorded").path, asset.path);
    again.fetch_files(&asset, &names[..1], &mut ignore_events).expect("cached");
    assert!(again.hub.get().is_none(), "the hub was asked");
    let unknown = fetch_model(&assets, "hub:a/b/q/none-00001-of-00002.gguf").expect_err("no such file");
    assert!(unknown.to_string().contains("none-00001-of-00002.gguf"), "{unknown}");
}
