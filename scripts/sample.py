"""Draw images, or points, from a saved generative model, local or on the Hub.

python scripts/sample.py outputs/nice_flow_digits --num-samples 64 --temperature 0.8 --output samples.png
python scripts/sample.py outputs/invertible_resnet_moons --num-samples 1000 --output samples.csv
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, pipeline

import hfblog  # noqa: F401  (registers models and pipelines)
from hfblog.pictures import image_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a saved folder or a Hub id")
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="samples.png", help="a picture of a grid of images, or a table (.csv) of points")
    arguments = parser.parse_args()
    try:
        if len(AutoConfig.from_pretrained(arguments.model).event_shape) != 3:
            model = AutoModel.from_pretrained(arguments.model)
            generator = torch.Generator().manual_seed(arguments.seed)
            points = model.sample(arguments.num_samples, arguments.temperature, generator)
            np.savetxt(arguments.output, points.flatten(1).numpy(), delimiter=",")
            print(f"{len(points)} points: {arguments.output}")
            return
        generate = pipeline("unconditional-image-generation", model=arguments.model)
        images = generate(arguments.num_samples, temperature=arguments.temperature, seed=arguments.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    image_grid(images).save(arguments.output)
    print(f"{len(images)} samples: {arguments.output}")


if __name__ == "__main__":
    main()
