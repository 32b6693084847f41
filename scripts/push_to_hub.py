"""Upload a saved folder to the Hub (log in with `hf auth login`, or set HF_TOKEN).

python scripts/push_to_hub.py outputs/nice_flow_digits YOUR_NAME/nice_flow_digits
python scripts/push_to_hub.py outputs/nice_flow_digits YOUR_NAME/nice_flow_digits --private --revision trial
"""

from __future__ import annotations

import argparse
import sys

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from hfblog import hub


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a saved model")
    parser.add_argument("repo_id", help="owner/name")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="visibility of a new repository")
    parser.add_argument("--revision", help="branch to commit to; main by default")
    parser.add_argument("--message", help="commit message")
    arguments = parser.parse_args()
    try:
        commit = hub.push(
            arguments.folder,
            arguments.repo_id,
            private=arguments.private,
            revision=arguments.revision,
            commit_message=arguments.message,
        )
    except (ValueError, HfHubHTTPError, LocalTokenNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"pushed to {commit.repo_url}, commit {commit.oid}")


if __name__ == "__main__":
    main()
