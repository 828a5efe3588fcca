"""Every grpcurl and curl line of the READMEs, run as it stands there."""

import itertools
import json
import os
import pathlib
import shlex
import subprocess
import threading
import time

import pytest

from conftest import BINARY, GRPCURL, ROOT


# And how many commands each has at least.
READMES = {"README.md": 12, "README.zh-CN.md": 3}


def commands(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    blocks = text.split("```sh\n")[1:]
    lines = "\n".join(block.split("```")[0] for block in blocks).replace("\\\n", " ")
    lines = lines.replace('"$(date +%s)"', str(int(time.time())))
    return [line for line in lines.splitlines() if line.startswith(("grpcurl ", "curl "))]


def first_message(words):
    """What a stream tells first; then it is left."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as streaming:
        watchdog = threading.Timer(60, streaming.kill)
        watchdog.start()
        try:
            lines = iter(streaming.stdout.readline, "")
            return "".join(itertools.takewhile(lambda line: line != "}\n", lines)) + "}"
        finally:
            streaming.kill()
            watchdog.cancel()


@pytest.mark.parametrize("readme", READMES)
def test_every_command_of_a_readme_works(server, readme):
    found = commands(readme)
    assert len(found) >= READMES[readme], found
    for line in found:
        assert "127.0.0.1:50151" in line
        words = shlex.split(line.replace("127.0.0.1:50151", server.address))
        if words[0] == "curl":
            done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
            assert json.loads(done.stdout)["code"] == 0, (line, done.stdout)
            continue
        streams = ("/WatchCompletions", "/ConsumeCompletions")
        is_stream = any(word.endswith(streams) for word in words)
        if is_stream:
            assert "started" in json.loads(first_message([GRPCURL, *words[1:]])), line
        else:
            done = subprocess.run([GRPCURL, *words[1:]], capture_output=True, text=True, timeout=30)
            assert done.returncode == 0, (line, done.stderr)


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_names_no_file_that_is_not_there(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    linked = [part.split(")")[0] for part in text.split("](")[1:]]
    files = [link for link in linked if not link.startswith(("http", "#"))]
    missing = [link for link in files if not pathlib.Path(ROOT, link.split("#")[0]).exists()]
    assert not missing


def test_the_program_in_rust_is_the_one_of_the_readme_and_runs(server):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("```rust,no_run\n")[1].split("```")[0]
    code = (ROOT / "examples" / "first_steps.rs").read_text(encoding="utf-8")
    assert code.split("\n", 2)[2] == block
    program = ROOT / "target" / "debug" / "examples" / "first_steps"
    environment = {**os.environ, "ACCOLADE_SERVER": f"http://{server.address}"}
    finish = [BINARY, "set", "demo", "7", "craft", "--finish"]
    subprocess.run(finish, env=environment, stdout=subprocess.DEVNULL, timeout=30, check=True)
    with subprocess.Popen([program], env=environment, stdout=subprocess.PIPE, text=True) as running:
        watchdog = threading.Timer(60, running.kill)
        watchdog.start()
        try:
            said = running.stdout.readline()
            assert said.startswith("newly completed: "), said
            told = running.stdout.readline().split()
            assert told[:2] == ["7", "craft"] and len(told) == 3, told
        finally:
            running.kill()
            watchdog.cancel()
