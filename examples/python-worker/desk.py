"""Takes parcels in, starts a workflow for each, and says where they stand.

It listens where $PORT says, keeps its rows in the file of $STORE_URL, and finds the platform at $BALLET_PLATFORM.
"""

import json
import os
import re
import sqlite3
import urllib.request
import uuid
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STORE = os.environ["STORE_URL"].removeprefix("sqlite:")
PLATFORM = os.environ["BALLET_PLATFORM"]


def sql(statement, *values):
    with closing(sqlite3.connect(STORE, timeout=5)) as store, store:
        return store.execute(statement, values).fetchall()


def start_workflow(parcel, to):
    # Starting an id that is known has no effect, so this may be repeated.
    wish = {"name": "parcel", "id": f"parcel-{parcel}", "input": {"id": parcel, "to": to}}
    request = urllib.request.Request(
        f"{PLATFORM}/ballet/v1/workflows", json.dumps(wish).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=5).close()


class Desk(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/readyz":
            return self.answer(200, {})
        rows = sql("SELECT id, recipient, state, grams FROM parcels WHERE id = ?", self.path.removeprefix("/parcels/"))
        if not rows:
            return self.answer(404, {"title": "no such parcel"})
        self.answer(200, dict(zip(("id", "to", "state", "grams"), rows[0])))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "{}")
        if self.path == "/parcels":
            return self.take_in(body)
        # What the workflow asks. It may ask twice, so both do the same the second time.
        parcel, step = re.fullmatch("/parcels/([^/]+)/(label|packed)", self.path).groups()
        if step == "label":
            sql("UPDATE parcels SET state = 'labelled' WHERE id = ? AND state = 'accepted'", parcel)
            return self.answer(200, {"label": f"PARCEL {parcel.upper()}"})
        sql("UPDATE parcels SET state = 'packed', grams = ? WHERE id = ?", body["grams"], parcel)
        self.answer(200, {})

    def take_in(self, body):
        if not isinstance(body.get("to"), str):
            return self.answer(400, {"title": "`to` is missing"})
        key = self.headers.get("idempotency-key") or str(uuid.uuid4())
        parcel = uuid.uuid5(uuid.NAMESPACE_URL, key).hex[:12]
        sql("INSERT OR IGNORE INTO parcels VALUES (?, ?, 'accepted', NULL)", parcel, body["to"])
        try:
            start_workflow(parcel, body["to"])
        except OSError:
            return self.answer(503, {"title": "ask again with the same Idempotency-Key"})
        self.answer(202, {"id": parcel}, location=f"/parcels/{parcel}")

    def answer(self, status, value, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass  # The gateway's access log has it.


sql("CREATE TABLE IF NOT EXISTS parcels (id TEXT PRIMARY KEY, recipient TEXT, state TEXT, grams INTEGER)")
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Desk).serve_forever()
