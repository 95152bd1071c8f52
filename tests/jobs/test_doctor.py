"""The doctor finds what is wrong, says the cure, and ends with status 1 on errors only."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.doctor import command
from pipelines import _machine_checks, _ray_checks, doctor
from pipelines._finding import Finding, rendered
from pipelines._ray import ray_session
from rayvec.errors import UserError
from rayvec.serving.config import is_loopback


def levels(findings: object) -> list[str]:
    return [finding.level for finding in findings]  # type: ignore[attr-defined]


@contextmanager
def dashboard(status: int, date: float | None = None) -> Iterator[str]:
    """An HTTP server that answers as Ray's dashboard does to one without a token."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", formatdate(date or time.time(), usegmt=True))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_this_machine_is_told_in_whole(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["--output", str(tmp_path / "new" / "out"), "--json"])
    report = json.loads(result.output)
    assert result.exit_code == (0 if report["ok"] else 1)
    told = " ".join(finding["what"] for finding in report["findings"])
    assert "can be written" in told and "GB free" in told
    assert not (tmp_path / "new").exists()
    assert all(finding["cure"] for finding in report["findings"] if finding["level"] != "note")


def test_unsafe_switches_are_errors_with_their_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_ray_checks.UNSAFE_SWITCHES[0], "1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = list(_ray_checks.switches())
    assert levels(found) == ["error", "warning"] and found[0].cure == "unset it"
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 1 and result.output.startswith("error    ") and "→ unset it" in result.output


def test_every_job_looks_before_it_starts_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_ray_checks.UNSAFE_SWITCHES[1], "true")
    with pytest.raises(UserError, match="unset it"), ray_session():
        pass


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "openai_api_key", "DB_PASSWORD", "CREDENTIALS"])
def test_a_secret_in_a_jobs_runtime_environment_stops_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = ("TOKENIZERS_PARALLELISM", "MAX_TOKENS", "RAY_AUTH_TOKEN_PATH", "HF_TOKEN_PATH", "KEYS")
    variables = {**dict.fromkeys(harmless, "canary"), name: "canary", "PASSWORD": ""}
    monkeypatch.setenv(_ray_checks.JOB_CONFIG, json.dumps({"runtime_env": {"env_vars": variables}, "metadata": {}}))
    with (
        pytest.raises(UserError, match=rf"^{name} is in the job's runtime environment.* a file ") as raised,
        ray_session(),
    ):
        pass
    assert "canary" not in str(raised.value)
    assert len(list(_ray_checks.secrets())) == 1


@pytest.mark.parametrize("job", ["", "{}", '{"runtime_env": null}', '{"runtime_env": {"working_dir": "."}}'])
def test_a_job_without_secrets_goes_on(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_ray_checks.JOB_CONFIG, job)
    assert list(_ray_checks.secrets()) == []


def test_an_old_ray_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(_ray_checks.ray_version()) == []
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.55.1")
    assert levels(_ray_checks.ray_version()) == ["error"]


def test_libraries_out_of_bounds_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["click>=99", "no-such-library>=1", "pyyaml>=5", "mteb>=9999; extra == 'eval'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: wanted)
    assert [finding.what.split()[0] for finding in _machine_checks.versions()] == ["click", "no-such-library"]


@pytest.mark.parametrize(("version", "found"), [("1.15.1", []), ("1.7.2", ["faiss-gpu 1.7.2 is outside <2,>=1.15"])])
def test_faiss_for_gpus_does_in_place_of_that_for_cpus(
    version: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> str:
        if name == "faiss-gpu":
            return version
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["faiss-cpu>=1.15,<2"])
    monkeypatch.setattr("importlib.metadata.version", installed)
    findings = list(_machine_checks.versions())
    assert [finding.what for finding in findings] == found
    assert all("'faiss-gpu<2,>=1.15'" in finding.cure for finding in findings)


@pytest.mark.parametrize(("status", "level"), [(200, "warning"), (401, "note")])
def test_a_job_api_without_a_token_is_found(status: int, level: str) -> None:
    with dashboard(status) as address:
        assert levels(_ray_checks.authentication(address)) == [level]


def test_a_clock_that_is_off_is_found() -> None:
    with dashboard(401, date=time.time() - 3600) as address:
        (_, off) = _ray_checks.authentication(address)
    assert off.level == "warning" and " -36" in off.what


def test_nobody_at_the_address_is_an_error() -> None:
    assert levels(_ray_checks.authentication("http://127.0.0.1:1")) == ["error"]


def test_a_storage_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = _machine_checks.storage_works(str(tmp_path / "file" / "below"))
    assert found.level == "error" and found.cure


def test_a_token_that_others_can_read_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.chmod(0o644)
    assert levels(_ray_checks.token_file()) == ["warning"]
    token.chmod(0o600)
    assert levels(_ray_checks.token_file()) == []


def test_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 100e9, "free": 4e9})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert set(levels(_machine_checks.disks([str(tmp_path)]))) == {"error"}
    usage.free = 8e9  # type: ignore[attr-defined]
    assert set(levels(_machine_checks.disks([str(tmp_path)]))) == {"warning"}
    usage.free = 1e9  # type: ignore[attr-defined]
    assert levels(_machine_checks.shared_memory(str(tmp_path))) == ["warning"]


def test_errors_come_first_and_name_their_node() -> None:
    text = rendered([Finding("note", "b"), Finding("error", "a", "cure it", node="10.0.0.7")])
    assert text == "error    10.0.0.7: a\n         → cure it\nnote     b"


def test_the_quick_look_is_quick() -> None:
    """It stands before every job: no torch, no network."""
    import subprocess

    code = (
        "import sys; from pipelines._ray_checks import quick; quick(); "
        "print([m for m in ('torch', 'ray', 'httpx') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.cluster
def test_a_ray_that_is_joined_asks_for_a_token(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster of the tests does; what the dashboard answers to one without a token counts for more."""
    import ray

    assert levels(_ray_checks.joined("")) == []
    for status in (401, 502):
        with dashboard(status) as address:
            assert levels(_ray_checks.joined(address.removeprefix("http://"))) == []
    with dashboard(200) as address:
        place = address.removeprefix("http://")
        at_home = is_loopback(ray.util.get_node_ip_address())
        assert levels(_ray_checks.joined(place)) == ["warning" if at_home else "error"]
        monkeypatch.setenv(_ray_checks.ALLOW_OPEN, "1")
        assert levels(_ray_checks.joined(place)) == ["warning"]
        monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "NodeManagerAddress": "127.0.0.1"}])
        (found,) = _ray_checks.joined(place)
        assert found.level == "warning" and "this machine" in found.what


@pytest.mark.cluster
def test_every_node_answers_for_itself(ray_cluster: None) -> None:
    import ray

    found = doctor.on_every_node([])
    assert {finding.node for finding in found} == {node["NodeManagerAddress"] for node in ray.nodes()}
