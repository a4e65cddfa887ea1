//! Layers of compressed-tensors whose rows do not fill words, or that have zero points in a symmetric scheme.

use super::*;

fn packed(symmetric: bool) -> Value {
    let scheme = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": symmetric});
    compressed("pack-quantized", scheme)
}

#[test]
fn rows_that_do_not_fill_words_are_read() {
    let encoding = Some(RowEncoding::Int4 { group: 32 });
    for (name, symmetric) in [("packed-4", true), ("packed-4-asymmetric", false)] {
        let mut golden = Golden::read(name);
        let [outputs, inputs] = golden.shape;
        // The same words without the numbers of the last columns.
        golden.shape = [outputs, inputs - 4];
        golden.values = golden.values.chunks(inputs).flat_map(|row| row[..inputs - 4].to_vec()).collect();
        check_golden(name, &golden, packed(symmetric), encoding, 0.0);
    }
}

#[test]
fn zero_points_of_a_symmetric_scheme_are_used_or_must_be_zeros() {
    let golden = Golden::read("packed-4-asymmetric");
    check_golden("words", &golden, packed(true), Some(RowEncoding::Int4 { group: 32 }), 0.0);

    let bytes = |number: &str| json!({"num_bits": 8, "type": number, "strategy": "channel", "symmetric": true});
    for (name, format, number, encoding) in [
        ("int8-channels", "int-quantized", "int", RowEncoding::Int8),
        ("fp8-channels", "float-quantized", "float", RowEncoding::Fp8 { group: 72 }),
    ] {
        let quantization = compressed(format, bytes(number));
        let with_zero_points = |zero_point: u8| {
            let mut golden = Golden::read(name);
            let zero_points = (Dtype::I8, vec![40, 1], vec![zero_point; 40]);
            golden.parts.insert(format!("{LAYER}.weight_zero_point"), zero_points);
            golden
        };
        check_golden(name, &with_zero_points(0), quantization.clone(), Some(encoding), 0.0);
        let folder = with_zero_points(3).folder(quantization);
        let error = Checkpoint::open(folder.path()).expect("opens").tensor(WEIGHT).expect_err("no zeros");
        let text = sepal_core::in_one_line(&error);
        assert!(text.contains(WEIGHT) && text.contains("`weight_zero_point` is not 0"), "{text}");
    }
}
