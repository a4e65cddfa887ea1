"""Sends an offline run with `wandb sync` to a server on loopback that answers as W&B's does, as far as this takes it, and
prints what it was sent, as JSON. Tried with wandb 0.31.0."""

import gzip
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading

sent = {"config": {}, "history": [], "run": {}, "summary": {}, "files": {}}
bucket = {
    "id": "1", "name": "", "displayName": "", "description": "", "config": "{}", "sweepName": None, "historyLineCount": 0,
    "project": {"id": "2", "name": "demo", "entity": {"id": "3", "name": "me"}},
}


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body):
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def do_POST(self):
        body = json.loads(self.body())
        if not self.path.endswith("/graphql"):
            return self.answer(self.stream(body))
        variables = body.get("variables") or {}
        if "upsertBucket" in body["query"]:
            given = {key: value for key, value in variables.items() if value is not None}
            sent["config"] = json.loads(given.pop("config", "{}"))
            sent["run"] = {**given, **sent["run"]}
            data = {"upsertBucket": {"bucket": {**bucket, "name": variables["name"]}, "inserted": True}}
        elif "createRunFiles" in body["query"]:
            url = f"http://127.0.0.1:{self.server.server_port}/upload/"
            files = [{"name": name, "uploadUrl": url + name} for name in variables["files"]]
            data = {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        else:
            data = {}
        self.answer({"data": data})

    def stream(self, body):
        files = body.get("files") or {}
        sent["history"] += map(json.loads, files.get("wandb-history.jsonl", {}).get("content", []))
        for summary in files.get("wandb-summary.json", {}).get("content", []):
            sent["summary"] = json.loads(summary)
        for key in ("complete", "exitcode"):
            if key in body:
                sent[key] = body[key]
        return {}

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        sent["files"][self.path.rsplit("/", 1)[1]] = len(self.body())
        self.answer({})


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
with tempfile.TemporaryDirectory() as home:
    environment = {
        **os.environ, "HOME": home, "WANDB_DIR": home, "WANDB_ERROR_REPORTING": "false", "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
    }
    run = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", sys.argv[1]],
        env=environment, capture_output=True, text=True, timeout=120,
    )
sent["said"] = run.stdout + run.stderr
sent["code"] = run.returncode
print(json.dumps(sent))
