"""Write texts under a condition with a saved conditional language model, local or on the Hub.

    python scripts/generate.py outputs/conditional_ln_bert_reviews --condition positive --num-texts 5
    python scripts/generate.py outputs/conditional_ln_bert_reviews --condition negative --prompt 屏幕 --guidance-scale 2
    python scripts/generate.py outputs/conditional_ln_bert_captions --images photo1.png photo2.png

Texts go to standard output, one a line.
"""

from __future__ import annotations

import argparse
import sys

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

import hfblog  # noqa: F401  (registers the models)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a saved folder or a Hub id")
    parser.add_argument("--condition", nargs="+", help="class, by name or number; one for each attribute; none by default")
    parser.add_argument("--images", nargs="+", help="image files, for a captioning model")
    parser.add_argument("--prompt", default="", help="how the text begins")
    parser.add_argument("--num-texts", type=int, default=1, help="texts (for each image)")
    parser.add_argument("--guidance-scale", type=float, help="1 is none; 2 to 3 follow the condition more closely")
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--num-beams", type=int, help="beam search in place of sampling")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = {"num_return_sequences": arguments.num_texts}
    if arguments.num_beams:
        settings |= {"num_beams": arguments.num_beams, "do_sample": False}
    elif not arguments.images or arguments.num_texts > 1:
        settings |= {"do_sample": True, "top_k": 0, "top_p": arguments.top_p, "temperature": arguments.temperature}
    torch.manual_seed(arguments.seed)
    try:
        model = AutoModelForCausalLM.from_pretrained(arguments.model)
        if arguments.images:
            processor = AutoProcessor.from_pretrained(arguments.model)
            tokenizer = processor.tokenizer
            settings |= processor(images=[Image.open(path) for path in arguments.images], return_tensors="pt")
        else:
            tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        if arguments.prompt:
            settings |= tokenizer([arguments.prompt] * len(arguments.images or [0]), return_tensors="pt")
        if arguments.condition:
            settings["condition_ids"] = [[int(c) if c.isdigit() else c for c in arguments.condition]]
        ids = model.generate(guidance_scale=arguments.guidance_scale, **settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
        print(text)


if __name__ == "__main__":
    main()
