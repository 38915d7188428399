"""The hub's client, tested with a local server for a part of the hub's protocol."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import torch

from ssl_vivit import VideoClassifier, create_encoder, load_encoder
from ssl_vivit.encoders.vivit import ENCODER
from ssl_vivit.errors import HubError
from ssl_vivit.exported.hub import locate

SETTINGS = {
    "num_frames": 8,
    "image_size": (32, 48),
    "tubelet_size": (4, 16, 16),
    "embed_dim": 48,
    "spatial_depth": 1,
    "temporal_depth": 1,
}
TOKEN = "hf_stub"


class StubHub(ThreadingHTTPServer):
    """A server with models as branch → file name → bytes; every commit is stored under its hash."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.commits, self.fetched = {}, {}, []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def sha(self, model, revision):
        """Return the commit of a revision of a model, or None."""
        if revision in self.commits:
            return revision
        files = self.models[model].get(revision)
        if files is None:
            return None
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[digest] = dict(files)
        return digest


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code, status=404):
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def do_POST(self):
        hub = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse("Unauthorized", 401)
        if path == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if path == ["api", "repos", "create"]:
            request = json.loads(body)
            name = f"{request['organization']}/{request['name']}"
            known = name in hub.models
            hub.models.setdefault(name, {"main": {}})
            return self.answer({"url": f"{hub.endpoint}/{name}"}, 409 if known else 200)
        model, action, revision = "/".join(path[2:4]), path[4], path[5]
        branches = hub.models[model]
        if action == "branch":
            known = revision in branches
            branches.setdefault(revision, dict(branches["main"]))
            return self.answer({}, 409 if known else 200)
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": name} | regular for name in names]})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                branches[revision][entry["value"]["path"]] = content
            elif entry["key"] == "deletedFile":
                del branches[revision][entry["value"]["path"]]
        sha = hub.sha(model, revision)
        url = f"{hub.endpoint}/{model}/commit/{sha}"
        return self.answer({"success": True, "commitUrl": url, "commitOid": sha})

    def do_GET(self):
        hub = self.server
        path = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        if path[:2] == ["api", "models"]:
            path = path[2:]
        model = "/".join(path[:2])
        action, revision, *file = path[2:] or ["revision", "main"]
        if model == "org/private":
            return self.refuse("RepoNotFound", 401)
        if model == "org/gated":
            return self.refuse("GatedRepo", 403)
        if model == "org/blocked":
            return self.refuse("Blocked", 403)
        if model not in hub.models:
            return self.refuse("RepoNotFound")
        sha = hub.sha(model, revision)
        if sha is None:
            return self.refuse("RevisionNotFound")
        files = hub.commits[sha]
        oids = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
        if action == "revision":
            siblings = [{"rfilename": name} for name in files]
            return self.answer({"id": model, "sha": sha, "siblings": siblings})
        if action == "tree":
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": oids[name]}
                for name, content in files.items()
            ]
            return self.answer(rows)
        (name,) = file
        if self.command == "GET":
            hub.fetched.append(name)
        return self.answer(files[name], ETag=f'"{oids[name]}"', X_Repo_Commit=sha)

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def hub():
    server = StubHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


def run(script, endpoint, cache, folder, **environment):
    """Run a script in a new process, since the client reads its settings at import; return its JSON."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    prelude = f"""
import json, torch
from pathlib import Path
from ssl_vivit import create_encoder, load_encoder
from ssl_vivit.encoders.classifier import VideoClassifier
load_classifier = VideoClassifier.from_pretrained
def push_to_hub(model, *arguments, **options):
    return model.push_to_hub(*arguments, **options)
report = {{}}
def refusal(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
encoder = create_encoder("vivit_tiny", **{SETTINGS!r})
encoder.preprocessing = {{"mean": [0.5], "std": [0.2]}}
"""
    script = prelude + script + "\nprint(json.dumps(report))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report(hub, cache, tmp_path_factory):
    hub.models["org/pickled"] = {"main": {"pytorch_model.bin": b"\x80", "config.json": b"{}"}}
    script = """
report["url"] = encoder.push_to_hub("org/encoder", card={"objective": "SimCLR"})
loaded = load_encoder("org/encoder")
report["same"] = same(encoder, loaded) and loaded.preprocessing == encoder.preprocessing
model = VideoClassifier(encoder, num_classes=5)
push_to_hub(model, "org/encoder", revision="labelled", private=True)
report["same head"] = same(model, load_classifier("org/encoder", revision="labelled"))
report["adapted"] = list(load_encoder("org/encoder", num_frames=16).config.grid)
report["main"] = refusal(load_classifier, "org/encoder")
import timm
report["timm"] = same(VideoClassifier(encoder, 0), timm.create_model("hf-hub:org/encoder", True))
cached = timm.create_model("hf-hub:org/encoder", True, cache_dir="mine")
report["timm cache"] = [same(VideoClassifier(encoder, 0), cached), sorted(
    path.name for path in Path("mine").rglob("snapshots/*/*")
)]
report["timm head"] = same(model, timm.create_model("hf-hub:org/encoder@labelled", True))
push_to_hub(encoder, "org/encoder", revision="labelled")
report["missing"] = refusal(load_encoder, "org/missing")
report["private"] = refusal(load_encoder, "org/private")
report["gated"] = refusal(load_encoder, "org/gated")
report["blocked"] = refusal(load_encoder, "org/blocked")
report["revision"] = refusal(load_encoder, "org/encoder", revision="v9")
report["name"] = refusal(load_encoder, "org/two--dashes")
report["pickled"] = refusal(load_encoder, "org/pickled")
report["unauthorised"] = refusal(push_to_hub, encoder, "org/other", token="hf_wrong")
report["no name"] = refusal(push_to_hub, encoder, "a/b/c")
encoder.save_pretrained("org/local")
report["local"] = same(encoder, load_encoder("org/local"))
report["local revision"] = refusal(load_encoder, "org/local", revision="main")
"""
    return run(script, hub.endpoint, cache, tmp_path_factory.mktemp("work"))


def test_what_was_pushed_loads_bit_for_bit(report, hub):
    assert report["same"]
    assert report["same head"]
    assert report["adapted"] == [4, 2, 3]
    files = hub.models["org/encoder"]["main"]
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert b"| objective | SimCLR |" in files["README.md"]
    assert report["url"].startswith(f"{hub.endpoint}/org/encoder/commit/")


def test_a_revision_is_a_branch_of_its_own(report, hub):
    kind, message = report["main"]
    assert (kind, "contains an encoder without a classifier" in message) == ("ExportError", True)
    # an encoder was pushed over the classifier at last: its head went with it
    assert set(hub.models["org/encoder"]["labelled"]) == set(hub.models["org/encoder"]["main"])


def test_timm_opens_what_was_pushed(report):
    assert report["timm"]
    assert report["timm head"]
    assert report["timm cache"] == [True, ["README.md", "config.json", "model.safetensors"]]


def test_a_directory_wins_over_the_hub(report):
    assert report["local"]
    assert report["local revision"][1].startswith("revision 'main' applies to models on the hub")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "there is no directory org/missing, and it cannot be loaded from the hub: "),
        ("missing", "no such model is visible to this account; check the path"),
        ("private", "check the path or name, or log in with `hf auth login`"),
        ("gated", "access is restricted; request it at"),
        ("blocked", "loaded from the hub: the hub refuses this account (403)"),
        ("revision", "the hub's model of that name has no revision 'v9'"),
        ("name", "loaded from the hub: it is not a valid name on the hub"),
        ("unauthorised", "org/other could not be pushed: the hub refuses this account (401)"),
        ("no name", "a/b/c could not be pushed: it is not a valid name on the hub"),
    ],
)
def test_refusals_are_one_line(report, case, message):
    kind, text = report[case]
    assert kind == "HubError"
    assert message in text
    assert "\n" not in text


def test_nothing_that_could_execute_is_fetched(report, hub):
    assert report["pickled"][0] == "MissingError"
    assert "model.safetensors is missing" in report["pickled"][1]
    assert "config.json" in hub.fetched
    assert "pytorch_model.bin" not in hub.fetched


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_connection_the_cache_answers(report, hub, cache, tmp_path, offline):
    script = """
report["cached"] = list(load_encoder("org/encoder").config.grid)
report["new"] = refusal(load_encoder, "runs/typo")
report["push"] = refusal(push_to_hub, encoder, "org/encoder")
"""
    nobody = "http://127.0.0.1:9"
    report = run(script, nobody, cache, tmp_path, HF_HUB_OFFLINE=offline)
    assert report["cached"] == [2, 2, 3]
    kind, text = report["new"]
    assert kind == "HubError"
    assert text.startswith(
        "there is no directory runs/typo, and it cannot be loaded from the hub: the hub at "
        "http://127.0.0.1:9 cannot be reached"
    )
    assert "check the path, the connection and HF_HUB_OFFLINE" in text
    assert report["push"][0] == "HubError"
    assert not any("\n" in text for _, text in (report["new"], report["push"]))


def test_only_plain_names_go_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # elsewhere a run may have left runs/demo/encoder
    for path in (tmp_path / "none", "./org/name", "runs/demo/encoder", "../x", "encoder"):
        assert locate(path, ENCODER) == Path(path)
        said = "is no exported encoder: there is no such directory"
        with pytest.raises(FileNotFoundError, match=said):
            load_encoder(path)


def test_an_encoder_that_is_pushed_over_a_classifier_removes_its_head(monkeypatch):
    commits = []

    def upload_folder(**given):
        names = {file.name for file in given["folder_path"].iterdir()}
        commits.append((names, given["delete_patterns"]))
        return SimpleNamespace(commit_url="url")

    api = SimpleNamespace(create_repo=lambda *_, **__: None, upload_folder=upload_folder)
    monkeypatch.setattr("ssl_vivit.exported.hub.HfApi", lambda token: api)
    encoder = create_encoder("vivit_tiny", **SETTINGS)
    files = {"model.safetensors", "config.json", "README.md"}
    for model in (encoder, VideoClassifier(encoder, 3)):
        assert model.push_to_hub("org/name") == "url"
    assert commits == [
        (files, ["classifier.safetensors"]),
        (files | {"classifier.safetensors"}, []),
    ]


def test_a_saved_directory_needs_no_hub(tmp_path):
    encoder = create_encoder("vivit_tiny", **SETTINGS)
    encoder.save_pretrained(tmp_path / "encoder")
    assert torch.equal(load_encoder(tmp_path / "encoder").tubelets.weight, encoder.tubelets.weight)


def test_a_mistyped_directory_gets_the_name_of_a_similar_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo" / "encoder").mkdir(parents=True)

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("ssl_vivit.exported.hub.snapshot_download", unreachable)
    with pytest.raises(
        HubError, match=r"^there is no directory runs/dmo \(did you mean runs/demo\?\), and it"
    ):
        locate("runs/dmo", ENCODER)
    with pytest.raises(HubError, match=r"^there is no directory org/dmo, and it"):
        locate("org/dmo", ENCODER)
    with pytest.raises(
        FileNotFoundError, match=r"no such directory \(did you mean runs/demo/encoder\?\);"
    ):
        load_encoder("runs/demo/encodr")
