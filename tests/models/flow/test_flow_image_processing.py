"""The flows' image processor: every kind of image to the grid of levels and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hfblog import FlowImageProcessor, NiceFlowConfig, NiceFlowModel

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7, 1), dtype=np.uint8)


def pixels(processor: FlowImageProcessor, image, **options) -> torch.Tensor:
    values = processor(image, return_tensors="pt", **options)["pixel_values"]
    assert values.dtype == torch.float32
    return values


def grey_grid(levels: int = 256) -> torch.Tensor:
    return torch.from_numpy(np.rint(GREY / 255 * (levels - 1)) / (levels - 1)).float()[None, None]


def colour_grid() -> torch.Tensor:
    return torch.from_numpy(COLOUR / 255).float().permute(2, 0, 1)[None]


def luma_grid() -> torch.Tensor:
    luma = COLOUR.astype(float) @ [0.299, 0.587, 0.114]
    return torch.from_numpy(np.rint(luma) / 255).float()[None, None]


# --- PIL images ---


def test_grey_pictures():
    processor = FlowImageProcessor()
    torch.testing.assert_close(pixels(processor, Image.fromarray(GREY)), grey_grid(), rtol=0, atol=1e-7)
    transparent = Image.fromarray(np.concatenate([GREY[..., None], ALPHA], axis=-1))
    assert transparent.mode == "LA"
    torch.testing.assert_close(pixels(processor, transparent), grey_grid(), rtol=0, atol=1e-7)
    torch.testing.assert_close(
        pixels(FlowImageProcessor(num_channels=3), transparent), grey_grid().expand(1, 3, 5, 7), rtol=0, atol=1e-7
    )


def test_black_and_white_pictures():
    bits = GREY > 127
    picture = Image.fromarray(bits)
    assert picture.mode == "1"
    for levels in (2, 17, 256):
        values = pixels(FlowImageProcessor(num_levels=levels), picture)
        assert torch.equal(values[0, 0], torch.from_numpy(bits).float())


@pytest.mark.parametrize("mode", ("RGB", "RGBA"))
def test_colour_pictures(mode):
    array = COLOUR if mode == "RGB" else np.concatenate([COLOUR, ALPHA], axis=-1)
    picture = Image.fromarray(array)
    assert picture.mode == mode
    torch.testing.assert_close(pixels(FlowImageProcessor(num_channels=3), picture), colour_grid(), rtol=0, atol=1e-7)
    grey = pixels(FlowImageProcessor(), picture)
    assert grey.shape == (1, 1, 5, 7)
    torch.testing.assert_close(grey, luma_grid(), rtol=0, atol=1e-7)
    pil = torch.from_numpy(np.asarray(picture.convert("L")) / 255).float()
    torch.testing.assert_close(grey[0, 0], pil, rtol=0, atol=1.01 / 255)


def test_palette_pictures():
    picture = Image.fromarray(COLOUR).quantize(8)
    assert picture.mode == "P"
    processor = FlowImageProcessor(num_channels=3)
    assert torch.equal(pixels(processor, picture), pixels(processor, picture.convert("RGB")))
    assert pixels(processor, picture).unique().numel() > 2


def test_other_colour_spaces():
    processor = FlowImageProcessor(num_channels=3)
    for mode in ("CMYK", "YCbCr"):
        picture = Image.fromarray(COLOUR).convert(mode)
        torch.testing.assert_close(pixels(processor, picture), colour_grid(), rtol=0, atol=3 / 255)


@pytest.mark.parametrize("mode", ("I;16", "F", "I"))
def test_pictures_without_eight_bits_are_refused(mode):
    picture = Image.new(mode, (7, 5))
    with pytest.raises(ValueError, match=f"'{mode}'.*'L' or 'RGB'"):
        FlowImageProcessor()(picture)


# --- arrays and tensors ---


@pytest.mark.parametrize("kind", (np.asarray, torch.from_numpy), ids=("array", "tensor"))
@pytest.mark.parametrize("dtype", (np.uint8, np.int64, np.int16, np.float32, np.float64))
def test_number_types(dtype, kind):
    grey = (GREY / 255).astype(dtype) if np.issubdtype(dtype, np.floating) else GREY.astype(dtype)
    torch.testing.assert_close(pixels(FlowImageProcessor(), kind(grey)), grey_grid(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", (np.asarray, torch.from_numpy), ids=("array", "tensor"))
def test_booleans(kind):
    bits = GREY > 127
    assert torch.equal(pixels(FlowImageProcessor(num_levels=2), kind(bits))[0, 0], torch.from_numpy(bits).float())


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_low_precision_tensors(dtype):
    levels = torch.arange(17).reshape(1, 1, 17)
    values = pixels(FlowImageProcessor(num_levels=17), (levels / 16).to(dtype))
    assert torch.equal(values[0], levels / 16)


def test_tensors_with_a_gradient():
    image = torch.from_numpy(GREY / 255).requires_grad_()
    torch.testing.assert_close(pixels(FlowImageProcessor(), image), grey_grid(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", (np.asarray, torch.from_numpy), ids=("array", "tensor"))
def test_channel_axis_first_or_last(kind):
    colour, grey = FlowImageProcessor(num_channels=3), FlowImageProcessor()
    first = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
    for image in (COLOUR, first):
        torch.testing.assert_close(pixels(colour, kind(image)), colour_grid(), rtol=0, atol=1e-7)
        torch.testing.assert_close(pixels(grey, kind(image)), luma_grid(), rtol=0, atol=1e-7)
    for image in (GREY, GREY[..., None], GREY[None]):
        torch.testing.assert_close(pixels(grey, kind(image)), grey_grid(), rtol=0, atol=1e-7)
        torch.testing.assert_close(pixels(colour, kind(image)), grey_grid().expand(1, 3, 5, 7), rtol=0, atol=1e-7)
    transparent = np.concatenate([COLOUR, ALPHA], axis=-1)
    for image in (transparent, torch.from_numpy(transparent).permute(2, 0, 1)):
        torch.testing.assert_close(pixels(colour, image), colour_grid(), rtol=0, atol=1e-7)


def test_ambiguous_shapes_follow_their_library_or_the_argument():
    image = RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    processor = FlowImageProcessor(num_channels=3)
    last = torch.from_numpy(image / 255).float().permute(2, 0, 1)[None]
    first = torch.from_numpy(image / 255).float()[None]
    for values, expected in (
        (pixels(processor, image), last),
        (pixels(processor, torch.from_numpy(image)), first),
        (pixels(processor, image, input_data_format="channels_first"), first),
        (pixels(processor, torch.from_numpy(image), input_data_format="channels_last"), last),
    ):
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-7)


def test_batches_and_lists():
    processor = FlowImageProcessor(num_channels=3)
    batch = RNG.integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
    expected = torch.from_numpy(batch / 255).float().permute(0, 3, 1, 2)
    first = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    pictures = [Image.fromarray(image) for image in batch]
    mixed = [pictures[0], batch[1], torch.from_numpy(first[2]), batch[3] / 255]
    for images in (
        batch,
        torch.from_numpy(first),
        list(batch),
        tuple(batch),
        pictures,
        [pictures[:1], pictures[1:]],
        [batch[:2], batch[2:]],
        mixed,
    ):
        torch.testing.assert_close(pixels(processor, images), expected, rtol=0, atol=1e-7)
    assert pixels(processor, pictures[0]).shape == (1, 3, 5, 7)


def test_kinds_of_output():
    processor = FlowImageProcessor()
    arrays = processor(GREY, return_tensors="np")["pixel_values"]
    assert isinstance(arrays, np.ndarray)
    assert arrays.dtype == np.float32
    assert arrays.shape == (1, 1, 5, 7)
    plain = processor([GREY, GREY])["pixel_values"]
    assert isinstance(plain, list)
    assert [array.shape for array in plain] == [(1, 5, 7)] * 2
    np.testing.assert_array_equal(plain[0], arrays[0])


def test_the_input_is_left_as_it_is():
    grey, batch = GREY.copy(), torch.from_numpy(GREY / 255)[None, None]
    before = batch.clone()
    processor = FlowImageProcessor(num_levels=3)
    processor(grey)
    processor(batch)
    assert (grey == GREY).all()
    assert torch.equal(batch, before)


# --- levels ---


@pytest.mark.parametrize("levels", (2, 3, 17, 100, 256))
def test_every_level_survives_eight_bits(levels):
    processor = FlowImageProcessor(num_levels=levels)
    ladder = torch.arange(levels)
    grid = (ladder / (levels - 1)).reshape(1, 1, 1, levels)
    eight_bits = (ladder.double() / (levels - 1) * 255).round().to(torch.uint8).reshape(1, levels)
    torch.testing.assert_close(pixels(processor, eight_bits), grid, rtol=0, atol=1e-7)
    assert torch.equal(pixels(processor, grid), pixels(processor, eight_bits))

    for inside in (0.02, 0.5, 0.98):
        x = (ladder + inside).reshape(1, 1, 1, levels) / levels
        (picture,) = processor.post_process(x)
        assert picture.mode == "L"
        assert picture.size == (levels, 1)
        assert torch.equal(torch.from_numpy(np.array(picture)), eight_bits)
        torch.testing.assert_close(pixels(processor, picture), grid, rtol=0, atol=1e-7)


def test_values_between_levels_are_rounded():
    values = pixels(FlowImageProcessor(num_levels=3), np.array([[0, 63, 64, 127, 191, 192, 255]], dtype=np.uint8))
    assert values[0, 0, 0].tolist() == [0, 0, 0.5, 0.5, 0.5, 1, 1]


def test_post_process_inverts_the_model_s_dequantisation():
    for levels, channels in ((17, 1), (256, 3)):
        config = NiceFlowConfig(event_shape=(channels, 4, 6), num_levels=levels, hidden_size=4, num_hidden_layers=1)
        model = NiceFlowModel(config).eval()
        processor = FlowImageProcessor.from_model_config(config)
        generator = torch.Generator().manual_seed(0)
        grid = torch.randint(levels, (8, channels, 4, 6), generator=generator) / (levels - 1)
        pictures = processor.post_process(model.dequantize(grid))
        assert [picture.mode for picture in pictures] == ["L" if channels == 1 else "RGB"] * 8
        assert pictures[0].size == (6, 4)
        torch.testing.assert_close(pixels(processor, pictures), grid, rtol=0, atol=1e-6)


def test_post_process_clips():
    x = torch.tensor([-5.0, -1e-3, 0.0, 1.0, 1.5, 1e9]).reshape(1, 1, 1, 6).requires_grad_()
    (picture,) = FlowImageProcessor(num_levels=17).post_process(x)
    assert np.array(picture).tolist() == [[0, 0, 0, 255, 255, 255]]


# --- sizes ---


def test_resizing():
    processor = FlowImageProcessor(size={"height": 4, "width": 6}, num_channels=3, do_resize=True)
    values = pixels(processor, [Image.new("RGB", (13, 9), (255, 0, 51)), np.zeros((4, 6), np.uint8)])
    assert values.shape == (2, 3, 4, 6)
    torch.testing.assert_close(values[0, :, 2, 3], torch.tensor([1.0, 0.0, 0.2]))
    assert values[1].max() == 0

    grey = FlowImageProcessor(size={"height": 4, "width": 6}, do_resize=True)
    source = Image.fromarray(RNG.integers(0, 256, (8, 12), dtype=np.uint8))
    expected = np.asarray(source.resize((6, 4), Image.Resampling.BILINEAR)) / 255
    torch.testing.assert_close(pixels(grey, source)[0, 0], torch.from_numpy(expected).float(), rtol=0, atol=1.01 / 255)
    steps = pixels(grey, source) * 255
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)


def test_resizing_of_a_single_call():
    processor = FlowImageProcessor(size={"height": 4, "width": 6})
    assert pixels(processor, GREY, do_resize=True).shape == (1, 1, 4, 6)
    with pytest.raises(ValueError, match="4x6.*5x7.*do_resize=True"):
        processor(GREY)
    resizing = FlowImageProcessor(size={"height": 4, "width": 6}, do_resize=True)
    with pytest.raises(ValueError, match="4x6.*5x7"):
        resizing(GREY, do_resize=False)


def test_resizing_needs_a_size():
    with pytest.raises(ValueError, match="do_resize=True needs a size"):
        FlowImageProcessor(do_resize=True)
    with pytest.raises(ValueError, match="do_resize=True needs a size"):
        FlowImageProcessor()(GREY, do_resize=True)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="4x4 pixels.*5x7"):
        FlowImageProcessor(size={"height": 4, "width": 4})(GREY)
    with pytest.raises(ValueError, match=r"\(1, 4, 4\).*\(1, 5, 7\)"):
        FlowImageProcessor()([GREY, np.zeros((4, 4), np.uint8)])


# --- errors ---


@pytest.mark.parametrize(
    ("image", "named"),
    (
        (np.full((2, 2), 256, dtype=np.int64), r"\[0, 255\].*256"),
        (np.array([[0, -3]], dtype=np.int64), r"\[0, 255\].*-3"),
        (np.array([[0.0, 1.5]]), r"\[0, 1\].*1\.5"),
        (np.array([[-0.5, 1.0]]), r"\[0, 1\].*-0\.5"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "infinite"),
        (np.zeros((6, 5, 7), np.uint8), r"\(6, 5, 7\)"),
        (np.zeros((2, 1, 5, 7, 1), np.uint8), r"\(2, 1, 5, 7, 1\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        ("picture.png", "str"),
        (3, "int"),
        ([], "no images"),
    ),
)
def test_what_is_no_image_is_refused(image, named):
    with pytest.raises(ValueError, match=named):
        FlowImageProcessor()(image)
    if isinstance(image, np.ndarray):
        with pytest.raises(ValueError, match=named):
            FlowImageProcessor()(torch.from_numpy(image))


def test_one_wrong_image_of_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\].*1\.25"):
        FlowImageProcessor()([np.zeros((2, 2)), np.full((2, 2), 1.25)])


@pytest.mark.parametrize(
    ("settings", "named"),
    (
        ({"num_channels": 2}, "num_channels=2 must be 1"),
        ({"num_levels": 1}, "num_levels=1 must lie between 2 and 256"),
        ({"num_levels": 257}, "num_levels=257"),
        ({"size": {"width": 8}}, "'height' and 'width'"),
        ({"size": {"shortest_edge": 8}}, "shortest_edge.*'height' and 'width'"),
    ),
)
def test_senseless_settings_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        FlowImageProcessor(**settings)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="'do_normalise'"):
        FlowImageProcessor()(GREY, do_normalise=True)


# --- configuration, save and load ---


def test_from_model_config():
    config = NiceFlowConfig(event_shape=(3, 8, 6), num_levels=17)
    processor = FlowImageProcessor.from_model_config(config)
    assert processor.size == {"height": 8, "width": 6}
    assert (processor.num_channels, processor.num_levels, processor.do_resize) == (3, 17, False)
    assert FlowImageProcessor.from_model_config(config, do_resize=True).do_resize
    assert pixels(processor, np.zeros((8, 6, 3), np.uint8)).shape[1:] == tuple(config.event_shape)


@pytest.mark.parametrize(
    ("fields", "named"),
    (
        ({"event_shape": (64,)}, r"\(64,\)"),
        ({"event_shape": (2, 8, 8)}, r"\(2, 8, 8\).*\(1 or 3, height, width\)"),
        ({"event_shape": (1, 8, 8), "num_levels": None, "dequantization": "none"}, "num_levels=None"),
    ),
)
def test_flows_over_anything_but_images_have_no_processor(fields, named):
    with pytest.raises(ValueError, match=named):
        FlowImageProcessor.from_model_config(NiceFlowConfig(**fields))


@pytest.mark.parametrize(
    "settings",
    (
        {},
        {"size": {"height": 4, "width": 6}, "num_channels": 3, "num_levels": 17, "do_resize": True},
    ),
)
def test_saved_processor_is_equal(tmp_path, settings):
    processor = FlowImageProcessor(**settings)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is FlowImageProcessor
    for name in ("size", "num_channels", "num_levels", "do_resize"):
        assert getattr(loaded, name) == getattr(processor, name), name
    assert torch.equal(pixels(loaded, COLOUR), pixels(processor, COLOUR))


def test_processor_of_a_saved_model(tmp_path):
    config = NiceFlowConfig(event_shape=(1, 5, 7), num_levels=17, hidden_size=4, num_hidden_layers=1)
    NiceFlowModel(config).save_pretrained(tmp_path)
    FlowImageProcessor.from_model_config(config).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is FlowImageProcessor
    assert loaded.num_levels == 17
    torch.testing.assert_close(pixels(loaded, GREY), grey_grid(17), rtol=0, atol=1e-7)
