"""A service that speaks HTTPS and lets nobody in without a certificate of its authority.

Arguments: its certificate, its key, the authority. Prints its port, then the subject of everybody who called.
"""

import http.server
import ssl
import sys


class Service(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        subject = self.connection.getpeercert()["subject"]
        print(subject[0][0][1], flush=True)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


certificate, key, authority = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
context.load_verify_locations(authority)
context.verify_mode = ssl.CERT_REQUIRED
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
