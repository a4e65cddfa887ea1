use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, RepoType, RepoTypeDataset, RepoTypeModel};

use crate::error::one_line;
use crate::hub_cache::{Holding, Repository, belongs, is_whole};
use crate::{AssetOptions, Assets, FetchError, HubSource, Kind};

/// A hub that has answered.
#[derive(Debug)]
pub(crate) struct Hub {
    client: HFClientSync,
}

impl Assets {
    /// A file of a repository, or the folder with the files that make a model or dataset.
    pub(crate) fn fetch_hub(&self, source: &HubSource, kind: Kind) -> Result<PathBuf, FetchError> {
        let cached = Repository::new(self.options(), source, kind);
        let held = match source.path() {
            Some(path) => cached.file(path).map(|file| (file, Holding::All)),
            None => cached.held(),
        };
        let enough = match held {
            Some((path, Holding::All)) => return Ok(path),
            Some((path, Holding::Enough)) => Some(path),
            _ => None,
        };
        let hub = match self.answering_hub(source) {
            Ok(hub) => hub,
            // What the Python tools left here is enough to work with.
            Err(error) => return enough.ok_or(error),
        };
        match kind {
            Kind::Model => hub.fetch(source, &cached, RepoTypeModel, kind),
            Kind::Dataset => hub.fetch(source, &cached, RepoTypeDataset, kind),
        }
    }

    /// Asks the hub whether it is there, within the patience that the options have; `source` is the repository
    /// that it is asked about.
    ///
    /// # Errors
    /// [`FetchError::HubUnreachable`], or [`FetchError::Offline`] if it must not be asked.
    pub fn probe_hub(&self, source: &HubSource) -> Result<(), FetchError> {
        self.answering_hub(source).map(|_| ())
    }

    /// The hub, asked once whether it is there.
    fn answering_hub(&self, source: &HubSource) -> Result<&Hub, FetchError> {
        let options = self.options();
        if options.hub_offline {
            return Err(FetchError::Offline { what: what(source, source.path()), cache: options.hub_cache.clone() });
        }
        self.hub.get_or_init(|| Hub::connect(options, source)).as_ref().map_err(|reason| FetchError::HubUnreachable {
            endpoint: options.hub_endpoint.clone(),
            reason: reason.clone(),
        })
    }
}

impl Hub {
    /// A client, if the hub answers within the patience that the options have.
    fn connect(options: &AssetOptions, source: &HubSource) -> Result<Self, String> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let probe = client(options, 0).map_err(|error| one_line(&error))?;
        let repository = probe.model(source.owner(), source.name());
        // A thread of its own: resolving a name and connecting have no limit of their own, and a proxy must count.
        let ask = move || {
            let answer = match repository.exists().send() {
                // Without the address: the answer is remembered for other repositories, too.
                Err(HFError::Request { source, .. }) => Err(one_line(&source.without_url())),
                // It may refuse or not know the repository: it is there.
                _ => Ok(()),
            };
            // The receiver is gone if this took too long.
            let _ = sender.send(answer);
        };
        std::thread::Builder::new().name("hub-probe".to_owned()).spawn(ask).map_err(|error| error.to_string())?;
        let patience = options.hub_patience;
        receiver.recv_timeout(patience).map_err(|_| format!("no answer within {} s", patience.as_secs_f32()))??;
        Ok(Self { client: client(options, 2).map_err(|error| one_line(&error))? })
    }

    fn fetch<T: RepoType>(
        &self,
        source: &HubSource,
        cached: &Repository,
        repository_type: T,
        kind: Kind,
    ) -> Result<PathBuf, FetchError> {
        let remote = Remote {
            source,
            repository: self.client.repository(repository_type, source.owner(), source.name()),
            revision: cached.revision(),
        };
        match source.path() {
            Some(path) => {
                let (commit, size) = remote.metadata(path)?;
                let file = remote.download(path, &commit, size)?;
                cached.point_to(&commit)?;
                Ok(file)
            }
            None => {
                let files = remote.list(kind)?;
                let (commit, _) = remote.metadata(&files[0].0)?;
                tracing::info!(repository = what(source, None), files = files.len(), "fetching from the hub");
                for (name, size) in &files {
                    remote.download(name, &commit, *size)?;
                }
                let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
                cached.record(&commit, &names)?;
                cached.point_to(&commit)?;
                Ok(cached.snapshot(&commit))
            }
        }
    }
}

/// A revision of a repository on the hub.
struct Remote<'a, T: RepoType> {
    source: &'a HubSource,
    repository: HFRepositorySync<T>,
    revision: &'a str,
}

impl<T: RepoType> Remote<'_, T> {
    /// The commit that the revision stands for, and a file's size.
    fn metadata(&self, path: &str) -> Result<(String, u64), FetchError> {
        let metadata = self.repository.get_file_metadata().filepath(path).revision(self.revision).send();
        let metadata = metadata.map_err(|error| self.error(Some(path), error))?;
        Ok((metadata.commit_hash, metadata.file_size))
    }

    /// The files that make a model or dataset, with their sizes; at least one.
    fn list(&self, kind: Kind) -> Result<Vec<(String, u64)>, FetchError> {
        let recursive = kind == Kind::Dataset;
        let entries = self.repository.list_tree().revision(self.revision).recursive(recursive).send();
        let entries = entries.map_err(|error| self.error(None, error))?;
        let files: Vec<(String, u64)> = entries
            .into_iter()
            .filter_map(|entry| match entry {
                RepoTreeEntry::File { path, size, .. } if belongs(&path, kind) => Some((path, size)),
                _ => None,
            })
            .collect();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        if is_whole(&names, kind) {
            return Ok(files);
        }
        let wanted = match kind {
            Kind::Model => "config.json and safetensors weights",
            Kind::Dataset => "a parquet, arrow, csv, tsv or jsonl file",
        };
        Err(FetchError::NoFiles { repository: what(self.source, None), wanted })
    }

    /// Downloads a file into the hub's cache and checks its size; once more if it is not right.
    fn download(&self, path: &str, commit: &str, expected: u64) -> Result<PathBuf, FetchError> {
        let mut found = 0;
        for force in [false, true] {
            let download = self.repository.download_file().filename(path).revision(commit).force_download(force);
            let file = download.send().map_err(|error| self.error(Some(path), error))?;
            found = fs::metadata(&file).map_err(FetchError::io("look at", &file))?.len();
            // No size is known as 0.
            if expected == 0 || found == expected {
                return Ok(file);
            }
            if force {
                discard(&file);
            }
        }
        Err(FetchError::Incomplete { what: what(self.source, Some(path)), expected, found })
    }

    fn error(&self, path: Option<&str>, error: HFError) -> FetchError {
        FetchError::Hub { what: what(self.source, path), source: Box::new(error) }
    }
}

fn client(options: &AssetOptions, retries: usize) -> Result<HFClientSync, HFError> {
    HFClient::builder()
        .endpoint(&options.hub_endpoint)
        .cache_dir(&options.hub_cache)
        .retry_max_attempts(retries)
        .retry_base_delay(Duration::from_millis(250))
        .build_sync()
}

/// Removes a damaged file: the name in the snapshot and the content that it points to.
fn discard(file: &PathBuf) {
    // Best effort: the error that is being reported matters more.
    if let Ok(content) = fs::canonicalize(file) {
        let _ = fs::remove_file(content);
    }
    let _ = fs::remove_file(file);
}

fn what(source: &HubSource, path: Option<&str>) -> String {
    let revision = source.revision().map(|revision| format!("@{revision}")).unwrap_or_default();
    let path = path.map(|path| format!("/{path}")).unwrap_or_default();
    format!("{}/{}{revision}{path}", source.owner(), source.name())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Instant;

    use tempfile::TempDir;

    use super::*;
    use crate::{Asset, Source};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A hub that is not there, and a cache folder.
    fn bench(offline: bool) -> (TempDir, AssetOptions) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut options = AssetOptions::from_env();
        options.cache = folder.path().join("sepal");
        options.hub_cache = folder.path().join("hub");
        options.hub_endpoint = "http://127.0.0.1:1".to_owned();
        options.hub_offline = offline;
        (folder, options)
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
        assets.fetch(&source, kind)
    }

    #[test]
    fn what_is_cached_needs_no_hub() {
        for offline in [false, true] {
            let (_folder, options) = bench(offline);
            put(&options, "models--a--b", &["config.json", "model.safetensors", "tokenizer.json"]);
            put(&options, "datasets--a--b", &["data/train.parquet"]);
            let assets = Assets::new(options.clone());
            let model = fetch(&assets, "hub:a/b", Kind::Model).expect("cached").path;
            assert_eq!(model, options.hub_cache.join("models--a--b/snapshots").join(COMMIT));
            let file = fetch(&assets, "hub:a/b/data/train.parquet", Kind::Dataset).expect("cached").path;
            assert!(file.ends_with("data/train.parquet"));
            fetch(&assets, &format!("hub:a/b@{COMMIT}/config.json"), Kind::Model).expect("cached by commit");
            assert!(assets.hub.get().is_none(), "the hub was asked");
            fetch(&assets, "hub:a/b", Kind::Dataset).expect("enough, even without a hub");
        }
    }

    #[test]
    fn offline_means_the_cache_only() {
        let (_folder, options) = bench(true);
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
    fn an_unreachable_hub_is_noticed_at_once_and_remembered() {
        let (_folder, options) = bench(false);
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
    fn a_hub_that_accepts_and_says_nothing_is_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (_folder, mut options) = bench(false);
        options.hub_endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        options.hub_patience = Duration::from_millis(300);
        let start = Instant::now();
        let error = fetch(&Assets::new(options), "hub:a/b", Kind::Model).expect_err("no answer");
        assert!(error.to_string().contains("no answer within 0.3 s"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    /// A hub on loopback with these files; `short` bytes are missing at the end of each.
    fn serve(files: &'static [(&'static str, &'static str)], short: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
                    request.push(byte[0]);
                }
                let reply = answer(&String::from_utf8_lossy(&request), files, short);
                // A client that has gone away is no matter of this server.
                let _ = stream.write_all(reply.as_bytes());
            }
        });
        address
    }

    fn answer(request: &str, files: &[(&str, &str)], short: usize) -> String {
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let reply = |status: &str, headers: &str, body: &str, length: usize| {
            format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}")
        };
        if path.contains("/tree/") {
            let entry = |(name, content): &(&str, &str)| {
                let size = content.len();
                format!("{{\"type\":\"file\",\"oid\":\"x\",\"size\":{size},\"path\":\"{name}\"}}")
            };
            let body = format!("[{}]", files.iter().map(entry).collect::<Vec<_>>().join(","));
            return reply("200 OK", "content-type: application/json\r\n", &body, body.len());
        }
        if path.contains("/api/") {
            return reply("200 OK", "content-type: application/json\r\n", "{}", 2);
        }
        match files.iter().find(|(name, _)| path.ends_with(&format!("/{name}"))) {
            Some((name, content)) => {
                let headers = format!("etag: \"etag-{name}\"\r\nx-repo-commit: {COMMIT}\r\n");
                let (body, length) = match method {
                    "HEAD" => ("", content.len()),
                    _ => (&content[..content.len() - short], content.len() - short),
                };
                reply("200 OK", &headers, body, length)
            }
            None => reply("404 Not Found", &format!("x-repo-commit: {COMMIT}\r\n"), "", 0),
        }
    }

    const MODEL: &[(&str, &str)] = &[
        ("config.json", "{}"),
        ("model.safetensors", "weights"),
        ("pytorch_model.bin", "not wanted"),
        ("README.md", "x"),
    ];

    #[test]
    fn a_model_comes_into_one_folder() {
        let (_folder, mut options) = bench(false);
        options.hub_endpoint = serve(MODEL, 0);
        let path = fetch(&Assets::new(options.clone()), "hub:a/b", Kind::Model).expect("fetched").path;
        assert_eq!(fs::read_to_string(path.join("model.safetensors")).expect("a file"), "weights");
        assert!(!path.join("pytorch_model.bin").exists());

        // From now on without a hub: it is known that this model has no tokenizer.json.
        options.hub_endpoint = "http://127.0.0.1:1".to_owned();
        let assets = Assets::new(options);
        assert_eq!(fetch(&assets, "hub:a/b", Kind::Model).expect("cached").path, path);
        assert!(assets.hub.get().is_none(), "the hub was asked");
    }

    #[test]
    fn a_file_that_the_hub_does_not_have() {
        let (_folder, mut options) = bench(false);
        options.hub_endpoint = serve(MODEL, 0);
        let assets = Assets::new(options);
        let file = fetch(&assets, "hub:a/b/config.json", Kind::Model).expect("fetched").path;
        assert_eq!(fs::read_to_string(file).expect("a file"), "{}");
        let error = fetch(&assets, "hub:a/b/none.json", Kind::Model).expect_err("not there");
        assert!(matches!(&error, FetchError::Hub { .. }), "{error}");
        assert!(error.in_one_line().contains("a/b/none.json"), "{error}");
        let error = fetch(&assets, "hub:a/b", Kind::Dataset).expect_err("no data");
        assert!(matches!(&error, FetchError::NoFiles { .. }), "{error}");
    }

    #[test]
    fn half_a_file_is_refused_and_removed() {
        let (_folder, mut options) = bench(false);
        options.hub_endpoint = serve(MODEL, 1);
        let assets = Assets::new(options.clone());
        let error = fetch(&assets, "hub:a/b/model.safetensors", Kind::Model).expect_err("too short");
        assert!(matches!(&error, FetchError::Incomplete { expected: 7, found: 6, .. }), "{error}");
        let snapshot = options.hub_cache.join("models--a--b/snapshots").join(COMMIT);
        assert!(!snapshot.join("model.safetensors").exists());
    }
}
