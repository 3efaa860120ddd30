"""A server of mail, aiosmtpd, that keeps what it gets: python3 smtp.py PORT starttls|tls|none CERT KEY USER PASSWORD FILE.

Every mail becomes a line of JSON in FILE. Who isn't logged in by the password is refused, and so are recipients whose
name begins with `refused`. It prints every login that failed.
"""

import email
import email.policy
import json
import signal
import ssl
import sys

try:
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import AuthResult, LoginPassword
except ImportError:
    sys.exit("aiosmtpd isn't there; cargo xtask setup")

port, security, cert, key, user, password, file = sys.argv[1:]


class Keeper:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("refused"):
            return f"550 5.1.1 {address} is nobody here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        headers = {name.lower(): str(value) for name, value in mail.items()}
        kept = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None or security == "tls",
            "headers": headers,
            "text": mail.get_content(),
        }
        with open(file, "a") as mails:
            print(json.dumps(kept), file=mails, flush=True)
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    known = LoginPassword(user.encode(), password.encode())
    if isinstance(data, LoginPassword) and data == known:
        return AuthResult(success=True)
    print("a login failed", flush=True)
    return AuthResult(success=False, handled=False)


def context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


ways = {
    "starttls": {"tls_context": context(), "require_starttls": True, "auth_required": True},
    # It doesn't see that a connection was encrypted before it was handed over.
    "tls": {"auth_require_tls": False, "auth_required": True},
    "none": {},
}
controller = Controller(
    Keeper(),
    hostname="127.0.0.1",
    port=int(port),
    ssl_context=context() if security == "tls" else None,
    authenticator=authenticate,
    **ways[security],
)
controller.start()
print("ready", flush=True)
signal.pause()
