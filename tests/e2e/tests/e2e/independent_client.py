"""Publishes and reads by the contract alone, with the Python client: python3 independent_client.py NATS_URL.

Prints what it read as one line of JSON, for independent_client.rs to judge.
"""

import asyncio
import json
import sys

try:
    import nats
    from nats.js.errors import NotFoundError
except ImportError:
    sys.exit("nats-py is missing; install it with: cargo xtask setup")

DEADLINE = 20


async def newest(js, stream, subject, accept=lambda message: True):
    """The newest message on a subject, by direct get, as soon as there is one that is accepted."""
    while True:
        try:
            message = await js.get_last_msg(stream, subject, direct=True)
            if accept(message):
                return message
        except NotFoundError:
            pass
        await asyncio.sleep(0.02)


async def main(url):
    client = await nats.connect(url, connect_timeout=5)
    js = client.jetstream()

    created = {
        "user_id": 42,
        "username": "ann",
        "email": "ann@example.com",
        "data": {"phone": "1", "city": "Ulm"},
        "source": "python",
    }
    # The least there is: a core publish without id, type and timestamp, as `nats pub` does it.
    await client.publish("user.created", json.dumps(created).encode())
    await client.flush()
    first = await newest(js, "USER_STATE", "user.state.42")

    updated = {"id": "py-2", "type": "user.updated", "user_id": "42", "data": {"city": None}}
    headers = {"Nats-Msg-Id": "py-2"}
    ack = await js.publish("user.updated", json.dumps(updated).encode(), headers=headers)
    again = await js.publish("user.updated", json.dumps(updated).encode(), headers=headers)
    is_updated = lambda message: json.loads(message.data)["event_seq"] == ack.seq
    second = await newest(js, "USER_STATE", "user.state.42", is_updated)

    broken = b'{"user_id": 42, "user'
    refused = await js.publish("user.updated", broken)
    letter = await newest(js, "USER_REFUSED", f"user.refused.{refused.seq}")

    report = {
        "first": json.loads(first.data),
        "second": json.loads(second.data),
        "ack": {"seq": ack.seq, "again": again.seq, "duplicate": again.duplicate},
        "refused": refused.seq,
        "letter": {
            "headers": letter.headers,
            "same_bytes": letter.data == broken,
        },
    }
    print(json.dumps(report))
    await client.close()


asyncio.run(asyncio.wait_for(main(sys.argv[1]), DEADLINE))
