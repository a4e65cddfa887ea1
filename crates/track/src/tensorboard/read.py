"""Prints what TensorBoard itself finds in a folder of event files, as JSON. Tried with tensorboard 2.21.0."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

events = EventAccumulator(sys.argv[1])
events.Reload()
tags = events.Tags()
found = {tag: [[point.step, point.value] for point in events.Scalars(tag)] for tag in tags["scalars"]}
found["options"] = events.Tensors("options")[0].tensor_proto.string_val[0].decode()
sessions = events.PluginTagToContent("hparams")
start = metadata.parse_session_start_info_plugin_data(sessions["_hparams_/session_start_info"])
found["hparams"] = {
    key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()
}
end = metadata.parse_session_end_info_plugin_data(sessions["_hparams_/session_end_info"])
found["status"] = end.status
print(json.dumps(found))
