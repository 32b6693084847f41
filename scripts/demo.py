"""Look at a trained flow in the browser: samples, paths between samples, and the bits per dimension of your own image.

pip install -e '.[demo]'
python scripts/demo.py outputs/nice_flow_digits
"""

from __future__ import annotations

import argparse
import sys

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

import hfblog  # noqa: F401  (registers the models)
from hfblog.pictures import image_grid


def build_demo(folder: str):
    """The page for one saved flow, a `gradio.Blocks`."""
    import gradio

    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)

    def draw(count: float, temperature: float, seed: float) -> Image.Image:
        generator = torch.Generator().manual_seed(int(seed))
        return image_grid(processor.post_process(model.sample(int(count), temperature, generator)))

    def between(steps: float, temperature: float, seed: float) -> Image.Image:
        generator = torch.Generator().manual_seed(int(seed))
        ends = model.sample(16, temperature, generator)
        path = model.interpolate(ends[:8], ends[8:], int(steps))
        return image_grid(processor.post_process(path.flatten(0, 1)), columns=int(steps))

    def measure(image: Image.Image | None) -> str:
        if image is None:
            raise gradio.Error("give an image first")
        pixel_values = processor(image, do_resize=True, return_tensors="pt")["pixel_values"]
        bits = model.bits_per_dim(pixel_values, num_draws=16).item()
        return f"{bits:.3f} bits per dimension ({pixel_values.shape[-2]}x{pixel_values.shape[-1]} pixels)"

    with gradio.Blocks(title="hfblog") as demo:
        gradio.Markdown(f"# {folder}\n{model.num_parameters():,} parameters, exact density and inverse")
        temperature = gradio.Slider(0, 1.5, value=0.8, step=0.05, label="temperature")
        seed = gradio.Slider(0, 1000, value=0, step=1, label="seed")
        with gradio.Tab("Samples"):
            count = gradio.Slider(1, 225, value=64, step=1, label="samples")
            grid = gradio.Image(label="samples", format="png")
            inputs = [count, temperature, seed]
            gradio.Button("Draw").click(draw, inputs, grid, api_name="draw")
            demo.load(draw, inputs, grid)
        with gradio.Tab("Between samples"):
            steps = gradio.Slider(2, 15, value=9, step=1, label="steps")
            path = gradio.Image(label="straight lines in latent space", format="png")
            gradio.Button("Draw").click(between, [steps, temperature, seed], path, api_name="between")
        if model.config.dequantization == "uniform":
            with gradio.Tab("Your image"):
                image = gradio.Image(type="pil", label="image")
                text = gradio.Textbox(label="how well the model knows it: fewer bits, better known")
                gradio.Button("Measure").click(measure, image, text, api_name="measure")
    return demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a saved flow over images, or its Hub id")
    parser.add_argument("--port", type=int, help="port on this machine; the first free one from 7860 by default")
    arguments = parser.parse_args()
    try:
        demo = build_demo(arguments.model)
    except ImportError as error:
        sys.exit(f"error: {error}; the demo needs gradio: pip install 'hfblog[demo]'")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    demo.launch(server_name="127.0.0.1", server_port=arguments.port)


if __name__ == "__main__":
    main()
