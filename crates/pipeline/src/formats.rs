//! Servers and adapters of the same model in other formats, and the keys that choose the formats.

use sepal_core::{ComputeFormat, ModelDigest, WeightFormat};

/// Formats of `found`, if it is the model `expected` in other formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OtherFormats {
    weights: Option<WeightFormat>,
    compute: Option<ComputeFormat>,
}

impl OtherFormats {
    pub(crate) fn new(expected: &str, found: &str) -> Option<Self> {
        let (expected, found) = (ModelDigest::parse(expected)?, ModelDigest::parse(found)?);
        if expected.checkpoint != found.checkpoint || expected == found {
            return None;
        }
        let weights = (expected.weights != found.weights).then_some(found.weights);
        let compute = (expected.compute != found.compute).then_some(found.compute);
        Some(Self { weights, compute })
    }

    /// The formats, as the end of a sentence about a server.
    fn description(self) -> String {
        let weights = self.weights.map(|format| match format {
            WeightFormat::Auto => "has unrounded weights".to_owned(),
            rounded => format!("has its weights as {rounded}"),
        });
        let compute = self.compute.map(|format| format!("computes in {format}"));
        weights.into_iter().chain(compute).collect::<Vec<_>>().join(" and ")
    }

    /// Options of the command line that choose these formats.
    pub(crate) fn overrides(self) -> String {
        let weights = self.weights.map(|format| format!("--set model.weights={format}"));
        let compute = self.compute.map(|format| format!("--set model.compute={format}"));
        weights.into_iter().chain(compute).collect::<Vec<_>>().join(" ")
    }

    /// The keys that choose these formats, with their values.
    fn settings(self) -> String {
        let weights = self.weights.map(|format| format!("`model.weights: {format}`"));
        let compute = self.compute.map(|format| format!("`model.compute: {format}`"));
        weights.into_iter().chain(compute).collect::<Vec<_>>().join(" and ")
    }
}

/// Options of `sepal serve` for these formats, each after a blank, without those that are the defaults on a CPU.
pub(crate) fn serve_options(weights: WeightFormat, compute: ComputeFormat) -> String {
    let weights = match weights {
        WeightFormat::Auto | WeightFormat::F32 => String::new(),
        rounded => format!(" --weights {rounded}"),
    };
    match compute {
        ComputeFormat::F32 => weights,
        rounded => format!("{weights} --compute {rounded}"),
    }
}

/// Advice about a server with the digest `found` for a run with the digest `expected`.
pub(crate) fn server_advice(server: &str, expected: &str, found: &str) -> String {
    match OtherFormats::new(expected, found) {
        Some(formats) => {
            format!("server {server} {}: set {}", formats.description(), formats.settings())
        }
        None => {
            "no value of `model.weights` and `model.compute` makes the digests equal; see `model.source`".to_owned()
        }
    }
}

/// Notices about those of the `servers`, each with its digest, that have the model `expected` in other formats.
pub(crate) fn other_formats<'a>(expected: &str, servers: impl IntoIterator<Item = (String, &'a str)>) -> Vec<String> {
    let notice = |(server, found): (String, &'a str)| {
        OtherFormats::new(expected, found)?;
        Some(format!("blocks: {}", server_advice(&server, expected, found)))
    };
    servers.into_iter().filter_map(notice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_the_keys_of_the_formats_that_differ() {
        let advice = |expected: &str, found: &str| server_advice("1.2.3.4:5", expected, found);
        assert_eq!(advice("a", "a+compute-bf16"), "server 1.2.3.4:5 computes in bf16: set `model.compute: bf16`");
        assert_eq!(advice("a+compute-bf16", "a"), "server 1.2.3.4:5 computes in f32: set `model.compute: f32`");
        assert_eq!(advice("a", "a+int8"), "server 1.2.3.4:5 has its weights as int8: set `model.weights: int8`");
        assert_eq!(
            advice("a+int8", "a+compute-f16"),
            "server 1.2.3.4:5 has unrounded weights and computes in f16: set `model.weights: auto` and `model.compute: f16`"
        );
        for (expected, found) in [("a", "b"), ("a", "b+compute-bf16"), ("a", "a+other")] {
            let text = advice(expected, found);
            assert!(text.contains("`model.weights`") && text.contains("`model.compute`"), "{text}");
            assert!(!text.contains(": set "), "{text}");
        }
    }

    #[test]
    fn overrides_are_options_of_the_command_line() {
        let overrides = |found: &str| OtherFormats::new("a+int8", found).expect("other formats").overrides();
        assert_eq!(overrides("a+int8+compute-bf16"), "--set model.compute=bf16");
        assert_eq!(overrides("a+compute-f16"), "--set model.weights=auto --set model.compute=f16");
    }

    #[test]
    fn only_servers_of_the_model_in_other_formats_are_named() {
        let servers = [("x:1", "a"), ("x:2", "a+compute-bf16"), ("x:3", "b+compute-bf16"), ("x:4", "a+int8")];
        let notices = other_formats("a", servers.map(|(server, digest)| (server.to_owned(), digest)));
        assert_eq!(
            notices,
            [
                "blocks: server x:2 computes in bf16: set `model.compute: bf16`",
                "blocks: server x:4 has its weights as int8: set `model.weights: int8`",
            ]
        );
    }
}
