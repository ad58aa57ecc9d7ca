"""`genvid.load`: arrays of the usual kinds through a tokenizer and back, and samples, on tiny random models."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import genvid
from genvid.allocation import BudgetError
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.draft import DraftConfig, DraftHeads
from genvid.ar.model import BlockTransformer
from genvid.checkpoint import CheckpointError
from genvid.hardware import on
from genvid.provenance import Origin, ProvenanceError
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens.rows import BlockLayout

NETWORK, SIZES = StackConfig(16, 1, 2), (2, 4, 8)
AR = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=80)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tokenizer of 3 blocks of 2 frames and 8 tokens with its scorer, one without, and models of its rows."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = AdapTokConfig(6, (16, 16), (2, 8, 8), 8, NETWORK, NETWORK, VQConfig(codebook_size=20, code_dim=4))
    tokenizer, other = AdapTok(config), AdapTok(config)
    torch.nn.init.normal_(tokenizer.output.weight, std=0.1)
    tokenizer.save(folder / "tokenizer")
    Scorer(ScorerConfig.for_tokenizer(config, NETWORK, sizes=SIZES, metric="x")).save(folder / "tokenizer" / "scorer")
    other.save(folder / "other")
    layout = BlockLayout(codebook_size=20, num_classes=3, num_blocks=3, block_capacity=8, sizes=SIZES)
    classes = BlockTransformer(ARConfig(layout, AR))
    classes.origin = Origin(classes=["swim", "run", "fly"])
    classes.save(folder / "ar")
    BlockTransformer(ARConfig(layout, AR, context_blocks=1)).save(folder / "predictor")
    return folder


@pytest.fixture(scope="module")
def tokenizer(models):
    return genvid.load(models / "tokenizer", device="cpu")


@pytest.fixture(scope="module")
def pixels():
    """Two videos (2, 6, 16, 16, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (2, 6, 16, 16, 3), dtype=np.uint8)


FORMS = {
    "numpy": lambda array: array,
    "torch": torch.from_numpy,
    "float32": lambda array: (array / 255).astype(np.float32),
    "float64": lambda array: array / 255,
    "torch float16": lambda array: (torch.from_numpy(array) / 255).half(),
}
AXES = {
    "(B, T, H, W, 3)": lambda video: video,
    "(B, 3, T, H, W)": lambda video: np.moveaxis(video, -1, 1).copy(),
    "(T, H, W, 3)": lambda video: video[0],
    "(3, T, H, W)": lambda video: np.moveaxis(video[0], -1, 0).copy(),
    "(H, W, 3)": lambda video: video[0, 0],
    "(3, H, W)": lambda video: np.moveaxis(video[0, 0], -1, 0).copy(),
}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES.keys())
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_an_array_comes_back_in_the_form_in_which_it_was_given(tokenizer, pixels, form, axes):
    given = form(axes(pixels))
    decoded = tokenizer.decode(tokenizer.encode(given))
    assert type(decoded) is type(given)
    assert (decoded.dtype, decoded.shape) == (given.dtype, given.shape)


def test_every_form_of_the_same_pixels_has_the_same_tokens_and_the_same_picture(tokenizer, pixels):
    def codes(video):
        return tokenizer.encode(video).clips[0].codes

    def picture(video):
        return np.asarray(tokenizer.decode(tokenizer.encode(video)), dtype=np.float64)

    channels_first = np.moveaxis(pixels, -1, 1).copy()
    assert torch.equal(codes(pixels), codes(channels_first))
    assert torch.equal(codes(pixels), codes(torch.from_numpy(pixels) / 255))
    assert torch.equal(codes(pixels)[:1], codes(pixels[0]))
    assert np.array_equal(picture(pixels), np.moveaxis(picture(channels_first), 1, -1))
    assert np.abs(picture(pixels) / 255 - picture(pixels / 255)).max() <= 0.5 / 255 + 1e-6


def test_reversed_read_only_and_listed_arrays_are_read(tokenizer, pixels):
    mirrored, frozen = pixels[0, :, :, ::-1], pixels[0].copy()
    frozen.flags.writeable = False
    assert torch.equal(tokenizer.encode(mirrored).clips[0].codes, tokenizer.encode(mirrored.copy()).clips[0].codes)
    assert torch.equal(tokenizer.encode(frozen).clips[0].codes, tokenizer.encode(list(pixels[0])).clips[0].codes)


def test_decoded_pixels_are_those_of_the_model(tokenizer, pixels):
    video = torch.from_numpy(np.moveaxis(pixels, -1, 1).copy()) / 127.5 - 1
    decoded = tokenizer.model.decode(tokenizer.model.encode(video))
    ours = tokenizer.decode(tokenizer.encode((video + 1) / 2))
    torch.testing.assert_close(ours * 2 - 1, decoded.clamp(-1, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 3, 6, 7, 13])
def test_a_video_of_any_length_is_coded_in_consecutive_clips(tokenizer, frames):
    video = np.random.default_rng(1).integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)
    tokens = tokenizer.encode(video)
    assert tokens.lengths.shape == (1, -(-frames // 2))
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == video.shape
    if frames > 6:
        assert np.array_equal(decoded[:6], tokenizer.decode(tokenizer.encode(video[:6])))


def test_a_budget_is_the_most_that_each_clip_keeps_whatever_is_encoded_beside_it(tokenizer, pixels):
    tokens = tokenizer.encode(pixels, tokens=14)
    assert int(tokens.lengths.sum(1).max()) <= 14
    assert set(tokens.lengths.flatten().tolist()) <= set(SIZES)
    assert torch.equal(tokens.lengths[:1], tokenizer.encode(pixels[0], tokens=14).lengths)
    assert tokenizer.encode(pixels).lengths.eq(8).all()


def test_a_budget_beyond_all_tokens_is_no_limit(models, tokenizer, pixels):
    for opened in (tokenizer, genvid.load(models / "other", device="cpu")):
        assert torch.equal(opened.encode(pixels, tokens=2**70).lengths, opened.encode(pixels, tokens=24).lengths)


@pytest.mark.parametrize("tokens", [float("nan"), float("inf"), 14.5])
def test_budgets_that_are_no_whole_numbers_are_refused(models, tokenizer, pixels, tokens):
    model, predictor = (genvid.load(models / name, device="cpu") for name in ("ar", "predictor"))
    for spend in (
        lambda: tokenizer.encode(pixels, tokens=tokens),
        lambda: tokenizer.budget(tokens),
        lambda: model.sample(tokenizer, label=1, tokens=tokens),
        lambda: predictor.sample(tokenizer, prompt=pixels[0], prompt_tokens=tokens),
    ):
        with pytest.raises(ValueError, match=f"tokens are counted in whole numbers, got {tokens}"):
            spend()


def test_threads_that_share_a_tokenizer_spend_budgets_as_one_thread_does(tokenizer):
    videos = np.random.default_rng(2).integers(0, 256, (3, 13, 16, 16, 3), dtype=np.uint8).repeat(16, 0)
    alone = [tokenizer.encode(video, tokens=14).lengths.tolist() for video in videos]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            beside = pool.map(lambda video: tokenizer.encode(video, tokens=14).lengths.tolist(), videos)
            assert list(beside) == alone
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_tokens_are_refined_in_inference_mode_too(models, tokenizer, pixels, form):
    refined = tokenizer.encode(form(pixels), tokens=14, refine=2)
    with torch.inference_mode():
        again = genvid.load(models / "tokenizer", device="cpu").encode(form(pixels), tokens=14, refine=2)
        frames = tokenizer.decode(again)
    assert torch.equal(again.clips[0].codes, refined.clips[0].codes)
    assert np.array_equal(np.asarray(frames), np.asarray(tokenizer.decode(refined)))


def test_without_a_scorer_a_budget_is_spent_evenly(models, pixels):
    tokenizer = genvid.load(models / "other", device="cpu")
    assert tokenizer.encode(pixels, tokens=14).lengths.tolist() == [[4, 4, 4]] * 2
    with pytest.raises(BudgetError, match="2 tokens are too few for a clip of 3 blocks, which take at least 3"):
        tokenizer.encode(pixels, tokens=2)


def test_the_scorer_may_lie_elsewhere_but_belongs_to_a_tokenizer(models, tokenizer, pixels):
    own = genvid.load(models / "other", scorer=models / "tokenizer" / "scorer", device="cpu")
    assert set(own.encode(pixels, tokens=14).lengths.flatten().tolist()) <= set(SIZES)
    with pytest.raises(ValueError, match="a scorer belongs to an AdapTok tokenizer"):
        genvid.load(models / "ar", scorer=models / "tokenizer" / "scorer")
    with pytest.raises(BudgetError, match="take at least 6"):
        tokenizer.encode(pixels, tokens=5)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((6, 16, 16), np.uint8), r"a video is .*, got \(6, 16, 16\)"),
        (np.zeros((6, 16, 16, 4), np.uint8), r"a video is .*, got \(6, 16, 16, 4\)"),
        (np.zeros((0, 16, 16, 3), np.uint8), r"a video is .*, got \(0, 16, 16, 3\)"),
        (np.zeros((6, 8, 16, 3), np.uint8), "takes 16x16 frames, got 8x16; resize first"),
        (np.zeros((6, 16, 16, 3), np.int64), "uint8 from 0 to 255 or floats from 0 to 1, got torch.int64"),
        (np.full((6, 16, 16, 3), -1.0), "from 0 to 1, got -1 to -1"),
        (np.full((6, 16, 16, 3), 255.0), "from 0 to 1, got 255 to 255"),
        (np.full((6, 16, 16, 3), np.nan), "from 0 to 1, got nan to nan"),
        ("video.mp4", "an array of pixels, got a str"),
    ],
)
def test_arrays_of_other_kinds_are_refused_in_a_sentence(tokenizer, array, said):
    with pytest.raises(ValueError, match=said):
        tokenizer.encode(array)


def test_tokens_of_another_tokenizer_are_refused(models, tokenizer, pixels):
    with pytest.raises(ProvenanceError, match="decode them with the tokenizer that encoded them"):
        genvid.load(models / "other", device="cpu").decode(tokenizer.encode(pixels))


def test_products_in_bf16(models, tokenizer, pixels):
    half = genvid.load(models / "tokenizer", device="cpu", precision="bf16")
    assert half.model.encoder[0].up.weight.dtype == half.predictor.scorer.layers[0].up.weight.dtype == torch.bfloat16
    assert half.model.quantizer.input.weight.dtype == torch.float32
    given, whole = half.encode(pixels, tokens=11), tokenizer.encode(pixels, tokens=11)
    same = torch.cat([a.codes == b.codes for a, b in zip(given.clips, whole.clips, strict=True)])
    assert same.double().mean() > 0.8
    assert int(given.lengths.sum(1).max()) <= 11
    frames = half.decode(given)
    assert 0 < np.abs(tokenizer.decode(given).astype(int) - frames).mean() < 4
    assert np.array_equal(half.fitted((16, 16)).decode(given), frames)
    with pytest.raises(ValueError, match="precision is one of fp32, bf16, got 'fp16'"):
        genvid.load(models / "ar", precision="fp16")
    videos = genvid.load(models / "ar", precision="bf16").sample(half, label="run", count=2)
    assert videos.shape == (2, 6, 16, 16, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_work_on_a_gpu_that_is_not_the_current_one(gpu, models, pixels, precision):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    found = []
    for place in ("cuda:0", "cuda:1"):
        coder = genvid.load(models / "tokenizer", device=place, precision=precision)
        model = genvid.load(models / "ar", device=place, precision=precision)
        for _ in range(3):  # as written, captured as a graph, and replayed
            tokens = coder.encode(pixels[:1], tokens=11)
            frames = coder.decode(tokens)
        videos = model.sample(coder, label=1, count=2, temperature=0)
        found.append((tokens.lengths.numpy(), frames, videos, *model.stream(coder, label=1, temperature=0)))
        assert torch.cuda.current_device() == 0
    for one, other in zip(*found, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_all_work_is_done_on_the_device_of_the_model(models, pixels, monkeypatch):
    """Kernels are launched on the current GPU, which need not be that of the weights."""
    places = []
    coder, model = (genvid.load(models / name, device="cpu") for name in ("tokenizer", "ar"))
    monkeypatch.setattr(genvid.api, "on", lambda place: places.append(place) or on(place))
    coder.decode(coder.encode(pixels, tokens=11))
    model.sample(coder, label=1)
    assert len([*model.stream(coder, label=1)]) > 1
    assert places == 4 * [torch.device("cpu")]


def test_samples_of_a_class_by_name_or_number(models, tokenizer):
    model = genvid.load(models / "ar", device="cpu")
    videos = model.sample(tokenizer, label="run", count=2)
    parts = list(model.stream(tokenizer, label="run"))
    assert len(parts) > 1
    assert np.abs(np.concatenate(parts).astype(int) - videos[0]).max() <= 1
    assert (videos.dtype, videos.shape) == (np.uint8, (2, 6, 16, 16, 3))
    assert np.array_equal(videos[:1], model.sample(tokenizer, label=1))
    assert not np.array_equal(videos, model.sample(tokenizer, label=1, count=2, seed=1))
    assert model.sample(tokenizer, label=1, tokens=6, guidance="by_tokens").shape == (1, 6, 16, 16, 3)
    with pytest.raises(ValueError, match="schedule of the names constant, by_tokens, by_block, power_cosine"):
        model.sample(tokenizer, label=1, guidance="strong")
    with pytest.raises(ValueError, match=r"no class 'walk'; a class is a number from 0 to 2, or one of swim, run, fly"):
        model.sample(tokenizer, label="walk")
    with pytest.raises(ValueError, match=r"give a class .*; a class is a number from 0 to 2"):
        model.sample(tokenizer)
    with pytest.raises(ValueError, match="prompt_tokens cuts a prompt"):
        model.sample(tokenizer, label=1, prompt_tokens=14)


def test_draft_heads_sample_the_greedy_videos_of_their_model(models, tokenizer, tmp_path):
    model = genvid.load(models / "ar", device="cpu")
    heads = DraftHeads(DraftConfig(model.model.config.transformer.width, 2))
    heads.save(tmp_path)
    quick = genvid.load(models / "ar", draft=tmp_path, device="cpu")
    greedy = [each.sample(tokenizer, label=1, temperature=0) for each in (model, quick)]
    assert np.abs(greedy[0].astype(int) - greedy[1]).max() <= 1
    with pytest.raises(ValueError, match="draft heads belong to an autoregressive model"):
        genvid.load(models / "tokenizer", draft=tmp_path)


def test_continuations_of_a_prompt_come_in_its_form(models, tokenizer, pixels):
    model = genvid.load(models / "predictor", device="cpu")
    prompt = torch.from_numpy(np.moveaxis(pixels[0], -1, 0).copy()) / 255
    videos = model.sample(tokenizer, prompt=prompt, count=2, prompt_tokens=18)
    assert (videos.dtype, videos.shape) == (torch.float32, (2, 3, 6, 16, 16))
    parts = list(model.stream(tokenizer, prompt=prompt, prompt_tokens=18))
    torch.testing.assert_close(torch.cat(parts, 1), videos[0])
    with pytest.raises(ValueError, match="a prompt is one video, got 2"):
        model.sample(tokenizer, prompt=pixels)
    with pytest.raises(ValueError, match="give a label or a prompt, not both"):
        model.sample(tokenizer, label=1, prompt=prompt)
    with pytest.raises(ValueError, match="this model continues videos"):
        model.sample(tokenizer, label=1)


def test_prompts_are_cut_as_in_training(models, tokenizer, pixels, monkeypatch):
    model = genvid.load(models / "predictor", device="cpu")
    read, continuation = [], model.model.continuation
    monkeypatch.setattr(model.model, "continuation", lambda given: read.append(given) or continuation(given))
    for rule, tokens in (("uniform", 12), ("joint", 12), ("joint", 24)):
        model.model.origin = Origin({"cache": {"allocator": {"type": rule, "tokens_per_video": tokens}}})
        model.sample(tokenizer, prompt=pixels[0])
    even, scored, whole = (int(given.lengths) for given in read)
    assert (even, whole) == (4, 8)
    assert scored <= 4
    model.model.origin = Origin({"cache": {"allocator": {"type": "joint", "tokens_per_video": 12}}})
    with pytest.raises(ValueError, match="was trained on clips of at most 12 tokens"):
        model.sample(genvid.load(models / "other", device="cpu"), prompt=pixels[0])


def test_other_models_are_refused(models):
    with pytest.raises(CheckpointError, match=r"type adaptok_scorer; genvid\.load opens tokenizers and autoregressive"):
        genvid.load(models / "tokenizer" / "scorer")
    with pytest.raises(AttributeError, match="no attribute 'save'"):
        genvid.save  # noqa: B018
