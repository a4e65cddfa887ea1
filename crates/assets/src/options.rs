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
        Self {
            cache: folder("SEPAL_CACHE").unwrap_or_else(|| caches.join("sepal")),
            python: folder("SEPAL_PYTHON").unwrap_or_else(|| "python3".into()),
            hub_cache: folder("HF_HUB_CACHE")
                .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| folder("HF_HOME").unwrap_or_else(|| caches.join("huggingface")).join("hub")),
            hub_endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            hub_offline: variable("HF_HUB_OFFLINE").is_some_and(truthy),
            hub_patience: Duration::from_secs(5),
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
}
