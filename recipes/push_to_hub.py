"""Publish the folder of a run: model, record and card in one commit, then downloaded and compared.

python recipes/push_to_hub.py --output_dir out/digits --hub_model_id you/digits
"""

from pathlib import Path

from hf_transfer import PushConfig, read_flags, run_command


def main() -> None:
    (config,) = read_flags([PushConfig])

    from hf_transfer import push, verify

    folder = Path(config.output_dir)
    published = push(folder, config)
    verify(published, folder, config.hub_token)
    print(published.url)


if __name__ == "__main__":
    run_command(main)
