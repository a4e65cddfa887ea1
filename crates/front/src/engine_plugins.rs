/// Plugins of this build that only the engine knows: their options are in their own crates. With at least one, the engine
/// performs the commands that read pipeline files or list plugins. `just new-plugin` adds its name.
pub static ENGINE_PLUGINS: &[&str] = &[
    // the list
];
