use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Cache folders and request limits. Start from [`AssetOptions::from_env`] and change single fields.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssetOptions {
    /// Cache folder of this project: `SEPAL_CACHE`, else `$XDG_CACHE_HOME/sepal`, else `~/.cache/sepal`.
    pub cache: PathBuf,
    /// Python whose pip fetches packages: `SEPAL_PYTHON`, else `python3`.
    pub python: PathBuf,
    /// Cache folder of the hub, shared with its Python tools: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else
    /// `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
    pub hub_cache: PathBuf,
    /// Address of the hub: `HF_ENDPOINT`, else `https://huggingface.co`.
    pub hub_endpoint: String,
    /// True if the hub's cache is used without requests: `HF_HUB_OFFLINE` is 1, on, yes or true.
    pub hub_offline: bool,
    /// Timeout of the first request, after which the hub counts as unreachable.
    pub hub_connect_timeout: Duration,
    /// Timeout without received bytes, after which a request is retried.
    pub hub_stall_timeout: Duration,
    /// Number of retries in a row without received bytes.
    pub hub_retries: u32,
    /// Pause before the first retry; it doubles with each further retry.
    pub hub_backoff: Duration,
    /// Size in bytes up to which weights in one file are always fetched complete; see [`Assets::fetch_ranges`].
    ///
    /// [`Assets::fetch_ranges`]: crate::Assets::fetch_ranges
    pub hub_complete_bytes: u64,
    /// Token for repositories that are not public: `HF_TOKEN`, else the content of `HF_TOKEN_PATH`, else of `token` in
    /// `HF_HOME`; none if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set.
    pub hub_token: Option<Token>,
}

/// Secret that is sent to the hub and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Trims the text; none if nothing is left.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl AssetOptions {
    /// Reads the options from the environment.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| std::env::var(name).ok(), std::env::home_dir())
    }

    fn from_variables(get: &dyn Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        let variable = |name: &str| get(name).filter(|value| !value.is_empty());
        let folder = |name: &str| variable(name).map(PathBuf::from);
        let caches = folder("XDG_CACHE_HOME")
            .or_else(|| home.map(|home| home.join(".cache")))
            .unwrap_or_else(|| std::env::temp_dir().join("cache"));
        let truthy = |value: String| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
        let hub_home = folder("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let saved = || {
            let path = folder("HF_TOKEN_PATH").unwrap_or_else(|| hub_home.join("token"));
            Token::new(&std::fs::read_to_string(path).ok()?)
        };
        let no_token = variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(truthy);
        let token = || variable("HF_TOKEN").and_then(|text| Token::new(&text)).or_else(saved);
        Self {
            cache: folder("SEPAL_CACHE").unwrap_or_else(|| caches.join("sepal")),
            python: folder("SEPAL_PYTHON").unwrap_or_else(|| "python3".into()),
            hub_cache: folder("HF_HUB_CACHE")
                .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| hub_home.join("hub")),
            hub_endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            hub_offline: variable("HF_HUB_OFFLINE").is_some_and(truthy),
            hub_connect_timeout: Duration::from_secs(5),
            hub_stall_timeout: Duration::from_secs(30),
            hub_retries: 4,
            hub_backoff: Duration::from_secs(1),
            hub_complete_bytes: 256 << 20,
            hub_token: if no_token { None } else { token() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> AssetOptions {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        AssetOptions::from_variables(&get, Some("/home/me".into()))
    }

    #[test]
    fn from_env_defaults_are_below_home() {
        let options = options(&[("SEPAL_CACHE", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(options.cache, PathBuf::from("/home/me/.cache/sepal"));
        assert_eq!(options.hub_cache, PathBuf::from("/home/me/.cache/huggingface/hub"));
        assert_eq!(options.hub_endpoint, "https://huggingface.co");
        assert!(!options.hub_offline);
    }

    #[test]
    fn from_env_specific_variable_wins() {
        let xdg = ("XDG_CACHE_HOME", "/xdg");
        assert_eq!(options(&[xdg]).cache, PathBuf::from("/xdg/sepal"));
        assert_eq!(options(&[xdg]).hub_cache, PathBuf::from("/xdg/huggingface/hub"));
        assert_eq!(options(&[xdg, ("HF_HOME", "/hf")]).hub_cache, PathBuf::from("/hf/hub"));
        assert_eq!(options(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]).hub_cache, PathBuf::from("/c"));
        assert_eq!(options(&[xdg, ("SEPAL_CACHE", "/s")]).cache, PathBuf::from("/s"));
        assert!(options(&[("HF_HUB_OFFLINE", "True")]).hub_offline);
    }

    #[test]
    fn token_is_read_and_never_printed() {
        assert_eq!(options(&[("HF_TOKEN", " hf_abc ")]).hub_token, Token::new("hf_abc"));
        assert_eq!(options(&[("HF_TOKEN", "hf_abc"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).hub_token, None);
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "hf_saved\n").expect("written");
        let home = folder.path().display().to_string();
        assert_eq!(options(&[("HF_HOME", &home)]).hub_token, Token::new("hf_saved"));
        let shown = format!("{:?}", options(&[("HF_TOKEN", "hf_abc")]));
        assert!(!shown.contains("hf_abc"), "{shown}");
    }
}
