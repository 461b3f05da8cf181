"""A Swift server for tests: OpenStack Swift with one replica, all of its servers in one process. Ends when its input does.

    swift_server.py FOLDER PORT TOKEN_LIFE
    swift_server.py FOLDER PORT --keystone URL TOKEN ACCOUNT

Logins are those of version 1: test:writer with the key `writer-secret`, who owns everything, and test:reader with the key
`reader-secret`. There is the container `backups`, which the reader may read. Tokens live for TOKEN_LIFE seconds. The server
also speaks S3, with the same users and keys.

With --keystone, users and tokens are those of the Keystone at the URL. The token is one of the user `admin`; the account is
that of the project `admin`.
"""

import os
import sys
from time import time as now

import eventlet
import eventlet.tpool
import eventlet.wsgi

eventlet.monkey_patch(all=False, socket=True, select=True, thread=True)

from swift.account.server import AccountController
from swift.common import utils
from swift.common.middleware.catch_errors import CatchErrorMiddleware
from swift.common.middleware.listing_formats import ListingFilter
from swift.common.middleware.s3api.s3api import S3ApiMiddleware
from swift.common.middleware.tempauth import TempAuth
from swift.common.ring import RingBuilder
from swift.common.swob import Request
from swift.container.server import ContainerController
from swift.obj.server import ObjectController
from swift.proxy.server import Application


class Cache:
    """Stands in for memcached."""

    def __init__(self):
        self.values = {}

    def get(self, key, **_):
        value, until = self.values.get(key, (None, None))
        return None if until and until < now() else value

    def set(self, key, value, time=0, **_):
        self.values[key] = (value, time and now() + time)

    def incr(self, key, delta=1, time=0, **_):
        value = int(self.get(key) or 0) + delta
        self.set(key, value, time=time)
        return value

    def decr(self, key, delta=1, time=0, **_):
        return self.incr(key, -delta, time)

    def delete(self, key, **_):
        self.values.pop(key, None)


def with_cache(app):
    cache = Cache()

    def call(env, start_response):
        env["swift.cache"] = cache
        return app(env, start_response)

    return call


def listen(port=0):
    return eventlet.listen(("127.0.0.1", port))


def serve(listener, app):
    log = open(os.devnull, "w")
    eventlet.spawn(eventlet.wsgi.server, listener, app, log, max_size=1000, log_output=False, keepalive=30)


def with_tempauth(app):
    users = {"user_test_writer": "writer-secret .admin", "user_test_reader": "reader-secret", "token_life": sys.argv[3]}
    return S3ApiMiddleware(TempAuth(app, {**shared, **users}), shared)


def with_keystone(app):
    from keystonemiddleware.auth_token import AuthProtocol
    from swift.common.middleware.keystoneauth import KeystoneAuth

    url = sys.argv[4]
    login = {"username": "admin", "password": "admin-secret", "project_name": "admin"}
    domains = {"user_domain_id": "default", "project_domain_id": "default"}
    # Revoked tokens end after a second.
    cache = {"cache": "swift.cache", "token_cache_time": "1"}
    settings = {**cache, "delay_auth_decision": "true", "service_type": "object-store"}
    conf = {"auth_url": url, "www_authenticate_uri": url, "auth_type": "password", **login, **domains, **settings}
    return AuthProtocol(KeystoneAuth(app, {**shared, "operator_roles": "admin"}), conf)


folder, port = sys.argv[1], int(sys.argv[2])
utils.HASH_PATH_SUFFIX = b"test"
os.makedirs(f"{folder}/disk/d1")
# Containers are updated before an upload is answered, however busy the machine is.
shared = {
    "devices": f"{folder}/disk",
    "mount_check": "false",
    "swift_dir": folder,
    "recon_cache_path": folder,
    "log_address": "/nonexistent",
    "disable_fallocate": "true",
    "conn_timeout": "60",
    "node_timeout": "60",
    "recoverable_node_timeout": "60",
    "container_update_timeout": "60",
}
controllers = {"account": AccountController, "container": ContainerController, "object": ObjectController}
for kind, controller in controllers.items():
    listener = listen()
    builder = RingBuilder(4, 1, 1)
    builder.add_dev(
        {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": listener.getsockname()[1], "device": "d1", "weight": 1}
    )
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{kind}.ring.gz")
    serve(listener, controller(shared))

proxy = Application({**shared, "account_autocreate": "true", "allow_account_management": "true"})
has_keystone = sys.argv[3] == "--keystone"
guarded = (with_keystone if has_keystone else with_tempauth)(proxy)
app = CatchErrorMiddleware(with_cache(ListingFilter(guarded, shared)), shared)


def ask(method, path, headers):
    answer = Request.blank(path, environ={"REQUEST_METHOD": method}, headers=headers).get_response(app)
    if answer.status_int // 100 != 2:
        sys.exit(f"{method} {path}: {answer.status} {answer.body}")
    return answer


if has_keystone:
    token, account = sys.argv[5:]
else:
    login = ask("GET", "/auth/v1.0", {"X-Auth-User": "test:writer", "X-Auth-Key": "writer-secret"})
    token, account = login.headers["X-Auth-Token"], "AUTH_test"
ask("PUT", f"/v1/{account}/backups", {"X-Auth-Token": token, "X-Container-Read": "test:reader"})
serve(listen(port), app)
print("ready", flush=True)
eventlet.tpool.execute(sys.stdin.read)
os._exit(0)
