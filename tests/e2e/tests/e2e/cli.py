"""Runs every command of docs/CLI.md as the request it is on the wire: python3 cli.py NATS_URL < CLI.md.

Prints one line of JSON, [{"line", "answer"}], for control/cli.rs to judge. A command that it doesn't know,
or that fails, ends it.
"""

import asyncio
import datetime
import json
import re
import shlex
import sys

try:
    import nats
except ImportError:
    sys.exit("nats-py is missing; install it with: cargo xtask setup")

DEADLINE = 20


def commands(text):
    """The lines of the fenced blocks, and nothing else."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        yield from filter(None, map(str.strip, block.splitlines()))


class Wire:
    def __init__(self, client):
        self.client, self.js, self.known = client, client.jetstream(), {}

    async def request(self, subject, body=b""):
        answer = await self.client.request(subject, body, timeout=5)
        headers = answer.headers or {}
        if "Nats-Service-Error-Code" in headers:
            sys.exit(f"{subject}: {headers}")
        answer = json.loads(answer.data)
        if "error" in answer and subject.startswith("$JS"):
            sys.exit(f"{subject}: {answer['error']}")
        return answer

    async def all(self, subject):
        """What several services answer."""
        inbox = self.client.new_inbox()
        answers = await self.client.subscribe(inbox)
        await self.client.publish(subject, b"", reply=inbox)
        found = []
        try:
            while True:
                found.append(json.loads((await answers.next_msg(timeout=0.5)).data))
        except nats.errors.TimeoutError:
            return found

    async def taken_in(self):
        while True:
            info = await self.request("$JS.API.CONSUMER.INFO.USER_EVENTS.gateway-intake")
            if info["num_pending"] == 0 and info["num_ack_pending"] == 0:
                return
            await asyncio.sleep(0.02)

    async def checked(self, subject):
        """The first check of a target takes a moment."""
        while True:
            try:
                await self.js.get_last_msg("USER_CHECK", subject)
                return
            except nats.js.errors.NotFoundError:
                await asyncio.sleep(0.02)

    def learn(self, answer):
        """What later commands stand for: JOB, SEQ, WORKER."""
        if not isinstance(answer, dict):
            return
        if answer.get("job"):
            self.known["JOB"] = answer["job"]["id"]
        for event in answer.get("refused_events", [])[:1]:
            self.known["SEQ"] = str(event["seq"])
        for breaker in answer.get("breakers", [])[:1]:
            if "worker" in breaker:
                self.known["WORKER"] = breaker["worker"]

    async def run(self, line):
        for name, value in self.known.items():
            line = re.sub(rf"\b{name}\b", value, line)
        words = shlex.split(line)
        force = "--force" in words
        words = [word for word in words if word != "--force"]
        match words:
            case ["nats", "req", subject, body]:
                answer = await self.request(subject, body.encode())
            case ["nats", "pub", subject, body]:
                ack = await self.js.publish(subject, body.encode())
                answer = {"seq": ack.seq}
                await self.taken_in()
                if subject.startswith("user.check."):
                    await self.checked(subject.replace("check", "check.result"))
            case ["nats", "sub", subject]:
                answer = await self.watch(subject)
            case ["nats", "micro", "ls"]:
                answer = await self.all("$SRV.PING")
            case ["nats", "micro", ("info" | "stats") as verb, name]:
                answer = await self.all(f"$SRV.{verb.upper()}.{name}")
            case ["nats", "kv", verb, bucket, *rest]:
                answer = await self.kv(verb, await self.js.key_value(bucket), rest)
            case ["nats", "stream", "get", stream, "--last-for", subject]:
                message = await self.js.get_last_msg(stream, subject)
                answer = json.loads(message.data)
            case ["nats", "stream", "ls"]:
                answer = await self.request("$JS.API.STREAM.NAMES")
            case ["nats", "stream", "info", stream]:
                answer = await self.request(f"$JS.API.STREAM.INFO.{stream}")
            case ["nats", "stream", "subjects", stream]:
                body = json.dumps({"subjects_filter": ">"}).encode()
                answer = await self.request(f"$JS.API.STREAM.INFO.{stream}", body)
            case ["nats", "consumer", "info", stream, consumer]:
                answer = await self.request(f"$JS.API.CONSUMER.INFO.{stream}.{consumer}")
            case ["nats", "consumer", "pause", stream, consumer, hours] if force:
                length = datetime.timedelta(hours=int(hours.removesuffix("h")))
                until = datetime.datetime.now(datetime.timezone.utc) + length
                body = json.dumps({"pause_until": until.isoformat()}).encode()
                answer = await self.request(f"$JS.API.CONSUMER.PAUSE.{stream}.{consumer}", body)
            case ["nats", "consumer", "resume", stream, consumer] if force:
                answer = await self.request(f"$JS.API.CONSUMER.PAUSE.{stream}.{consumer}")
            case _:
                sys.exit(f"no test runs this command: {line}")
        self.learn(answer)
        return answer

    async def kv(self, verb, bucket, rest):
        match [verb, *rest]:
            case ["get", key]:
                return json.loads((await bucket.get(key)).value)
            case ["put", key, value]:
                return await bucket.put(key, value.encode())
            case ["del", key]:
                return await bucket.delete(key)
            case ["ls"]:
                return await bucket.keys()
            case ["history", key]:
                return await self.history(f"$KV.{bucket._name}.{key}")
            case ["watch"]:
                watch = await bucket.watchall()
                first = await watch.updates(timeout=5)
                await watch.stop()
                return first.key
        sys.exit(f"no test runs nats kv {verb} {rest}")

    async def history(self, subject):
        """How many values a key has had."""
        values = await self.js.subscribe(subject, ordered_consumer=True)
        count, left = 0, 1
        while left:
            left = (await values.next_msg(timeout=5)).metadata.num_pending
            count += 1
        await values.unsubscribe()
        return count

    async def watch(self, subject):
        """Subscribes, and waits for a message where a change of a user must bring one."""
        seen = await self.client.subscribe(subject)
        await self.client.flush()
        if subject not in ("user.>", "user.result.>"):
            return "subscribed"
        changed = {"user_id": 42, "data": {"watched": subject}}
        await self.js.publish("user.updated", json.dumps(changed).encode())
        message = await seen.next_msg(timeout=10)
        await seen.unsubscribe()
        return message.subject


async def main(url, text):
    client = await nats.connect(url, connect_timeout=5)
    wire = Wire(client)
    answers = []
    for line in commands(text):
        try:
            answer = await asyncio.wait_for(wire.run(line), DEADLINE)
        except Exception as error:
            sys.exit(f"{line}: {error!r}")
        answers.append({"line": line, "answer": answer})
    print(json.dumps(answers))
    await client.close()


asyncio.run(main(sys.argv[1], sys.stdin.read()))
