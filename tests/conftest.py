"""Environment of the tests: no Hub, no caches of the user, no spinning threads. Set before torch and the Hub client load."""

from __future__ import annotations

import os
import tempfile

_home = tempfile.mkdtemp(prefix="hfblog-tests-")
os.environ |= {
    "HF_HOME": _home,
    "HF_MODULES_CACHE": f"{_home}/modules",
    "HF_DATASETS_CACHE": f"{_home}/datasets",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MPLCONFIGDIR": f"{_home}/matplotlib",
    "OMP_WAIT_POLICY": "passive",
}
os.environ.pop("HF_ENDPOINT", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared out among the workers
    os.environ["OMP_NUM_THREADS"] = "1"

import shutil  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hub_server import HubServer  # noqa: E402

# Runs before a subprocess's own code where hfblog must not be there, as on the machine of somebody who only has the folder.
WITHOUT_HFBLOG = """
import sys
class _Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hfblog":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, _Absent())
"""


def pytest_unconfigure() -> None:
    shutil.rmtree(_home, ignore_errors=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Runs code in a fresh process and returns what it printed; a failure shows the process's own words."""

    def run(code: str, *arguments: str, env: dict[str, str] | None = None, hfblog_absent: bool = False) -> str:
        script = tmp_path / "script.py"
        script.write_text((WITHOUT_HFBLOG if hfblog_absent else "") + code, encoding="utf-8")
        command = [sys.executable, str(script), *map(str, arguments)]
        done = subprocess.run(command, env=env or dict(os.environ), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    return run


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server
        assert server.errors == []
