/// Replacement of the value of a secret option.
pub const REDACTED: &str = "(withheld)";

/// Returns true if the option of this key is a secret (ticket, token, secret or password), which must not be passed on.
///
/// ```
/// assert!(sepal_track::is_secret("swarm.with.ticket") && !sepal_track::is_secret("swarm.with.micro_batch_tokens"));
/// ```
pub fn is_secret(key: &str) -> bool {
    let key = key.rsplit('.').next().unwrap_or(key);
    ["ticket", "token", "secret", "password"].iter().any(|word| key == *word || key.ends_with(&format!("_{word}")))
}
