//! Time of a step against tokens, rows and blocks.

use sepal_core::Span;

use crate::model::{Random, smollm2};
use crate::processes::Checkpoint;
use crate::report::Target::AtLeast;
use crate::report::{Cell, Line, Section};
use crate::step::{Inputs, Workload};
use crate::turns::Turns;

const COLUMNS: &[&str] = &["grows", "from", "to", "seconds from", "seconds to", "R2 of a straight line"];
const BLOCKS: usize = 30;
/// Tokens per row while the number of rows grows.
const TOKENS: usize = 13;
/// Number of rows while their length grows.
const ROWS: usize = 16;

pub(crate) fn measure(rounds: usize, _: &Checkpoint) -> Section {
    let title = "Growth: the step in this process, against a straight line. Tokens: 16 rows that become longer; rows: of 13 \
                 tokens;\nblocks: the usual step through the first ones";
    let mut section = Section::new(title, COLUMNS);
    let longer = [4, 8, 16, 24, 32].map(|len| (ROWS * len, Workload::full(ROWS, len), BLOCKS));
    let more = [4, 8, 16, 24, 32].map(|rows| (rows, Workload::full(rows, TOKENS), BLOCKS));
    let deeper = [6, 12, 18, 24, BLOCKS].map(|blocks| (blocks, Workload::sentences(32), blocks));
    let config = smollm2();
    let stack = Random::new(config.clone()).all_blocks();
    for (axis, points) in [("tokens", longer), ("rows", more), ("blocks", deeper)] {
        let steps = points
            .each_ref()
            .map(|(_, work, blocks)| (Inputs::new(&config, work), Span::new(0, *blocks).expect("a span")));
        let step = |i: usize| steps[i].0.direct_part(&stack, steps[i].1);
        let seconds = Turns::all(rounds).medians([&|| step(0), &|| step(1), &|| step(2), &|| step(3), &|| step(4)]);
        let xs = points.map(|(x, ..)| x as f64);
        let line = Line::fit(axis, xs.into_iter().zip(seconds).collect());
        let [from, to] = [xs[0], xs[4]].map(|x| Cell::Number(x, 0));
        let [seconds_from, seconds_to] = [seconds[0], seconds[4]].map(|seconds| Cell::Number(seconds, 3));
        section.row([axis.into(), from, to, seconds_from, seconds_to, Cell::Number(line.r2, 4)]);
        section.figure(format!("R2 of the step against {axis}"), line.r2, AtLeast(0.99));
        section.line(line);
    }
    section
}
