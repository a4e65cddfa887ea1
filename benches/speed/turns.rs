//! Alternatives measured in turns, so that other load on the machine affects them equally.

use std::time::Instant;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Turns {
    pub(crate) rounds: usize,
    /// Seconds above which an alternative is measured only once, without a warm-up.
    pub(crate) once_beyond: f64,
}

impl Turns {
    pub(crate) fn all(rounds: usize) -> Self {
        Self { rounds, once_beyond: f64::INFINITY }
    }

    /// Returns the median seconds of each alternative. The first round is a warm-up.
    pub(crate) fn medians<const N: usize>(self, ways: [&dyn Fn(); N]) -> [f64; N] {
        self.medians_of(&ways).try_into().expect("one median for each")
    }

    /// As [`medians`](Self::medians), for any number of alternatives.
    pub(crate) fn medians_of(self, ways: &[&dyn Fn()]) -> Vec<f64> {
        let first: Vec<f64> = ways.iter().map(|way| seconds(*way)).collect();
        let is_once = |seconds: f64| seconds > self.once_beyond;
        let time = |seconds: &f64| if is_once(*seconds) { vec![*seconds] } else { Vec::new() };
        let mut times: Vec<Vec<f64>> = first.iter().map(time).collect();
        for _ in 0..self.rounds {
            for (i, way) in ways.iter().enumerate().filter(|&(i, _)| !is_once(first[i])) {
                times[i].push(seconds(*way));
            }
        }
        times.into_iter().map(median).collect()
    }
}

pub(crate) fn seconds(way: &dyn Fn()) -> f64 {
    let begun = Instant::now();
    way();
    begun.elapsed().as_secs_f64()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
