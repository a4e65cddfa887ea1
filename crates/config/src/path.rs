use std::fmt;

/// Path of a value in a pipeline file, for example `data.otherwise[0].train`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyPath(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Segment {
    Key(String),
    Index(usize),
}

impl KeyPath {
    /// Path of the whole file.
    pub(crate) fn root() -> Self {
        Self::default()
    }

    pub(crate) fn keys<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self(keys.into_iter().map(|key| Segment::Key(key.to_owned())).collect())
    }

    pub(crate) fn key(&self, key: &str) -> Self {
        self.join(&[Segment::Key(key.to_owned())])
    }

    pub(crate) fn index(&self, index: usize) -> Self {
        self.join(&[Segment::Index(index)])
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// Path without its last segment; `None` for the whole file.
    pub(crate) fn parent(&self) -> Option<Self> {
        self.0.split_last().map(|(_, rest)| Self(rest.to_vec()))
    }

    pub(crate) fn last_key(&self) -> Option<&str> {
        match self.0.last() {
            Some(Segment::Key(key)) => Some(key),
            _ => None,
        }
    }

    /// Segments below `ancestor`; `None` if it is no ancestor.
    pub(crate) fn below(&self, ancestor: &Self) -> Option<&[Segment]> {
        self.0.strip_prefix(ancestor.0.as_slice())
    }

    pub(crate) fn join(&self, segments: &[Segment]) -> Self {
        Self(self.0.iter().chain(segments).cloned().collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if depth == 0 => write!(f, "{key}")?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
