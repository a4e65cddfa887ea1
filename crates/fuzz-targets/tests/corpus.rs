//! All seeds and the inputs of past findings, without mutations.

use sepal_fuzz_targets::TARGETS;

#[test]
fn seeds_and_past_findings_are_survived() {
    for target in TARGETS {
        for (name, input) in target.corpus().expect("readable") {
            println!("{}: {name}", target.name);
            (target.run)(&input);
        }
    }
}
