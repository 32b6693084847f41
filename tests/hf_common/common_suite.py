"""Makes the common model tests of transformers importable as ``tests.test_modeling_common`` and so on.

The wheel does not hold them; the source distribution of the same version does, so that is fetched at test time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers
import transformers.testing_utils

# Modules that the tests import and the source distribution leaves out. Export and generation need tests of our own.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": """\
# a value other than the default for every field that configurations share
config_common_kwargs = {
    "architectures": ["SomeModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}
""",
}


class SuiteUnavailableError(RuntimeError):
    """The source distribution could not be had; the message says why."""


def _unpack(archive: Path, folder: Path) -> Path:
    """The archive's ``tests`` folder with what it lacks, inside ``folder``."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if re.match(r"[^/]+/tests/", member.name)]
        tar.extractall(folder, members, filter="data")
    (tests,) = folder.glob("*/tests")
    for name, source in STUBS.items():
        stub = tests / name
        stub.parent.mkdir(exist_ok=True)
        if not stub.exists():
            stub.write_text(source, encoding="utf-8")
    for package in (tests, *(path for path in tests.iterdir() if path.is_dir())):
        (package / "__init__.py").touch()
    return tests.parent


def fetch(cache: Path) -> Path:
    """The folder that holds the ``tests`` package of the installed transformers, downloaded once into ``cache``.

    Raises:
        SuiteUnavailableError: no source distribution of that version can be downloaded.
    """
    requirement = f"transformers=={transformers.__version__}"
    target = cache / requirement
    if target.exists():
        return target
    # Unpacked next to the target and renamed, so that neither an interruption nor a second run leaves half a folder.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
        command += ["--no-binary", "transformers", "--dest", scratch, requirement]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
            raise SuiteUnavailableError(f"pip cannot download the source of {requirement}: {lines[-1]}") from error
        except subprocess.TimeoutExpired as error:
            raise SuiteUnavailableError(f"downloading the source of {requirement} took over 10 minutes") from error
        (archive,) = Path(scratch).glob("transformers-*.tar.gz")
        try:
            _unpack(archive, Path(scratch)).rename(target)
        except OSError:
            if not target.exists():
                raise
    return target


def used_markers(folder: Path) -> set[str]:
    """Names of the pytest markers that the tests and transformers' own decorators apply."""
    sources = [Path(transformers.testing_utils.__file__), *folder.glob("tests/*.py")]
    return {name for path in sources for name in re.findall(r"\bmark\.(\w+)", path.read_text(encoding="utf-8"))}
