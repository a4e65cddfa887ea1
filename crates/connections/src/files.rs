use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Largest limit that is set. Some programs that this one starts close each possible file.
const MAX_FILES: u64 = 1 << 16;

/// Maximum number of files and connections that this process may have open; `None` if it is unlimited.
pub fn open_file_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Raises the limit of open files to the most that the system lets this process have, or to 65,536. A limit that cannot be
/// raised stays.
pub fn raise_open_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let possible = limit.maximum.map_or(MAX_FILES, |maximum| maximum.min(MAX_FILES));
    if limit.current.is_some_and(|current| current < possible)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(possible), ..limit })
    {
        tracing::debug!(%error, "the limit of open files was not raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raised_limit_is_never_lower() {
        let before = open_file_limit();
        raise_open_file_limit();
        let after = open_file_limit();
        assert!(before.is_none_or(|before| after.is_none_or(|after| after >= before)), "{before:?} {after:?}");
    }
}
