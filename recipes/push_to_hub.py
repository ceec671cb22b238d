"""Publish the folder of a run: model, record and card in one commit, verified by a download.

python recipes/push_to_hub.py --output_dir out/pets --hub_model_id me/pets --hub_private_repo true
"""

from pathlib import Path

from hf_transfer import PushConfig, parse_flags, push, run_command, verify


def main() -> None:
    (config,) = parse_flags([PushConfig])
    folder = Path(config.output_dir)
    published = push(folder, config)
    verify(published, folder, config.hub_token)
    print(published.url)


if __name__ == "__main__":
    run_command(main)
