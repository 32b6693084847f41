"""Draw images from a saved generative model, local or on the Hub.

python scripts/sample.py outputs/nice_flow_digits --num-samples 64 --temperature 0.8 --output samples.png
"""

from __future__ import annotations

import argparse
import sys

from transformers import pipeline

import hfblog  # noqa: F401  (registers models and pipelines)
from hfblog.pictures import image_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a saved folder or a Hub id")
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="samples.png", help="file of the picture, a grid")
    arguments = parser.parse_args()
    try:
        generate = pipeline("unconditional-image-generation", model=arguments.model)
        images = generate(arguments.num_samples, temperature=arguments.temperature, seed=arguments.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    image_grid(images).save(arguments.output)
    print(f"{len(images)} samples: {arguments.output}")


if __name__ == "__main__":
    main()
