"""The browser demo, over real HTTP on this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from hfblog import FlowImageProcessor, NiceFlowConfig, NiceFlowModel, hub

ROOT = Path(__file__).parent.parent


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    config = NiceFlowConfig(event_shape=(1, 8, 8), num_levels=17, hidden_size=12, num_hidden_layers=1)
    processor = FlowImageProcessor(size={"height": 8, "width": 8}, num_levels=17)
    folder = hub.export(NiceFlowModel(config), tmp_path / "flow", processor)
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.build_demo(str(folder))
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


def test_every_button_answers(demo, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(demo, verbose=False, download_files=str(tmp_path / "files"))
    grid = Image.open(client.predict(9, 0.8, 0, api_name="/draw"))
    assert grid.size == (3 * 48 + 2, 3 * 48 + 2)
    path = Image.open(client.predict(5, 0.8, 0, api_name="/between"))
    assert path.size == (5 * 48 + 4, 8 * 48 + 7)
    Image.new("RGB", (20, 30), (200, 10, 10)).save(tmp_path / "red.png")
    assert "bits per dimension (8x8 pixels)" in client.predict(handle_file(str(tmp_path / "red.png")), api_name="/measure")
