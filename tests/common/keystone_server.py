"""A Keystone for tests. Ends when its input does.

    keystone_server.py FOLDER PORT TOKEN_LIFE

The folder is new, or that of another Keystone, whose users and tokens this one knows, too. Tokens live for TOKEN_LIFE seconds.
The user `admin` with the password `admin-secret` may do everything in the project `admin`.
"""

import os
import subprocess
import sys
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

folder, port, life = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# Keystone would read them.
sys.argv[1:] = []
os.environ.update(PYTHONWARNINGS="ignore", OS_KEYSTONE_CONFIG_DIR=folder, OS_KEYSTONE_CONFIG_FILES=f"conf-{life}")
url = f"http://127.0.0.1:{port}/v3"
is_new = not os.path.exists(f"{folder}/keystone.db")
with open(f"{folder}/conf-{life}", "w") as configuration:
    configuration.write(f"""[DEFAULT]
log_file = {folder}/log
[database]
connection = sqlite:///{folder}/keystone.db
[token]
expiration = {life}
[fernet_tokens]
key_repository = {folder}/fernet
[credential]
key_repository = {folder}/credential
[identity]
password_hash_rounds = 4
""")

if is_new:
    user = ["--keystone-user", "root", "--keystone-group", "root"]
    urls = [f"--bootstrap-{kind}-url={url}" for kind in ("public", "internal", "admin")]
    for command in (
        ["db_sync"],
        ["fernet_setup", *user],
        ["credential_setup", *user],
        ["bootstrap", "--bootstrap-password=admin-secret", "--bootstrap-region-id=identity", *urls],
    ):
        manage = [f"{os.path.dirname(sys.executable)}/keystone-manage", "--config-file", f"{folder}/conf-{life}", *command]
        done = subprocess.run(manage, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            sys.exit(f"{manage}: {done.stdout}")

from keystone.wsgi.api import application


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Silent(WSGIRequestHandler):
    def log_message(self, *_):
        pass


server = make_server("127.0.0.1", port, application, Server, Silent)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
