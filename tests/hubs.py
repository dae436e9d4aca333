"""A server on this machine that answers as the Hugging Face hub does, so that no test needs the network."""

import contextlib
import hashlib
import http.server
import importlib.util
import json
import re
import threading
from urllib.parse import unquote

import pytest

from side_jax.errors import InputError

MAIN, OTHER = "a" * 40, "b" * 40  # commits
_API = re.compile(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/?]+))?/?(?:\?.*)?")
_FILE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/([^?]+)(?:\?.*)?")
needed = pytest.mark.skipif(not importlib.util.find_spec("huggingface_hub"), reason="needs huggingface_hub")


class Hub:
    """Repositories: (kind, OWNER/NAME) -> {commit: {file: bytes}}, and what the server was asked for.

    Attributes:
      address: of the server.
      repositories: what it serves.
      heads: {(kind, name): commit of main}.
      tags: {tag: commit}, of all repositories.
      gated, private: names of such repositories, which need the token "right".
      asked: (method, path) of each request.
      downloaded: names of the files that were sent, without .gitattributes, which every repository has.
    """

    def __init__(self):
        self.repositories, self.heads, self.gated, self.private = {}, {}, set(), set()
        self.tags = {}
        self.asked, self.downloaded = [], []
        self.address = ""

    def add(self, name, files, commit=MAIN, kind="model"):
        """A new commit, to which main moves."""
        self.repositories.setdefault((kind, name), {})[commit] = {".gitattributes": b"*.bin filter=lfs"} | files
        self.heads[kind, name] = commit

    def answer(self, method, path, token):
        """(status, headers, body)."""
        self.asked.append((method, path))
        if match := _API.fullmatch(path):
            return self._about(match[1].removesuffix("s"), match[2], match[3], unquote(match[4] or "main"), token)
        match = _FILE.fullmatch(path)
        if not match:
            return 404, {}, b"{}"
        kind, name, commit, file = "dataset" if match[1] else "model", match[2], match[3], unquote(match[4])
        if name in self.gated and token != "right":
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        content = self.repositories[kind, name][commit].get(file)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"{}"
        if method == "GET" and file != ".gitattributes":
            self.downloaded.append(file)
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}, content

    def _about(self, kind, name, what, revision, token):
        known = self.repositories.get((kind, name))
        if known is None or (name in self.private and token != "right"):
            return 401, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'
        commit = self.heads[kind, name] if revision == "main" else self.tags.get(revision, revision)
        if commit not in known:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "Invalid rev id"}'
        if what == "tree":
            files = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in known[commit].items()
            ]
            return 200, {}, json.dumps(files).encode()
        about = {"id": name, "sha": commit, "private": False, "gated": False, "disabled": False, "tags": []}
        about |= {"downloads": 0, "likes": 0, "siblings": [{"rfilename": file} for file in known[commit]]}
        return 200, {}, json.dumps(about).encode()


@contextlib.contextmanager
def serving():
    """Runs a server; yields its Hub."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self):
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            status, headers, body = hub.answer(self.command, self.path, token)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = reply

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def connect(monkeypatch, address, home, *, offline=False):
    """Lets this process ask a server; huggingface_hub reads its variables only once, when it is first imported."""
    from huggingface_hub import constants, file_download, utils

    monkeypatch.setattr(constants, "ENDPOINT", address)
    for module in (constants, file_download):  # the second in versions before 1.0
        url = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", url, raising=False)
    getattr(utils, "reset_sessions", lambda: None)()  # likewise
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


def refused(call, *words):
    """Calls, expects a refusal, looks for words in its one sentence, which is none of the hub's own; returns it."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable()
    assert text.endswith(".")
    assert not re.search(r"\. [A-Z]|Traceback|Request ID", text), text
    for word in words:
        assert word in text, text
    return text
