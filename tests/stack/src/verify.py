"""Checks signatures with the published library of Standard Webhooks.

Reads one JSON object per line: secret, headers, body. Prints "true" or "false" for each.
"""

import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

for line in sys.stdin:
    call = json.loads(line)
    try:
        Webhook(call["secret"]).verify(call["body"], call["headers"])
        print("true")
    except WebhookVerificationError:
        print("false")
