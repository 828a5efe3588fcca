"""Makes the stubs of the API while the package is built; everything else is in pyproject.toml."""

import pathlib
import sys

import grpc_tools
from grpc_tools import protoc
from setuptools import setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parents[1] / "proto"


class Build(build_py):
    """Puts `accolade/v1/*_pb2*.py` beside the package."""

    def run(self):
        super().run()
        out = pathlib.Path(self.build_lib)
        out.mkdir(parents=True, exist_ok=True)
        files = sorted(str(path) for path in (PROTO / "accolade" / "v1").glob("*.proto"))
        if not files:
            sys.exit(f"{PROTO} has no .proto files; build the package inside its repository")
        # google/rpc/status.proto comes with googleapis-common-protos.
        includes = [PROTO, pathlib.Path(grpc_tools.__file__).parent / "_proto", *sys.path]
        arguments = [f"-I{path}" for path in includes if path and pathlib.Path(path).is_dir()]
        outs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", *arguments, *outs, *files]) != 0:
            sys.exit("the stubs cannot be made")


setup(cmdclass={"build_py": Build})
