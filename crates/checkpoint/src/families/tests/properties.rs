//! Random configuration keys of the families.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use sepal_core::{Family, RopeScaling};
use serde_json::{Map, Value, json};

use super::super::{read_config, spec};
use super::table::{Row, Use, base, read, table, with};

const ORIGINAL: &str = "original_max_position_embeddings";
/// Keys of a scaling.
const WITHIN: [&str; 5] = ["rope_type", "factor", "rope_theta", "short_factor", "truncate"];

fn family() -> impl Strategy<Value = Family> {
    select(Family::ALL.to_vec())
}

/// Families with one set of scaling keys.
fn scaled() -> impl Strategy<Value = Family> {
    use Family::*;
    select(vec![
        Cohere, Cohere2, Glm, Glm4, Granite, Llama, Mistral, Mixtral, Olmo2, Qwen2, Qwen2Moe, Qwen3, Qwen3Moe, Smollm3,
        Gemma, Gemma2, Falcon, Stablelm, GptNeox, GptOss,
    ])
}

/// Invalid and unusual values.
fn junk() -> impl Strategy<Value = Value> {
    let numbers = select(vec![json!(0), json!(-1), json!(1), json!(7), json!(1 << 24), json!(u64::MAX), json!(1e308)]);
    let others =
        select(vec![json!(null), json!(true), json!("x"), json!([]), json!([1, 2]), json!({}), json!({"a": {}})]);
    prop_oneof![numbers, others, any::<f64>().prop_map(|number| json!(number)), any::<u16>().prop_map(|n| json!(n))]
}

/// Kinds of scaling that need the original length.
fn kind_with_original_length() -> impl Strategy<Value = &'static str> {
    select(vec!["llama3", "yarn"])
}

proptest! {
    /// Keys that a family does not read do not change the model, in any order.
    #[test]
    fn unused_keys_change_nothing(
        family in family(),
        rows in subsequence(table(), 0..40).prop_shuffle(),
    ) {
        let of_family = |row: &&Row| row.families.contains(&family);
        // A key that is unused alone may be read beside another key.
        let is_used = |row: &Row, key: &str| row.key == key && !matches!(row.becomes, Use::Unused(_));
        let is_read = |key: &str| table().iter().filter(of_family).any(|row| is_used(row, key));
        let (mut config, expected) = (base(family), read(base(family)));
        for Row { key, becomes, .. } in rows.iter().filter(of_family) {
            match becomes {
                Use::Unused(value) if !is_read(key) => drop(config.insert((*key).to_owned(), value.clone())),
                _ => {}
            }
        }
        prop_assert_eq!(read(config), expected);
    }

    /// The innermost base counts, and the outermost original length.
    #[test]
    fn rotary_keys_have_the_precedence_of_transformers(
        family in scaled(),
        kind in kind_with_original_length(),
        is_older in any::<bool>(),
        theta_within in proptest::option::of(2.0..100.0_f64),
        theta_beside in proptest::option::of(2.0..100.0_f64),
        original_within in proptest::option::of(8_usize..64),
        original_beside in proptest::option::of(8_usize..64),
        longest in proptest::option::of(64_usize..512),
    ) {
        let mut scaling = json!({"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        scaling[if is_older { "type" } else { "rope_type" }] = json!(kind);
        let theta_key = spec(family).rotary.theta;
        let mut config = base(family);
        let within = [("rope_theta", json!(theta_within)), (ORIGINAL, json!(original_within))];
        for (key, value) in within.into_iter().filter(|(_, value)| !value.is_null()) {
            scaling[key] = value;
        }
        let beside = [
            (theta_key, json!(theta_beside)),
            (ORIGINAL, json!(original_beside)),
            ("max_position_embeddings", json!(longest)),
        ];
        let beside = beside.into_iter().filter(|(_, value)| !value.is_null());
        config.extend(beside.map(|(key, value)| (key.to_owned(), value)));
        config.insert(if is_older { "rope_scaling" } else { "rope_parameters" }.to_owned(), scaling);

        let rope = read(config).rope.expect("rotary positions");
        let defaults = &spec(family).defaults;
        prop_assert_eq!(rope.theta, theta_within.or(theta_beside).unwrap_or(defaults.theta));
        let (RopeScaling::Llama3 { original_max_positions, .. } | RopeScaling::Yarn { original_max_positions, .. }) =
            rope.scaling
        else {
            panic!("another scaling")
        };
        let expected = original_beside.or(original_within).or(longest).unwrap_or(defaults.max_positions);
        prop_assert_eq!(original_max_positions, expected);
    }

    /// Both spellings of a scaling give the same positions.
    #[test]
    fn old_and_new_rope_keys_are_equivalent(family in scaled(), theta in 2.0..100.0_f64, factor in 1.0..16.0_f64, original in 8..64) {
        let theta_key = spec(family).rotary.theta;
        let older = json!({"type": "yarn", "factor": factor, ORIGINAL: original});
        let newer = json!({"rope_type": "yarn", "factor": factor, ORIGINAL: original, "rope_theta": theta});
        let (older, newer) = (json!({"rope_scaling": older, theta_key: theta}), json!({"rope_parameters": newer}));
        prop_assert_eq!(read(with(base(family), &older)), read(with(base(family), &newer)));
    }

    /// A configuration with any values is read or refused, and one that is read has sizes that fit.
    #[test]
    fn arbitrary_values_are_read_or_refused(
        family in family(),
        changes in proptest::collection::vec((select(table()), junk()), 0..6),
        within in proptest::collection::vec((select(WITHIN.to_vec()), junk()), 0..3),
    ) {
        let mut config = base(family);
        for (row, value) in changes {
            config.insert(row.key.to_owned(), value);
        }
        if !within.is_empty() {
            let within: Map<String, Value> = within.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            config.insert("rope_scaling".to_owned(), Value::Object(within));
        }
        if let Ok(model) = read_config(Path::new("config.json"), &config) {
            prop_assert!(model.n_heads.is_multiple_of(model.n_kv_heads) && model.head_dim > 0 && model.n_blocks > 0);
            prop_assert!(model.rope.is_none_or(|rope| rope.dim <= model.head_dim && rope.theta > 0.0));
            prop_assert!([0, model.n_blocks].contains(&model.unrotated_blocks.len()));
            let is_of_all_blocks = |blocks: Vec<bool>| blocks.len() == model.n_blocks;
            prop_assert!(model.scores.window.is_none_or(|window| is_of_all_blocks(window.blocks)));
        }
    }
}
