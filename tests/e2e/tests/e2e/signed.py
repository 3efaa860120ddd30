"""Publishes events signed by the published library of Standard Webhooks: python3 signed.py URL.

Every line of the standard input is a request: {"secret", "body", "id", "age", "send": {"body", "id", "age"}}, where `send`
overrides what goes out after it was signed. Its status and answer are a line of the output. A line
{"stream": SECRET_FILE, "stop": FILE, "user": 7} publishes one event after the other, each signed by what the file holds
then, until the other file is there, and answers how many times each status came.
"""

import collections
import datetime
import json
import os
import pathlib
import sys
import urllib.error
import urllib.request

try:
    from standardwebhooks import Webhook
except ImportError:
    sys.exit("standardwebhooks isn't there; cargo xtask setup")


def call(url, case):
    sent = {**case, **case.get("send", {})}
    # One time for both: what is signed in one second and sent in the next is no good.
    now = datetime.datetime.now(datetime.timezone.utc)

    def at(of):
        return now - datetime.timedelta(seconds=of.get("age", 0))

    secrets = case["secret"] if isinstance(case["secret"], list) else [case["secret"]]
    signed = [Webhook(secret).sign(case["id"], at(case), case["body"]) for secret in secrets]
    headers = {
        "content-type": "application/json",
        "webhook-id": sent["id"],
        "webhook-timestamp": str(int(at(sent).timestamp())),
        "webhook-signature": " ".join(signed),
    }
    request = urllib.request.Request(url, sent["body"].encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def stream(url, case):
    statuses = collections.Counter()
    while not os.path.exists(case["stop"]):
        number = sum(statuses.values())
        secret = pathlib.Path(case["stream"]).read_text()
        body = json.dumps({"type": "user.updated", "user_id": case["user"], "data": {"n": number}})
        status, _ = call(url, {"secret": secret, "body": body, "id": f"msg_{number}"})
        statuses[status] += 1
    return statuses


for line in sys.stdin:
    case = json.loads(line)
    answer = stream(sys.argv[1], case) if "stream" in case else call(sys.argv[1], case)
    print(json.dumps(answer), flush=True)
