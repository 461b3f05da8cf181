"""An S3 server for tests: moto, with everything in memory. Prints the keys of two accounts, and ends when its input does.

    s3_server.py PORT [CERTIFICATE KEY]

It knows the bucket `backups`, and checks signatures and permissions: the first account may do everything, the second may
only read.
"""

import json
import os
import sys
import threading

# Before moto is loaded: all requests are checked.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"

import moto.server
from moto.iam.models import iam_backends
from moto.s3.models import s3_backends

ACCOUNT = "123456789012"


def account(name, actions):
    iam = iam_backends[ACCOUNT]["aws"]
    iam.create_user("us-east-1", name, tags=[])
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    iam.put_user_policy(name, "policy", json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    key = iam.create_access_key(user_name=name)
    return f"{key.access_key_id} {key.secret_access_key}"


def follow_input():
    sys.stdin.read()
    os._exit(0)


class OneClaimAtATime:
    """Conditional writes one after the other: of several at the same time, moto lets more than one succeed."""

    def __init__(self, application):
        self.application = application
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        if "HTTP_IF_NONE_MATCH" not in environ:
            return self.application(environ, start_response)
        with self.lock:
            return list(self.application(environ, start_response))


def serve(host, port, application, **options):
    run_simple(host, port, OneClaimAtATime(application), **options)


run_simple, moto.server.run_simple = moto.server.run_simple, serve
print(account("writer", ["s3:*"]))
print(account("reader", ["s3:GetObject", "s3:ListBucket"]), flush=True)
s3_backends[ACCOUNT]["aws"].create_bucket("backups", "us-east-1")
threading.Thread(target=follow_input, daemon=True).start()
tls = ["--ssl-cert", sys.argv[2], "--ssl-key", sys.argv[3]] if sys.argv[2:] else []
moto.server.main(["-H", "127.0.0.1", "-p", sys.argv[1], *tls])
