//! Zeros of GPTQ's first version.

use super::*;

/// Zeros as GPTQModel writes them in the first version: it subtracts these words, in turns, from the packed zeros.
fn less_words(golden: &mut Golden, words: &[u32]) {
    let (_, shape, bytes) = golden.parts.get_mut(&format!("{LAYER}.qzeros")).expect("zeros");
    for row in bytes.chunks_exact_mut(4 * shape[1]) {
        for (word, less) in row.chunks_exact_mut(4).zip(words.iter().cycle()) {
            let stored = u32::from_le_bytes(word.try_into().expect("4 bytes"));
            word.copy_from_slice(&stored.wrapping_sub(*less).to_le_bytes());
        }
    }
}

#[test]
fn zeros_of_gptqmodel_are_read() {
    let mut golden = Golden::read("gptq-4-v2");
    less_words(&mut golden, &[0x1111_1111]);
    check_golden("gptq-4-v2 as v1", &golden, gptq(4, 16), Some(RowEncoding::Int4 { group: 16 }), 0.0);
    let mut golden = Golden::read("gptq-2");
    less_words(&mut golden, &[0x5555_5555]);
    check_golden("gptq-2 as v1", &golden, gptq(2, 32), Some(RowEncoding::Int4 { group: 32 }), 0.0);

    // The golden of 3 bits has each zero less one: ones in their places make the zeros themselves, and none overflows.
    let mut golden = Golden::read("gptq-3");
    let (_, _, bytes) = golden.parts.get_mut(&format!("{LAYER}.qzeros")).expect("zeros");
    for row in bytes.chunks_exact_mut(12) {
        let mut number = [0; 16];
        number[..12].copy_from_slice(row);
        let ones: u128 = (0..32).map(|place| 1 << (3 * place)).sum();
        row.copy_from_slice(&(u128::from_le_bytes(number) + ones).to_le_bytes()[..12]);
    }
    less_words(&mut golden, &[0x2492_4924, 0x9249_2492, 0x4924_9249]);
    let encoding = Some(RowEncoding::Int4 { group: 32 });
    for quantizer in [json!("gptqmodel:4.0.0"), json!(["optimum:1.27.0", "gptqmodel:4.0.0"])] {
        let mut quantization = gptq(3, 32);
        quantization["meta"] = json!({ "quantizer": quantizer });
        check_golden("gptq-3 of GPTQModel", &golden, quantization, encoding, 0.0);
    }
}

/// Both forms of zeros with 3 bits are known without their stored words, if all are 4.
#[test]
fn symmetric_zeros_of_3_bits_are_4() {
    let golden = Golden::read("gptq-3");
    let folder = golden.folder({
        let mut quantization = gptq(3, 32);
        quantization["sym"] = json!(true);
        quantization
    });
    let symmetric = Checkpoint::open(folder.path()).expect("opens").tensor(WEIGHT).expect("reads").to_f32();
    assert_ne!(symmetric, golden.values, "the golden has other zeros");
    // A number of 4 is a weight of 0, and numbers are 0 to 7.
    let (least, most) =
        symmetric.iter().fold((0.0_f32, 0.0_f32), |(least, most), &weight| (least.min(weight), most.max(weight)));
    assert!(symmetric.contains(&0.0) && least < 0.0 && most < -least, "{least} {most}");
}
