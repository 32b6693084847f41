"""Collects this folder only in runs that select the marker ``hf_suite``: fetching and importing the tests is slow."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

MARKER = "hf_suite"


class EmptyModule(pytest.Module):
    """Stands for a test module without importing it."""

    skip_reason: str | None = None

    def collect(self) -> list:
        if self.skip_reason is not None:
            pytest.skip(self.skip_reason)
        return []


def _is_selected(config: pytest.Config) -> bool:
    expression = config.option.markexpr
    return not expression or Expression.compile(expression).evaluate(lambda name, /, **_: name == MARKER)


def _make_importable(config: pytest.Config) -> None:
    import common_suite

    cache = getattr(config, "cache", None)
    folder = common_suite.fetch(Path(cache.mkdir(MARKER) if cache is not None else tempfile.mkdtemp()))
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        # The suite's markers, which --strict-markers would refuse
        for name in sorted(common_suite.used_markers(folder)):
            config.addinivalue_line("markers", f"{name}: used by the common tests of transformers")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if not _is_selected(parent.config):
        return EmptyModule.from_parent(parent, path=module_path)
    import common_suite

    try:
        _make_importable(parent.config)
    except common_suite.SuiteUnavailableError as error:
        module = EmptyModule.from_parent(parent, path=module_path)
        module.skip_reason = str(error)
        return module
    return None


@pytest.fixture(autouse=True)
def select_in_subprocesses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some tests run themselves again in a subprocess, by node id and without options."""
    monkeypatch.setenv("PYTEST_ADDOPTS", f"{os.environ.get('PYTEST_ADDOPTS', '')} -m {MARKER}")
    monkeypatch.chdir(request.config.rootpath)
    yield
