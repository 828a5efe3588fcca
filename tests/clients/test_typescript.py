"""The TypeScript package: its own tests on the real server, and the example of its README."""

import json
import os
import re
import shutil
import subprocess
import threading

import pytest

from conftest import ROOT, Server

PACKAGE = ROOT / "clients" / "typescript"

pytestmark = pytest.mark.skipif(not shutil.which("npm"), reason="install Node.js with npm")

PROTOCOLS = [
    ("grpc", "2"),
    ("grpc-web", "1.1"),
    ("grpc-web", "2"),
    ("connect", "1.1"),
    ("connect", "2"),
]

# Requests of one title a second; more are told to wait.
QUOTA = "100"


def run(*command, cwd=PACKAGE, **environment):
    environment = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def package():
    """The package, built."""
    assert (PACKAGE / "node_modules").exists(), "make tools"
    run("npm", "run", "build")
    return PACKAGE


@pytest.mark.parametrize(("protocol", "http_version"), PROTOCOLS)
def test_the_package_passes_its_own_tests(package, tmp_path, protocol, http_version):
    sources = sorted((package / "test").glob("*.test.ts"))
    tests = [package / "dist" / "test" / f"{source.stem}.js" for source in sources]
    server = Server(tmp_path / "data", "--title-requests-per-second-max", QUOTA)
    told = run(
        *["node", "--test", "--test-reporter=tap", *tests],
        ACCOLADE_ADDRESS=server.address,
        ACCOLADE_PROTOCOL=protocol,
        ACCOLADE_HTTP_VERSION=http_version,
        ACCOLADE_TITLE_REQUESTS_PER_SECOND_MAX=QUOTA,
    )
    server.stop()
    counts = dict(re.findall(r"^# (\w+) (\d+)$", told, re.M))
    written = sum(len(re.findall(r"^test\(", it.read_text(), re.M)) for it in sources)
    assert (counts["pass"], counts["skipped"]) == (str(written), "0"), told


FOLLOW = """
import { Client } from "./dist/src/index.js";
const [protocol, httpVersion] = process.argv.slice(1);
const baseUrl = `http://${process.env["ACCOLADE_ADDRESS"]}`;
const client = new Client({ baseUrl, protocol, httpVersion });
for await (const { playerId } of client.watch("demo", { after: "" })) {
  console.log(playerId);
}
"""


@pytest.mark.parametrize(("protocol", "http_version"), PROTOCOLS)
def test_a_watch_goes_on_over_restarts_of_the_server(package, tmp_path, protocol, http_version):
    server = Server(tmp_path / "data")
    following = subprocess.Popen(
        ["node", "--input-type=module", "--eval", FOLLOW, protocol, http_version],
        cwd=package,
        env={**os.environ, "ACCOLADE_ADDRESS": server.address},
        stdout=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(180, following.kill)
    watchdog.start()
    for player in ["before a stop", "before a kill", "after it"]:
        request = {"title": "demo", "player_id": player, "node_id": "craft", "finish": True}
        method = "accolade.v1.AchievementStorageService/SetAchievementStorage"
        code, _, told = server.grpcurl("-d", json.dumps(request), server.address, method)
        assert code == 0, told
        assert following.stdout.readline() == f"{player}\n"
        if player == "before a stop":
            server.stop()
        else:
            server.process.kill()
            server.process.wait()
        server = Server(tmp_path / "data", address=server.address)
    watchdog.cancel()
    following.kill()
    following.wait()
    server.stop()


def typescript_of(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    return re.findall(r"```typescript\n(.*?)```", text, re.S)


def test_the_readmes_typescript_runs_on_the_package_as_it_is_installed(package, server, tmp_path):
    [example] = typescript_of("clients/typescript/README.md")
    for readme in ["README.md", "README.zh-CN.md"]:
        assert set(typescript_of(readme)) <= {example}, readme

    modules = tmp_path / "node_modules"
    modules.mkdir()
    for dependency in ["@bufbuild", "@connectrpc", "@types", "undici-types"]:
        (modules / dependency).symlink_to(package / "node_modules" / dependency)
    run("npm", "pack", "--ignore-scripts", f"--pack-destination={tmp_path}")
    [packed] = tmp_path.glob("*.tgz")
    run("tar", "-xzf", packed, "--one-top-level=accolade-client", "--strip=1", cwd=modules)
    assert not (modules / "accolade-client" / "dist" / "test").exists()

    assert "127.0.0.1:50151" in example
    source = tmp_path / "example.ts"
    source.write_text(example.replace("127.0.0.1:50151", server.address))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    tsc = package / "node_modules" / ".bin" / "tsc"
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--types", "node"]
    run(tsc, *options, source, cwd=tmp_path)
    told = run("node", "example.js", cwd=tmp_path).splitlines()
    assert told[0].startswith("newly completed: "), told
    assert told[1].startswith("30001 sky_walker "), told


def test_the_lock_file_names_no_place_that_packages_come_from():
    lock = json.loads((PACKAGE / "package-lock.json").read_text())
    assert all("resolved" not in it for it in lock["packages"].values())
    assert all("integrity" in it for name, it in lock["packages"].items() if name)
