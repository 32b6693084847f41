from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import pipeline

from hfblog import FlowImageProcessor, NiceFlowConfig, NiceFlowModel, hub


@pytest.fixture
def folder(tmp_path):
    config = NiceFlowConfig(event_shape=(1, 8, 8), num_levels=17, hidden_size=12, num_hidden_layers=1)
    processor = FlowImageProcessor(size={"height": 8, "width": 8}, num_levels=17)
    return hub.export(NiceFlowModel(config), tmp_path / "flow", processor)


def test_images_from_a_saved_folder(folder, monkeypatch):
    # with hfblog installed nothing is remote code, so nobody may be asked about it
    monkeypatch.setattr("builtins.input", lambda prompt="": pytest.fail(f"asked: {prompt}"))
    generate = pipeline("unconditional-image-generation", model=str(folder))
    images = generate(5, temperature=0.7, seed=3)
    assert len(images) == 5 and all(image.size == (8, 8) and image.mode == "L" for image in images)
    samples = generate.model.sample(5, temperature=0.7, generator=torch.Generator().manual_seed(3))
    expected = generate.image_processor.post_process(samples)
    assert all(np.array_equal(image, other) for image, other in zip(images, expected, strict=True))
    assert len(generate()) == 1


@pytest.mark.parametrize("wrong", [0, -3, "4", 2.5])
def test_wrong_numbers_of_images(folder, wrong):
    with pytest.raises(ValueError, match="the number of images, an integer of at least 1"):
        pipeline("unconditional-image-generation", model=str(folder))(wrong)


def test_the_folder_alone_is_enough(folder, run_python):
    code = """
import sys
from transformers import pipeline
images = pipeline(model=sys.argv[1], trust_remote_code=True)(3, seed=0)
print(len(images), images[0].size)
"""
    assert run_python(code, folder, hfblog_absent=True).endswith("3 (8, 8)")
