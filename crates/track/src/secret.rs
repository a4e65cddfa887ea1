/// What stands in the place of an option's value that is for nobody else.
pub const WITHHELD: &str = "(withheld)";

/// Whether the value of an option, by its key, admits to something, and so goes into nothing that is passed on: tickets,
/// tokens, secrets and passwords.
///
/// ```
/// assert!(sepal_track::is_secret("swarm.with.ticket") && !sepal_track::is_secret("swarm.with.micro_batch_tokens"));
/// ```
pub fn is_secret(key: &str) -> bool {
    let key = key.rsplit('.').next().unwrap_or(key);
    ["ticket", "token", "secret", "password"].iter().any(|word| key == *word || key.ends_with(&format!("_{word}")))
}
