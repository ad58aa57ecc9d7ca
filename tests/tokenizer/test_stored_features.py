"""Features in files: those of the network, found by the pixels of a clip, refused where they are of something else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_adaptok_tasks import DROP, MODEL
from torch import nn

from genvid.data import SyntheticConfig
from genvid.data.clips import ClipConfig, to_float
from genvid.data.dataset import VideoData
from genvid.data.loader import load_batches
from genvid.recipes import cache_features
from genvid.recipes.cache_features import FeatureRun
from genvid.recipes.run import HeldOutClips
from genvid.recipes.runs import AdapTokRun
from genvid.tokenizer.adaptok.config import RotaryGeometry
from genvid.tokenizer.adaptok.semantic import DecoderAlignmentConfig, SemanticConfig, SemanticLoss
from genvid.tokenizer.adaptok.tasks import ObjectiveConfig
from genvid.tokenizer.teachers import ModuleTeacher, ModuleTeacherConfig, StoredTeacher, StoredTeacherConfig
from genvid.tokenizer.teachers.stored import clip_keys
from genvid.train.config import OptimizerConfig, TrainConfig

CLIP = ClipConfig(frames=8, resolution=(16, 16), window="first")
SOURCES = {"train": SyntheticConfig(clips=7, seed=0), "held_out": SyntheticConfig(clips=3, seed=1)}


class Quarters(nn.Module):
    """Colours of the quarters of a picture."""

    width = 3

    def forward(self, video):
        return nn.functional.avg_pool3d(video, (4, 8, 8)).permute(0, 2, 3, 4, 1)


class Negatives(Quarters):
    """Of the negative."""

    def forward(self, video):
        return -super().forward(video)


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def folders(tmp_path):
    for name, source in SOURCES.items():
        cache(tmp_path / name, source)
    return [str(tmp_path / name) for name in SOURCES]


def cache(folder, source, network="Quarters", clip=CLIP, **options):
    teacher = ModuleTeacherConfig(f"{__name__}:{network}")
    data = VideoData(source, clip)
    run = FeatureRun(output_dir=str(folder), data=data, teacher=teacher, batch_size=4, workers=0, **options)
    return cache_features.cache_features(run)


def clips(source, *indices):
    dataset = VideoData(source, CLIP).open()
    return next(load_batches(dataset, [[(index, 99) for index in indices]]))["video"]


def test_stored_features_are_the_network_s_in_any_order_and_of_held_out_clips(folders):
    stored, network = StoredTeacher(folders), ModuleTeacher(f"{__name__}:Quarters")
    assert (stored.name, stored.width) == (network.name, 3)
    for name, indices in (("train", (5, 0, 3)), ("held_out", (2,)), ("train", (6,))):
        video = clips(SOURCES[name], *indices)
        for found, wanted in zip(stored(video, 2), network(video, 2), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    stored.check([VideoData(source, CLIP).open() for source in SOURCES.values()])


def test_the_blocks_of_a_single_first_frame_have_features(tmp_path):
    clip = replace(CLIP, frames=9)
    with pytest.raises(ValueError, match="9 frames does not fill blocks of 4 frames; use a multiple of 4"):
        cache(tmp_path / "single", SOURCES["train"], clip=clip)
    folder = str(cache(tmp_path / "single", SOURCES["train"], clip=clip, single_first_frame=True))
    semantic = SemanticConfig(StoredTeacherConfig((folder,)), decoder=DecoderAlignmentConfig())
    geometry = RotaryGeometry(sides=(16, 16), aspect=(1, 1), single_first_frame=True)
    config = replace(MODEL, frames=9, pooled_queries=True, geometry=geometry)
    video = VideoData(SOURCES["train"], clip).open()[3]["video"]
    stored, network = (
        SemanticLoss(semantic, teacher, config, 8).targets(to_float(video)[None])
        for teacher in (StoredTeacher([folder]), ModuleTeacher(f"{__name__}:Quarters"))
    )
    assert stored.patches.shape == (1, 3, 2, 2, 3)
    torch.testing.assert_close(stored.patches, network.patches, atol=1e-3, rtol=0)


def test_keys_are_of_all_pixels_and_their_places():
    video = clips(SOURCES["train"], 0, 1)
    other = video.clone()
    other[0, 2, 7, 15, 15] += 1 / 127.5 if other[0, 2, 7, 15, 15] < 0 else -1 / 127.5
    assert clip_keys(video)[1] == clip_keys(other)[1]
    assert len({*clip_keys(video).tolist(), *clip_keys(other).tolist(), *clip_keys(video.flip(3)).tolist()}) == 5


def test_other_clips_and_mixed_folders_are_refused(folders, tmp_path):
    stored = StoredTeacher(folders[:1])
    with pytest.raises(ValueError, match=r"no features in .*train of 2 blocks of a clip of this batch: compute them"):
        stored(clips(SOURCES["held_out"], 0), 2)
    with pytest.raises(ValueError, match=r"no features in .*train of 1 blocks"):
        stored(clips(SOURCES["train"], 0), 1)
    with pytest.raises(ValueError, match=r"no features in .*train of these 3 clips"):
        stored.check([VideoData(source, CLIP).open() for source in SOURCES.values()])
    cache(tmp_path / "negatives", SOURCES["held_out"], "Negatives")
    with pytest.raises(ValueError, match=r"of one teacher and of one shape, got .*Quarters.*; .*Negatives"):
        StoredTeacher([folders[0], str(tmp_path / "negatives")])
    (tmp_path / "train" / "features.json").unlink()
    with pytest.raises(ValueError, match=r"no features in .*train, or unfinished ones"):
        StoredTeacher(folders)


def test_clips_that_are_drawn_anew_are_refused(tmp_path, capsys):
    config = {
        "output_dir": str(tmp_path / "features"),
        "data": {"source": {"type": "synthetic"}, "clip": {"frames": 8, "window": "first", "flip": True}},
        "teacher": {"type": "module", "source": f"{__name__}:Quarters"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        cache_features.main([str(tmp_path / "run.yaml")])
    assert "features are of clips that are the same in every epoch" in capsys.readouterr().err
    cache_features.main(
        [str(tmp_path / "run.yaml"), "--data.clip.flip", "false", "--data.source.clips", "2", "--workers", "0"]
    )
    assert json.loads((tmp_path / "features" / "features.json").read_text())["blocks"] == 2


def test_a_run_reads_features_of_its_own_clips_alone(folders, monkeypatch):
    def run(*names):
        semantic = SemanticConfig(StoredTeacherConfig(names))
        return AdapTokRun(
            task="adaptok",
            output_dir="",
            data=VideoData(SOURCES["train"], CLIP),
            validation=HeldOutClips(source=SOURCES["held_out"], every=1),
            model=MODEL,
            objective=ObjectiveConfig(tail_drop=DROP, prior=None, semantic=semantic),
            train=TrainConfig(steps=1, batch_size=2, optimizers={"model": OptimizerConfig(lr=1e-3)}),
        )

    opened, open_clips = [], VideoData.open
    monkeypatch.setattr(VideoData, "open", lambda data: opened.append(data.source) or open_clips(data))
    own = run(*folders)
    task, _ = own.build()
    own.held_out()
    assert opened == [*SOURCES.values()]
    assert task.exportable().origin.made_from["teacher"] == f"{__name__}:Quarters"
    for source in SOURCES.values():
        batch = {"video": clips(source, 0, 1), "seed": torch.arange(2)}
        assert "semantic_patches" in task(batch, "model", 0, {}).terms
    with pytest.raises(ValueError, match=r"no features in .*train of these 3 clips"):
        run(folders[0]).build()
