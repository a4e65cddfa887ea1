"""Prints what MLflow's own client finds of an experiment's only run, as JSON. Tried with mlflow 3.17.2."""

import json
import sys

from mlflow.tracking import MlflowClient

uri, name = sys.argv[1:]
client = MlflowClient(uri)
runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
run = runs[0]
run_id = run.info.run_id
artifacts = {}
for artifact in client.list_artifacts(run_id):
    with open(client.download_artifacts(run_id, artifact.path)) as file:
        artifacts[artifact.path] = file.read()
found = {
    "runs": len(runs),
    "status": run.info.status,
    "name": run.info.run_name,
    "history": [[point.step, point.value] for point in client.get_metric_history(run_id, "train/loss")],
    "metrics": run.data.metrics,
    "params": run.data.params,
    "tags": run.data.tags,
    "artifacts": artifacts,
}
print(json.dumps(found))
