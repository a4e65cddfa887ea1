use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use sepal_testkit::hub::{COMMIT, Fault, LoopbackHub, Request};
use tempfile::TempDir;

use super::*;
use crate::ignore_events;

pub(super) const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Options with an empty cache folder and an unreachable hub.
pub(super) fn fixture(offline: bool) -> (TempDir, AssetOptions) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = AssetOptions::from_env();
    options.cache = folder.path().join("sepal");
    options.hub_cache = folder.path().join("hub");
    options.hub_endpoint = "http://127.0.0.1:1".to_owned();
    options.hub_offline = offline;
    options.hub_token = None;
    options.hub_retries = 0;
    options.hub_backoff = Duration::from_millis(1);
    (folder, options)
}

/// Options with an empty cache folder and this hub.
pub(super) fn fixture_for(hub: &LoopbackHub) -> (TempDir, AssetOptions) {
    let (folder, options) = fixture(false);
    (folder, AssetOptions { hub_endpoint: hub.endpoint().to_owned(), ..options })
}

pub(super) fn hub(files: &[(&str, &[u8])]) -> LoopbackHub {
    LoopbackHub::new(files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())))
}

/// Hub of a model with these weights, and options with an empty cache folder and this hub.
fn model(weights: &[u8]) -> (LoopbackHub, TempDir, AssetOptions) {
    let unwanted: (&str, &[u8]) = ("pytorch_model.bin", b"not wanted");
    let hub = hub(&[("config.json", b"{}"), (WEIGHTS, weights), unwanted, ("README.md", b"x")]);
    let (folder, options) = fixture_for(&hub);
    (hub, folder, options)
}

fn put(options: &AssetOptions, repository: &str, names: &[&str]) {
    let folder = options.hub_cache.join(repository);
    fs::create_dir_all(folder.join("refs")).expect("a folder");
    fs::write(folder.join("refs/main"), COMMIT).expect("written");
    for name in names {
        let path = folder.join("snapshots").join(COMMIT).join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, "content").expect("written");
    }
}

fn fetch(assets: &Assets, text: &str, kind: Kind) -> Result<Asset, FetchError> {
    let source: Source = text.parse().expect("a source");
    assets.fetch(&source, kind, &mut ignore_events)
}

/// Sorted file names of a cache folder of `a/b`.
pub(super) fn cached(options: &AssetOptions, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(options.hub_cache.join("models--a--b").join(folder)).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

pub(super) fn ranges(requests: &[Request]) -> Vec<(Option<&str>, usize)> {
    requests.iter().map(|request| (request.range.as_deref(), request.sent)).collect()
}

/// Bytes that differ between positions.
pub(super) fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|position| (position % 251) as u8).collect()
}

#[test]
fn fetch_cached_sends_no_request() {
    for offline in [false, true] {
        let (_folder, options) = fixture(offline);
        let tokenizer = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
        put(&options, "models--a--b", &[&["config.json", WEIGHTS], &tokenizer[..]].concat());
        put(&options, "datasets--a--b", &["data/train.parquet"]);
        let assets = Assets::new(options.clone());
        let model = fetch(&assets, "hub:a/b", Kind::Model).expect("cached");
        assert_eq!(model.path, options.hub_cache.join("models--a--b/snapshots").join(COMMIT));
        assert_eq!(model.pinned().to_string(), format!("hub:a/b@{COMMIT}"));
        let file = fetch(&assets, "hub:a/b/data/train.parquet", Kind::Dataset).expect("cached").path;
        assert!(file.ends_with("data/train.parquet"));
        fetch(&assets, &format!("hub:a/b@{COMMIT}/config.json"), Kind::Model).expect("cached by commit");
        assert!(assets.hub.get().is_none(), "the hub was asked");
        fetch(&assets, "hub:a/b", Kind::Dataset).expect("enough, even without a hub");
    }
}

#[test]
fn fetch_offline_uses_cache_only() {
    let (_folder, options) = fixture(true);
    put(&options, "models--a--b", &["config.json"]);
    let assets = Assets::new(options);
    for text in ["hub:a/b", "hub:a/c", "hub:a/b/model.gguf", "hub:a/b@v2/config.json"] {
        let error = fetch(&assets, text, Kind::Model).expect_err("not cached");
        assert!(matches!(&error, FetchError::Offline { .. }), "{error}");
        assert!(error.to_string().contains(&text[4..]), "{error}");
    }
    assert!(assets.hub.get().is_none(), "the hub was asked");
}

#[test]
fn unreachable_hub_fails_fast_and_is_remembered() {
    let (_folder, options) = fixture(false);
    let assets = Assets::new(options);
    let start = Instant::now();
    for source in ["hub:a/b", "hub:a/c/x.csv"] {
        let error = fetch(&assets, source, Kind::Dataset).expect_err("no hub");
        assert!(matches!(&error, FetchError::HubUnreachable { .. }), "{error}");
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn silent_hub_is_unreachable_after_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (_folder, mut options) = fixture(false);
    options.hub_endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    options.hub_connect_timeout = Duration::from_millis(300);
    let start = Instant::now();
    let error = fetch(&Assets::new(options), "hub:a/b", Kind::Model).expect_err("no answer");
    assert!(error.to_string().contains("no answer within 0.3 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn fetch_model_fills_one_folder() {
    let (hub, _folder, mut options) = model(b"weights");
    let asset = fetch(&Assets::new(options.clone()), "hub:a/b", Kind::Model).expect("fetched");
    assert_eq!(asset.commit.as_deref(), Some(COMMIT));
    assert_eq!(fs::read_to_string(asset.path.join(WEIGHTS)).expect("a file"), "weights");
    assert_eq!(hub.downloads(), ["config.json", WEIGHTS]);
    let link = fs::read_link(asset.path.join(WEIGHTS)).expect("a link, as the Python tools make them");
    assert_eq!(link.file_name().map(|name| name.len()), Some(64));
    assert!(cached(&options, "blobs").iter().all(|name| !name.contains('.')), "nothing is left half-done");
    // The record says that this model has no tokenizer.json, so the hub is not needed.
    options.hub_endpoint = "http://127.0.0.1:1".to_owned();
    let assets = Assets::new(options);
    assert_eq!(fetch(&assets, "hub:a/b", Kind::Model).expect("cached").path, asset.path);
    assert!(assets.hub.get().is_none(), "the hub was asked");
}

#[test]
fn fetch_missing_file_is_error() {
    let (_hub, _folder, options) = model(b"weights");
    let assets = Assets::new(options);
    let file = fetch(&assets, "hub:a/b/config.json", Kind::Model).expect("fetched").path;
    assert_eq!(fs::read_to_string(file).expect("a file"), "{}");
    let error = fetch(&assets, "hub:a/b/none.json", Kind::Model).expect_err("not there");
    assert!(error.to_one_line().contains("a/b/none.json from the hub: the repository has no such file"), "{error}");
    let error = fetch(&assets, "hub:a/b@v9", Kind::Model).expect_err("no such revision");
    assert!(error.to_one_line().contains("a/b@v9 from the hub: it answered 404"), "{}", error.to_one_line());
    let error = fetch(&assets, "hub:a/b", Kind::Dataset).expect_err("no data");
    assert!(matches!(&error, FetchError::NoFiles { .. }), "{error}");
}

#[test]
fn fetch_file_in_subfolder() {
    let hub = hub(&[("data/train.csv", b"a,b"), ("data/more/x.csv", b"c"), ("train.csv", b"another")]);
    let (_folder, options) = fixture_for(&hub);
    let assets = Assets::new(options);
    let file = fetch(&assets, "hub:a/b/data/train.csv", Kind::Dataset).expect("fetched").path;
    assert_eq!(fs::read_to_string(file).expect("a file"), "a,b");
}

#[test]
fn fetch_files_downloads_single_shards() {
    let hub = hub(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{ }"),
        (INDEX, b"{  }"),
        ("one.safetensors", b"1"),
        ("two.safetensors", b"0123456789"),
    ]);
    let (_folder, mut options) = fixture_for(&hub);
    let assets = Assets::new(options.clone());
    let asset = fetch(&assets, "hub:a/b", Kind::Model).expect("fetched");
    assert_eq!(hub.downloads(), ["config.json", INDEX, "tokenizer.json"]);

    let parts = [("two.safetensors".to_owned(), 2..5), ("one.safetensors".to_owned(), 0..100)];
    assert_eq!(assets.read_ranges(&asset, &parts).expect("bytes"), [b"234".to_vec(), b"1".to_vec()]);
    assert_eq!(fs::read_dir(&asset.path).expect("a folder").count(), 3, "ranges are not cached");
    hub.requests();

    let shards = ["two.safetensors".to_owned()];
    assets.fetch_files(&asset, &shards, &mut ignore_events).expect("fetched");
    assert_eq!(hub.downloads(), shards);
    assert_eq!(fs::read(asset.path.join("two.safetensors")).expect("a file"), b"0123456789");
    assert!(!asset.path.join("one.safetensors").exists());
    // Cached files need no request, and missing files are errors.
    options.hub_endpoint = "http://127.0.0.1:1".to_owned();
    let assets = Assets::new(options);
    let asset = fetch(&assets, "hub:a/b", Kind::Model).expect("cached");
    assets.fetch_files(&asset, &shards, &mut ignore_events).expect("there");
    assert!(assets.hub.get().is_none(), "the hub was asked");
    let error = assets.fetch_files(&asset, &["one.safetensors".to_owned()], &mut ignore_events).expect_err("no hub");
    assert!(matches!(error, FetchError::HubUnreachable { .. }), "{error}");
}

/// Fetches the model of `a/b` with a check.
fn fetch_checked(options: &AssetOptions, check_model: &mut ModelCheck<'_>) -> Result<Asset, FetchError> {
    let sources = ["hub:a/b", "src"].map(|text| text.parse().expect("a source"));
    Assets::new(options.clone()).fetch_first_model(&sources, check_model, &mut ignore_events)
}

#[test]
fn refused_model_downloads_no_weights() {
    let (hub, _folder, options) = model(b"weights");
    let error = fetch_checked(&options, &mut |model| {
        assert_eq!(fs::read_to_string(model.folder.join("config.json")).expect("it is there"), "{}");
        assert!(!model.folder.join(WEIGHTS).exists());
        Err("quantized".into())
    });
    let error = error.expect_err("refused, and no other source is taken for it");
    let FetchError::Refused { repository, source } = &error else { panic!("{error}") };
    assert_eq!((repository.as_str(), source.to_string().as_str()), ("a/b", "quantized"));
    assert_eq!(hub.downloads(), ["config.json"]);
    // Byte ranges of the weights are readable before the download and are not cached.
    hub.requests();
    let asset = fetch_checked(&options, &mut |model| {
        assert_eq!((model.read_ranges)(&[(WEIGHTS.to_owned(), 2..5)])?, [b"igh".to_vec()]);
        assert!(!model.folder.join(WEIGHTS).exists());
        Ok(())
    });
    let path = asset.expect("fetched").path;
    assert_eq!(fs::read_to_string(path.join(WEIGHTS)).expect("a file"), "weights");
    assert_eq!(ranges(&hub.requests()), [(Some("bytes=2-4"), 3), (None, 7)]);
}

#[test]
fn fetch_files_unknown_shard_is_error() {
    let hub = hub(&[("config.json", b"{}"), (INDEX, b"{}")]);
    let (folder, options) = fixture_for(&hub);
    let assets = Assets::new(options);
    let asset = fetch(&assets, "hub:a/b", Kind::Model).expect("fetched");
    let local = fetch(&assets, &folder.path().display().to_string(), Kind::Model).expect("a folder");
    for asset in [asset, local] {
        let error = assets.fetch_files(&asset, &["x.safetensors".to_owned()], &mut ignore_events).expect_err("nowhere");
        assert!(matches!(&error, FetchError::NotFromHub { file, .. } if file == "x.safetensors"), "{error}");
    }
}

#[test]
fn interrupted_download_resumes_in_next_fetch() {
    let content = bytes(100_000);
    let (hub, _folder, options) = model(&content);
    hub.fail(WEIGHTS, [Fault::Cut(60_000)]);
    let error = fetch(&Assets::new(options.clone()), "hub:a/b", Kind::Model).expect_err("it broke off");
    assert!(matches!(&error, FetchError::Interrupted { bytes_done: 60_000, size: 100_000, .. }), "{error}");
    assert!(error.to_one_line().contains("the next fetch resumes"), "{}", error.to_one_line());
    assert!(cached(&options, "blobs").iter().any(|name| name.ends_with(".incomplete")));
    hub.requests();

    let asset = fetch(&Assets::new(options.clone()), "hub:a/b", Kind::Model).expect("fetched");
    assert_eq!(fs::read(asset.path.join(WEIGHTS)).expect("a file"), content);
    assert_eq!(ranges(&hub.requests()), [(Some("bytes=60000-"), 40_000)], "cached bytes are not sent again");
    assert!(cached(&options, "blobs").iter().all(|name| !name.contains('.')), "nothing is left half-done");
}

#[test]
fn download_retries_while_bytes_arrive() {
    let content = bytes(1000);
    let (hub, _folder, mut options) = model(&content);
    options.hub_retries = 2;
    hub.fail(WEIGHTS, [Fault::Cut(300), Fault::Refuse(503), Fault::Cut(300), Fault::Stall(300)]);
    options.hub_stall_timeout = Duration::from_millis(300);
    let source: Source = "hub:a/b".parse().expect("a source");
    let mut notices = Vec::new();
    let mut on_event = |event: FetchEvent<'_>| {
        match event {
            FetchEvent::Notice(line) => notices.push(line.to_owned()),
            FetchEvent::End { file, size: 1000, received, .. } => {
                assert_eq!((file, received), ("a/b/model.safetensors", 1000));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let asset = Assets::new(options).fetch(&source, Kind::Model, &mut on_event).expect("fetched");
    assert_eq!(fs::read(asset.path.join(WEIGHTS)).expect("a file"), content);
    let requests: Vec<Request> = hub.requests().into_iter().filter(|request| request.file == WEIGHTS).collect();
    let from = |n: &'static str| Some(n);
    let expected = [
        (None, 300),
        (from("bytes=300-"), 0),
        (from("bytes=300-"), 300),
        (from("bytes=600-"), 300),
        (from("bytes=900-"), 100),
    ];
    assert_eq!(ranges(&requests), expected);
    assert_eq!(notices.len(), 4, "{notices:?}");
    assert!(notices[1].contains("503") && notices[3].contains("received nothing for 0.3 s"), "{notices:?}");
}

#[test]
fn stalled_download_reports_stall() {
    let (hub, _folder, mut options) = model(&bytes(1000));
    options.hub_stall_timeout = Duration::from_millis(200);
    options.hub_retries = 1;
    hub.fail(WEIGHTS, [Fault::Stall(10), Fault::Stall(0)]);
    let start = Instant::now();
    let error = fetch(&Assets::new(options), "hub:a/b", Kind::Model).expect_err("nothing came");
    assert!(matches!(&error, FetchError::Stalled { bytes_done: 10, size: 1000, .. }), "{error}");
    assert!(error.to_string().contains("received nothing for 0.2 s; 10 of 1000 bytes are cached"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn damaged_download_is_discarded() {
    let (hub, _folder, options) = model(b"weights");
    for (file, kind) in [(WEIGHTS, "sha256"), ("config.json", "git hash")] {
        hub.fail(file, [Fault::Damage]);
        let error = fetch(&Assets::new(options.clone()), &format!("hub:a/b/{file}"), Kind::Model).expect_err("damaged");
        assert!(matches!(&error, FetchError::Damaged { kind: found, .. } if *found == kind), "{error}");
        assert_eq!(cached(&options, "blobs"), Vec::<String>::new());
        assert!(!options.hub_cache.join("models--a--b/snapshots").join(COMMIT).join(file).exists());
    }
    fetch(&Assets::new(options), "hub:a/b", Kind::Model).expect("fetched");
}

#[test]
fn damaged_partial_file_is_downloaded_again() {
    let content = bytes(1000);
    let (hub, _folder, options) = model(&content);
    hub.fail(WEIGHTS, [Fault::Cut(500)]);
    fetch(&Assets::new(options.clone()), "hub:a/b", Kind::Model).expect_err("it broke off");
    let blobs = options.hub_cache.join("models--a--b/blobs");
    let partial = cached(&options, "blobs").into_iter().find(|name| name.ends_with(".incomplete")).expect("a part");
    for damaged in [vec![0; 500], vec![0; 5000]] {
        fs::write(blobs.join(&partial), damaged).expect("written");
        let asset = fetch(&Assets::new(options.clone()), "hub:a/b", Kind::Model).expect("fetched");
        assert_eq!(fs::read(asset.path.join(WEIGHTS)).expect("a file"), content);
        fs::remove_file(blobs.join(partial.trim_end_matches(".incomplete"))).expect("removed");
    }
}

#[test]
fn hub_without_ranges_restarts_download() {
    let content = bytes(1000);
    let (hub, _folder, options) = model(&content);
    hub.fail(WEIGHTS, [Fault::Cut(500)]);
    fetch(&Assets::new(options.clone()), "hub:a/b", Kind::Model).expect_err("it broke off");
    hub.fail(WEIGHTS, [Fault::Whole]);
    let asset = fetch(&Assets::new(options.clone()), "hub:a/b", Kind::Model).expect("fetched");
    assert_eq!(fs::read(asset.path.join(WEIGHTS)).expect("a file"), content);

    hub.fail_parts(WEIGHTS, [Fault::Whole, Fault::Whole]);
    let assets = Assets::new(options);
    let asset = fetch(&assets, "hub:a/b", Kind::Model).expect("cached");
    let start = assets.read_ranges(&asset, &[(WEIGHTS.to_owned(), 0..3)]).expect("the beginning");
    assert_eq!(start, [content[..3].to_vec()]);
    let error = assets.read_ranges(&asset, &[(WEIGHTS.to_owned(), 5..8)]).expect_err("no parts").to_one_line();
    assert!(error.contains("ignores byte ranges"), "{error}");
}

#[test]
fn event_handler_break_stops_download() {
    let content = bytes(1000);
    let (hub, _folder, options) = model(&content);
    hub.fail(WEIGHTS, [Fault::Stall(400)]);
    let source: Source = "hub:a/b".parse().expect("a source");
    let mut on_event = |event: FetchEvent<'_>| match event {
        FetchEvent::Progress { bytes_done: 400 } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let error = Assets::new(options.clone()).fetch(&source, Kind::Model, &mut on_event).expect_err("stopped");
    assert!(matches!(error, FetchError::Stopped), "{error}");
    hub.requests();
    fetch(&Assets::new(options), "hub:a/b", Kind::Model).expect("fetched");
    assert_eq!(ranges(&hub.requests()), [(Some("bytes=400-"), 600)]);
}

#[test]
fn concurrent_fetches_download_once() {
    let content = bytes(200_000);
    let (hub, _folder, options) = model(&content);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fetch(&Assets::new(options.clone()), "hub:a/b", Kind::Model).expect("fetched"));
        }
    });
    let sent: usize = hub.requests().iter().filter(|request| request.file == WEIGHTS).map(|request| request.sent).sum();
    assert_eq!(sent, content.len());
}

#[test]
fn pickled_weights_error_names_conversion() {
    let hub = hub(&[("config.json", b"{}"), ("pytorch_model.bin", b"pickled"), ("training_args.bin", b"x")]);
    let (_folder, options) = fixture_for(&hub);
    let error = fetch(&Assets::new(options), "hub:a/b", Kind::Model).expect_err("never read");
    assert!(matches!(&error, FetchError::Pickled { file, .. } if file == "pytorch_model.bin"), "{error}");
    let text = error.to_string();
    assert!(text.contains("M.from_pretrained('a/b', torch_dtype='auto').save_pretrained('converted')"), "{text}");
    assert_eq!(hub.downloads(), Vec::<String>::new(), "nothing of it is fetched");
}
