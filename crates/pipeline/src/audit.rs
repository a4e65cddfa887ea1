//! Audit of a run: how much of its texts a server could read from hidden states, and what noise against that costs.

mod inversion;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use sepal_core::TokenBatch;
use sepal_data::{Loader, TableSpec};
use sepal_model::LocalBlocks;
use sepal_train::{Split, evaluate, headline};
use tch::Tensor;

use self::inversion::{LinearMap, nearest_tokens};
use crate::classifier::Classifier;
use crate::error::{AuditError, ClassifierError};
use crate::progress::{Observer, TrainEvents};

/// Numbers of blocks that run at home, unless others are given.
const USUAL_LOCAL_BLOCKS: [usize; 4] = [0, 1, 2, 4];

/// Settings to audit.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditOptions {
    /// Numbers of blocks that run at home. If none is given, those of 0, 1, 2 and 4 that leave a block for servers.
    pub local_blocks: Vec<usize>,
    /// Noise levels, as [`RemoteOptions::noise`](sepal_remote::RemoteOptions::noise).
    pub noise: Vec<f64>,
    /// Maximum number of rows that are read.
    pub max_rows: usize,
}

/// Result of one setting.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditResult {
    /// Number of blocks that run at home.
    pub local_blocks: usize,
    /// Noise level.
    pub noise: f64,
    /// Share of tokens whose nearest embedding is their own.
    pub nearest: f64,
    /// Share of tokens that a linear map to embeddings recovers; it was fitted on the other half of the rows.
    pub linear: f64,
    /// Metric of the task.
    pub metric: f64,
}

/// Result of an audit.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// Rows that were read.
    pub rows: usize,
    /// Tokens to recover, in the half of the rows that no map was fitted on.
    pub tokens: usize,
    /// Name of the metric.
    pub headline: String,
    /// Results by setting, in the order of the options.
    pub results: Vec<AuditResult>,
}

/// Tokens of texts, without those of the template.
struct Targets {
    /// Token ids, `[n]`.
    ids: Vec<i64>,
    /// Their positions among all tokens of the rows, `[n]`.
    positions: Vec<i64>,
    /// Number of targets in the first half of the rows.
    n_fitted: usize,
    /// Number of tokens of all rows.
    n_positions: i64,
}

impl Classifier {
    /// Measures, for each setting, how much of the texts at `rows` simple inversions of hidden states recover, and the metric
    /// of the predictions. All blocks must run in this process.
    ///
    /// # Errors
    /// [`ClassifierError`] if the rows are not available, blocks run elsewhere, or a setting does not fit the model.
    pub fn audit(
        &self,
        options: &AuditOptions,
        rows: &Path,
        columns: &TableSpec,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Audit, ClassifierError> {
        let local = self.model().blocks.as_local().ok_or(AuditError::Remote)?;
        let n_blocks = self.n_blocks();
        let settings: Vec<usize> = match options.local_blocks.as_slice() {
            [] => USUAL_LOCAL_BLOCKS.into_iter().filter(|&local_blocks| local_blocks < n_blocks).collect(),
            given => given.to_vec(),
        };
        if let Some(&local_blocks) = settings.iter().find(|&&local_blocks| local_blocks >= n_blocks) {
            return Err(AuditError::LocalBlocks { local_blocks, n_blocks }.into());
        }
        let loader = self.first_rows(rows, columns, options.max_rows)?;
        let targets = Targets::new(&loader).ok_or(AuditError::NoTokens { path: rows.to_owned() })?;
        let mut audit = Audit {
            rows: loader.rows(),
            tokens: targets.ids.len() - targets.n_fitted,
            headline: String::new(),
            results: Vec::new(),
        };
        for local_blocks in settings {
            for &noise in &options.noise {
                local.observe(local_blocks, noise);
                let (headline, result) =
                    self.audit_setting(local, &loader, &targets, (local_blocks, noise), observer, stop)?;
                audit.headline = headline;
                audit.results.push(result);
            }
        }
        Ok(audit)
    }

    fn audit_setting(
        &self,
        local: &LocalBlocks,
        loader: &Loader,
        targets: &Targets,
        (local_blocks, noise): (usize, f64),
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(String, AuditResult), ClassifierError> {
        let rows = Split { loader, name: "audited" };
        let evaluated = evaluate(self.model(), rows, self.manifest().steps, &mut TrainEvents(observer), stop);
        let states = local.take_observed();
        let evaluation = evaluated?;
        let (nearest, linear) = tch::no_grad(|| self.recovered(&states, targets)).map_err(AuditError::Inversion)?;
        let headline = headline(&evaluation, &self.manifest().data.class_rows).to_owned();
        let metric = evaluation.record.metrics.get(&headline).copied().unwrap_or(evaluation.record.loss);
        Ok((headline, AuditResult { local_blocks, noise, nearest, linear, metric }))
    }

    /// Shares of the tokens of the second half of the rows that the nearest embedding and a linear map recover.
    fn recovered(&self, states: &[Tensor], targets: &Targets) -> Result<(f64, f64), sepal_nn::RowsError> {
        let embeddings = self.model().ends.embeddings();
        let all = Tensor::f_cat(states, 0)?; // [tokens of all rows, hidden]
        // Calibration texts, if any, come before the rows.
        let first = all.size()[0] - targets.n_positions;
        let states = all.f_index_select(0, &Tensor::f_from_slice(&targets.positions)?.f_add_scalar(first)?)?; // [n, hidden]
        let (n_fitted, n) = (targets.n_fitted as i64, targets.ids.len() as i64);
        let unseen = states.f_narrow(0, n_fitted, n - n_fitted)?;
        let known = embeddings.rows(&targets.ids[..targets.n_fitted])?;
        let map = LinearMap::fit(&states.f_narrow(0, 0, n_fitted)?, &known)?;
        let share = |found: &[i64]| {
            let expected = &targets.ids[targets.n_fitted..];
            let hits = found.iter().zip(expected).filter(|(found, expected)| found == expected).count();
            hits as f64 / expected.len() as f64
        };
        Ok((share(&nearest_tokens(&unseen, embeddings)?), share(&nearest_tokens(&map.apply(&unseen)?, embeddings)?)))
    }
}

impl Targets {
    /// Collects the tokens of all rows but those of the template, which are the same at the start or end of every sequence.
    /// `None` if either half of the rows has none.
    fn new(loader: &Loader) -> Option<Self> {
        let sequences: Vec<Vec<i64>> = loader.epoch(0).flat_map(|batch| split(&batch.tokens)).collect();
        Self::of_sequences(&sequences)
    }

    fn of_sequences(sequences: &[Vec<i64>]) -> Option<Self> {
        let prefix = common_len(sequences, |sequence, index| sequence.get(index).copied());
        let suffix = common_len(sequences, |sequence, index| sequence.iter().rev().nth(index).copied());
        let mut targets = Self { ids: Vec::new(), positions: Vec::new(), n_fitted: 0, n_positions: 0 };
        let mut start = 0;
        for (index, sequence) in sequences.iter().enumerate() {
            if index == sequences.len() / 2 {
                targets.n_fitted = targets.ids.len();
            }
            let text = prefix..sequence.len().saturating_sub(suffix).max(prefix);
            targets.positions.extend(text.clone().map(|position| (start + position) as i64));
            targets.ids.extend(&sequence[text]);
            start += sequence.len();
        }
        targets.n_positions = start as i64;
        (targets.n_fitted > 0 && targets.n_fitted < targets.ids.len()).then_some(targets)
    }
}

/// Token ids of each sequence of a batch.
fn split(batch: &TokenBatch) -> Vec<Vec<i64>> {
    (0..batch.sequences.len()).map(|sequence| batch.ids[batch.sequences.range(sequence)].to_vec()).collect()
}

/// Number of positions, from the first on, at which all sequences have the same token.
fn common_len(sequences: &[Vec<i64>], token: impl Fn(&[i64], usize) -> Option<i64>) -> usize {
    let is_common = |index: &usize| {
        let first = sequences.first().and_then(|sequence| token(sequence, *index));
        first.is_some() && sequences.iter().all(|sequence| token(sequence, *index) == first)
    };
    (0..).take_while(is_common).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_leave_out_the_template_and_keep_positions() {
        let sequences = [vec![9, 1, 2, 7, 8], vec![9, 3, 7, 8], vec![9, 1, 4, 5, 7, 8], vec![9, 6, 7, 8]];
        let targets = Targets::of_sequences(&sequences).expect("tokens");
        assert_eq!(targets.ids, [1, 2, 3, 1, 4, 5, 6]);
        assert_eq!(targets.positions, [1, 2, 6, 10, 11, 12, 16]);
        assert_eq!(targets.n_fitted, 3);
        assert!(Targets::of_sequences(&sequences[..1]).is_none());
        assert!(Targets::of_sequences(&[vec![1, 2], vec![1, 2]]).is_none());
    }
}
