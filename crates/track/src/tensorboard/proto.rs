//! Written messages of event files, with the field numbers of TensorBoard's `event.proto`, `summary.proto`,
//! `tensor.proto` and (for hyperparameters) `plugins/hparams/plugin_data.proto`.

use std::collections::BTreeMap;

use prost::{Message, Oneof};

use crate::RunInfo;
use crate::scalars::since_epoch;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub(super) wall_time: f64,
    #[prost(int64, tag = "2")]
    pub(super) step: i64,
    #[prost(oneof = "EventKind", tags = "3, 5, 7")]
    pub(super) kind: Option<EventKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum EventKind {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// `SessionLog.SessionStatus.START`.
pub(super) const SESSION_START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionLog {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SummaryValue {
    #[prost(string, tag = "1")]
    pub(super) tag: String,
    #[prost(float, optional, tag = "2")]
    pub(super) simple_value: Option<f32>,
    #[prost(message, optional, tag = "8")]
    pub(super) tensor: Option<TensorProto>,
    #[prost(message, optional, tag = "9")]
    pub(super) metadata: Option<Metadata>,
}

/// `DT_FLOAT` and `DT_STRING`.
const FLOAT: i32 = 1;
const STRING: i32 = 7;

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorProto {
    #[prost(int32, tag = "1")]
    pub(super) dtype: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) shape: Option<Shape>,
    #[prost(float, repeated, tag = "5")]
    pub(super) float_val: Vec<f32>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub(super) string_val: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Shape {
    #[prost(message, repeated, tag = "2")]
    pub(super) dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Dim {
    #[prost(int64, tag = "1")]
    pub(super) size: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(message, optional, tag = "1")]
    pub(super) plugin_data: Option<PluginData>,
    /// `DATA_CLASS_TENSOR` is 2.
    #[prost(int32, tag = "4")]
    pub(super) data_class: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PluginData {
    #[prost(string, tag = "1")]
    pub(super) plugin_name: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) content: Vec<u8>,
}

/// Payload of the plugin `hparams`.
#[derive(Clone, PartialEq, Message)]
struct HparamsData {
    #[prost(oneof = "Session", tags = "3, 4")]
    session: Option<Session>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Session {
    #[prost(message, tag = "3")]
    Start(SessionStart),
    #[prost(message, tag = "4")]
    End(SessionEnd),
}

#[derive(Clone, PartialEq, Message)]
struct SessionStart {
    #[prost(btree_map = "string, message", tag = "1")]
    hparams: BTreeMap<String, HparamValue>,
    #[prost(string, tag = "4")]
    group_name: String,
    #[prost(double, tag = "5")]
    start_time_secs: f64,
}

#[derive(Clone, PartialEq, Message)]
struct SessionEnd {
    /// `STATUS_SUCCESS` is 1, `STATUS_FAILURE` 2.
    #[prost(int32, tag = "1")]
    status: i32,
    #[prost(double, tag = "2")]
    end_time_secs: f64,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, Message)]
struct HparamValue {
    #[prost(oneof = "Kind", tags = "2, 3, 4")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Kind {
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
}

impl Summary {
    pub(super) fn scalars(numbers: Vec<(String, f64)>) -> Self {
        let value =
            |(tag, number): (String, f64)| SummaryValue { tag, simple_value: Some(number as f32), ..<_>::default() };
        Self { value: numbers.into_iter().map(value).collect() }
    }

    /// Summary with Markdown text.
    pub(super) fn text(tag: &str, text: &str) -> Self {
        let tensor = TensorProto { dtype: STRING, string_val: vec![text.as_bytes().to_vec()], ..empty_vector() };
        Self::plugin_value(tag, "text", Vec::new(), tensor)
    }

    /// Summary with the options, for the comparison of runs.
    pub(super) fn hparams(run: &RunInfo) -> Self {
        let hparam = |(key, value): &(String, String)| (key.clone(), HparamValue { kind: Some(parse_kind(value)) });
        let hparams = run.options.iter().map(hparam).collect();
        let start_time_secs = since_epoch().as_secs_f64();
        let start = SessionStart { hparams, group_name: run.id.clone(), start_time_secs };
        Self::session("_hparams_/session_start_info", Session::Start(start))
    }

    pub(super) fn end_hparams(is_success: bool) -> Self {
        let end = SessionEnd { status: if is_success { 1 } else { 2 }, end_time_secs: since_epoch().as_secs_f64() };
        Self::session("_hparams_/session_end_info", Session::End(end))
    }

    fn session(tag: &str, session: Session) -> Self {
        let content = HparamsData { session: Some(session) }.encode_to_vec();
        let tensor = TensorProto { dtype: FLOAT, float_val: vec![0.0], ..empty_vector() };
        Self::plugin_value(tag, "hparams", content, tensor)
    }

    fn plugin_value(tag: &str, plugin: &str, content: Vec<u8>, tensor: TensorProto) -> Self {
        let plugin_data = Some(PluginData { plugin_name: plugin.to_owned(), content });
        let metadata = Some(Metadata { plugin_data, data_class: 2 });
        Self { value: vec![SummaryValue { tag: tag.to_owned(), simple_value: None, tensor: Some(tensor), metadata }] }
    }
}

/// Tensor of shape `[1]` without data.
fn empty_vector() -> TensorProto {
    TensorProto { shape: Some(Shape { dim: vec![Dim { size: 1 }] }), ..TensorProto::default() }
}

fn parse_kind(value: &str) -> Kind {
    match (value.parse::<bool>(), value.parse::<f64>()) {
        (Ok(value), _) => Kind::Bool(value),
        (_, Ok(number)) if number.is_finite() => Kind::Number(number),
        _ => Kind::Text(value.to_owned()),
    }
}
