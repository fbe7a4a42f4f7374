#!/usr/bin/env python3
"""A service for the tests, in the standard library only: answers on $PORT, remembers what it was asked.

GET /readyz        200
GET /env           its environment
GET /who           name, instance, pid
GET /calls         method, path and JSON body of every other request, in their order
…/refused          409, remembered too
anything else      200 with {"by": NAME, "n": HOW MANY SO FAR}

Words: `say TEXT` prints a line first; `grandchild FILE` starts a child that leaves the process group, ignores TERM and
has a child itself, and writes all pids to FILE.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

CALLS = []
LOCK = threading.Lock()
NAME = os.environ["APP_ID"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        path = self.path.split("?")[0]
        if path == "/readyz":
            return self.send(200, {})
        if path == "/env":
            return self.send(200, dict(os.environ))
        if path.startswith("/dapr/"):
            # The sidecar asks whether there are subscriptions.
            return self.send(404, {})
        if path == "/who":
            return self.send(200, {"service": NAME, "instance": os.environ["BALLET_INSTANCE"], "pid": os.getpid()})
        with LOCK:
            if path == "/calls":
                return self.send(200, CALLS)
            CALLS.append({"method": self.command, "path": self.path, "body": json.loads(body) if body else None})
            self.send(409 if path.endswith("/refused") else 200, {"by": NAME, "n": len(CALLS)})

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def send(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self):
        # HTTPServer's own asks the resolver for the host's name, which may take seconds.
        TCPServer.server_bind(self)


def grandchild(file):
    script = "trap '' TERM; sleep 600 & echo $$ $! > $0.new; mv $0.new $0; wait"
    subprocess.Popen(["sh", "-c", script, file], start_new_session=True)


def main(words):
    while words:
        word, value, *words = words
        if word == "say":
            print(value, flush=True)
        elif word == "grandchild":
            grandchild(value)
    Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()


main(sys.argv[1:])
