use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where assets are kept and how they are fetched. Start from [`AssetOptions::from_env`] and change what differs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssetOptions {
    /// The cache of this project: `SEPAL_CACHE`, else `$XDG_CACHE_HOME/sepal`, else `~/.cache/sepal`.
    pub cache: PathBuf,
    /// The Python whose pip fetches packages: `SEPAL_PYTHON`, else `python3`.
    pub python: PathBuf,
    /// The hub's cache, shared with its Python tools: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else
    /// `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
    pub hub_cache: PathBuf,
    /// The hub's address: `HF_ENDPOINT`, else `https://huggingface.co`.
    pub hub_endpoint: String,
    /// Whether only the hub's cache is looked at: `HF_HUB_OFFLINE` is 1, on, yes or true.
    pub hub_offline: bool,
    /// How long the hub may take to answer the first request before it counts as unreachable.
    pub hub_patience: Duration,
    /// How long the hub may send nothing in the middle of an answer before it is asked again.
    pub hub_stall: Duration,
    /// How many times in a row the hub is asked again when nothing came before it counts as failed.
    pub hub_retries: u32,
    /// The pause before the first of these; each is twice as long as the one before.
    pub hub_backoff: Duration,
    /// Who asks, for repositories that are not open to all: `HF_TOKEN`, else the content of `HF_TOKEN_PATH`, else of
    /// `token` in `HF_HOME`; none if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set.
    pub hub_token: Option<Token>,
}

/// A secret that is sent to the hub and shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// This text without the space around it; `None` if that is all there is.
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
    /// The options as the environment has them.
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
            hub_patience: Duration::from_secs(5),
            hub_stall: Duration::from_secs(30),
            hub_retries: 4,
            hub_backoff: Duration::from_secs(1),
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
    fn the_defaults_lie_below_home() {
        let options = options(&[("SEPAL_CACHE", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(options.cache, PathBuf::from("/home/me/.cache/sepal"));
        assert_eq!(options.hub_cache, PathBuf::from("/home/me/.cache/huggingface/hub"));
        assert_eq!(options.hub_endpoint, "https://huggingface.co");
        assert!(!options.hub_offline);
    }

    #[test]
    fn the_nearest_variable_wins() {
        let xdg = ("XDG_CACHE_HOME", "/xdg");
        assert_eq!(options(&[xdg]).cache, PathBuf::from("/xdg/sepal"));
        assert_eq!(options(&[xdg]).hub_cache, PathBuf::from("/xdg/huggingface/hub"));
        assert_eq!(options(&[xdg, ("HF_HOME", "/hf")]).hub_cache, PathBuf::from("/hf/hub"));
        assert_eq!(options(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]).hub_cache, PathBuf::from("/c"));
        assert_eq!(options(&[xdg, ("SEPAL_CACHE", "/s")]).cache, PathBuf::from("/s"));
        assert!(options(&[("HF_HUB_OFFLINE", "True")]).hub_offline);
    }

    #[test]
    fn a_token_is_found_and_not_shown() {
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
