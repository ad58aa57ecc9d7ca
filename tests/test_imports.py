"""What a user waits for before anything is done: the libraries that a command imports."""

import json
import subprocess
import sys

import pytest
import torch

from genvid.cli import VERBS, main
from genvid.data.video import write_video

SLOW = ["transformers", "datasets", "torchmetrics", "scipy", "accelerate", "torch._dynamo", "torch.distributed.tensor"]
"""Libraries that take up to seconds to import, and of which coding a video needs none."""
CODE = f"""
import json, sys
from genvid.cli import main
video, tokens, *videos = sys.argv[1:]
main(["encode", video, tokens, "--tokens-per-second", "100"])
main(["decode", tokens, videos[0]])
main(["reconstruct", video, videos[1], "--tokenizer", "genvid-tiny"])
for source in (video, tokens, "genvid-tiny"):
    main(["info", source])
print(json.dumps([name for name in {SLOW} if name in sys.modules]))
"""


def test_coding_a_video_imports_no_library_of_training_and_evaluation(tmp_path):
    write_video(tmp_path / "video.mp4", torch.zeros(3, 4, 32, 32, dtype=torch.uint8), 8)
    files = [tmp_path / name for name in ("video.mp4", "video.tok", "decoded.mp4", "both.mp4")]
    ended = subprocess.run([sys.executable, "-c", CODE, *map(str, files)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert all(file.is_file() for file in files)
    assert json.loads(ended.stdout.splitlines()[-1]) == []


def test_help_lists_every_verb_without_importing_torch():
    code = "import sys\nfrom genvid.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *lines, torch_is_imported = ended.stdout.splitlines()
    assert set(VERBS) <= {line.split()[0] for line in lines if line.strip()}
    assert torch_is_imported == "False"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_names_its_arguments(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert exit_.value.code == 0
    assert said.startswith(f"usage: genvid {verb} ")
    assert ("protocols: ucf101-gfvd-larp-10k, " in said) == (verb == "evaluate")
