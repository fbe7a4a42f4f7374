"""Serves the task `pack`: asks for work, does it, tells the result. It listens nowhere.

A task that a worker took and never answered is offered again, so the work must bear being done twice.
"""

import json
import os
import time
import urllib.request

SERVER = os.environ["CONDUCTOR_SERVER_URL"]
ME = f"packer-{os.environ['BALLET_INSTANCE']}"


def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(SERVER + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def pack(work):
    print(f"packing {work['label']} for {work['to']}", flush=True)
    return {"grams": 100 + 10 * len(work["to"])}


while True:
    try:
        # Waits up to five seconds for work.
        for task in json.loads(call(f"/tasks/poll/batch/pack?workerid={ME}&count=1&timeout=5000")):
            result = {"taskId": task["taskId"], "workflowInstanceId": task["workflowInstanceId"], "workerId": ME}
            try:
                result |= {"status": "COMPLETED", "outputData": pack(task["inputData"])}
            except Exception as error:
                result |= {"status": "FAILED", "reasonForIncompletion": str(error)}
            call("/tasks", result)
    except OSError as error:
        print(f"the platform does not answer: {error}", flush=True)
        time.sleep(1)
