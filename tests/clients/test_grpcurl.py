"""The service by hand, with grpcurl."""

import json
import shlex
import subprocess

from conftest import GRPCURL

STORAGE = "accolade.v1.AchievementStorageService"


def paste(line):
    """Runs a command line as somebody who pastes it into a shell."""
    words = shlex.split(line)
    assert words[0] == "grpcurl"
    done = subprocess.run([GRPCURL, *words[1:]], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, (line, done.stderr)
    return json.loads(done.stdout)


def test_the_lines_that_the_server_prints_work_when_pasted(server):
    lines = [line.strip() for line in server.lines if line.strip().startswith("grpcurl")]
    assert len(lines) == 2
    stored = paste(lines[0])
    assert stored["code"] == 0
    assert stored["changed"] is True
    assert paste(lines[1])["entity"][0]["version"] == "1"


def test_get_prints_the_seeds_keys(server):
    request = {"title": "demo", "player_id": "10001", "node_id": "chef", "delta": 10}
    set_args = ["-emit-defaults", "-d", json.dumps(request), server.address]
    code, out, err = server.grpcurl(*set_args, f"{STORAGE}/SetAchievementStorage")
    assert code == 0, err
    entity = json.loads(out)["entity"]
    assert sorted(entity) == ["completed_at", "extra", "progress", "version"]

    request = {"title": "demo", "player_id": "10001"}
    get_args = ["-emit-defaults", "-d", json.dumps(request), server.address]
    code, out, err = server.grpcurl(*get_args, f"{STORAGE}/GetAchievementStorage")
    assert code == 0, err
    answer = json.loads(out)
    assert list(answer) == ["code", "message", "details", "entity"]
    assert (answer["code"], answer["message"], answer["details"]) == (0, "正常返回", "")
    assert list(answer["entity"][0]) == [
        "achievement_id",
        "completed_at",
        "extra",
        "max_progress",
        "progress",
        "version",
    ]
    assert answer["entity"][0]["progress"] == "10"


def test_reflection_lists_and_describes_everything(server):
    code, out, err = server.grpcurl(server.address, "list")
    assert code == 0, err
    assert {
        STORAGE,
        "accolade.v1.CompletionService",
        "accolade.v1.CatalogService",
        "grpc.health.v1.Health",
    } <= set(out.split())
    code, out, err = server.grpcurl(server.address, "describe", f"{STORAGE}.SetAchievementStorage")
    assert code == 0, err
    assert "accolade.v1.SetAchievementStorageRequest" in out


def test_health_answers_grpcurl(server):
    code, out, err = server.grpcurl(server.address, "grpc.health.v1.Health/Check")
    assert code == 0, err
    assert json.loads(out) == {"status": "SERVING"}


def test_a_mistake_is_shown_with_field_and_reason(server):
    request = {"title": "demo", "player_id": "", "node_id": "chef", "delta": "-1"}
    args = ["-d", json.dumps(request), server.address, f"{STORAGE}/SetAchievementStorage"]
    code, _, err = server.grpcurl(*args)
    assert code != 0
    for part in ["InvalidArgument", "`player_id` must not be empty", "`delta` is -1", "ErrorInfo"]:
        assert part in err
