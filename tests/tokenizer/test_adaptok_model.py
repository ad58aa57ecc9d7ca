"""AdapTok is block-causal, reads kept tokens only, and does not care what else is in the batch."""

import copy
from dataclasses import replace

import pytest
import torch

from genvid.checkpoint import CheckpointError, load_model
from genvid.tokenizer.adaptok.attention import full_attention
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.patches import patchify, unpatchify
from genvid.tokenizer.layers import StackConfig, initialise
from genvid.tokenizer.quantizer import FSQConfig, VQConfig
from genvid.tokens import VideoTokenizer

CONFIG = AdapTokConfig(
    frames=12,
    resolution=(16, 24),
    patch=(4, 8, 8),
    block_capacity=6,
    encoder=StackConfig(16, 2, 2),
    decoder=StackConfig(24, 2, 3),
    quantizer=VQConfig(codebook_size=32, code_dim=8),
)
LENGTHS = torch.tensor([[6, 3, 1], [2, 0, 5]])


def build(config):
    torch.manual_seed(0)
    model = AdapTok(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(params=[VQConfig(codebook_size=32, code_dim=8), FSQConfig((4, 3, 5))], ids=["vq", "fsq"])
def model(request):
    return build(replace(CONFIG, quantizer=request.param))


@pytest.fixture
def video():
    torch.manual_seed(1)
    return torch.rand(2, 3, 12, 16, 24) * 2 - 1


def test_patches_round_trip(video):
    patches = patchify(video, (4, 8, 8))
    assert patches.shape == (2, 3, 2, 3, 4 * 8 * 8 * 3)
    assert patches[0, 1, 0, 2].view(4, 8, 8, 3).permute(3, 0, 1, 2).equal(video[0, :, 4:8, :8, 16:])
    assert unpatchify(patches, (4, 8, 8), [4, 4, 4]).equal(video)
    filled = patchify(video[:, :, 3:], (4, 8, 8))
    assert filled[:, 1:].equal(patches[:, 1:])
    assert unpatchify(filled, (4, 8, 8), [1, 4, 4]).equal(video[:, :, 3:])
    assert unpatchify(filled, (4, 8, 8), [4, 4, 4])[:, :, :4].equal(video[:, :, 3:4].expand(-1, -1, 4, -1, -1))


def test_is_a_video_tokenizer(model, video):
    assert isinstance(model, VideoTokenizer)
    assert model.spec.max_blocks == 3
    tokens = model.encode(video)
    assert tokens.keep.all()
    assert tokens.codes.shape == (2, 3, 6)
    assert tokens.codes.unique().numel() > 4
    assert model.decode(tokens).shape == video.shape


def test_earlier_blocks_do_not_see_later_frames(model, video):
    changed = video.clone()
    changed[:, :, 8:] = torch.rand_like(changed[:, :, 8:])
    before, after = model.encode(video), model.encode(changed)
    torch.testing.assert_close(after.features[:, :2], before.features[:, :2], atol=1e-6, rtol=0)
    assert after.codes[:, :2].equal(before.codes[:, :2])
    assert not torch.allclose(after.features[:, 2], before.features[:, 2])


def test_earlier_frames_do_not_see_later_tokens(model, video):
    tokens = model.encode(video)
    full = model.decode(tokens)
    shorter = model.decode(tokens.tail_drop(torch.tensor([[6, 6, 1], [6, 6, 0]])))
    torch.testing.assert_close(shorter[:, :, :8], full[:, :, :8], atol=1e-5, rtol=0)
    assert not torch.allclose(shorter[:, :, 8:], full[:, :, 8:])


def test_later_frames_see_earlier_tokens(model, video):
    tokens = model.encode(video)
    shorter = model.decode(tokens.tail_drop(torch.tensor([[2, 6, 6], [2, 6, 6]])))
    assert not torch.allclose(shorter[:, :, 8:], model.decode(tokens)[:, :, 8:])


def test_a_shorter_clip_is_exact(model, video):
    tokens, short = model.encode(video), model.encode(video[:, :, :8])
    assert short.codes.equal(tokens.codes[:, :2])
    torch.testing.assert_close(model.decode(short), model.decode(tokens)[:, :, :8], atol=1e-5, rtol=1e-5)


def test_dropped_tokens_are_not_read(model, video):
    tokens = model.encode(video).tail_drop(LENGTHS)
    noise = torch.randint(-(10**6), 10**6, tokens.codes.shape)
    noisy = replace(tokens, codes=torch.where(tokens.keep, tokens.codes, noise))
    assert model.decode(noisy).equal(model.decode(tokens))
    embeddings = model.embed(tokens)
    wild = torch.where(tokens.keep[..., None], embeddings, torch.nan)
    assert model.render(wild, tokens.keep).equal(model.render(embeddings, tokens.keep))


def test_any_subset_of_slots_can_be_kept(model, video):
    tokens = model.encode(video)
    tokens = replace(tokens, keep=torch.rand(tokens.keep.shape) < 0.4)
    torch.testing.assert_close(
        model.decode(tokens), model.render(model.embed(tokens), tokens.keep), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("lengths", [LENGTHS, torch.full((2, 3), 6), torch.zeros(2, 3), torch.full((2, 3), 2)])
def test_trimmed_decode_equals_untrimmed(model, video, lengths):
    tokens = model.encode(video).tail_drop(lengths)
    rendered = model.render(model.embed(tokens), tokens.keep)
    torch.testing.assert_close(model.decode(tokens), rendered, atol=1e-5, rtol=1e-5)
    for block in range(3):
        one = model.render_block(model.embed(tokens), tokens.keep, block)
        torch.testing.assert_close(one, rendered[:, :, 4 * block : 4 * block + 4], atol=1e-5, rtol=1e-5)


def test_decode_does_not_depend_on_the_batch(model, video):
    tokens = model.encode(video).tail_drop(LENGTHS)
    together = model.decode(tokens)
    for row in range(2):
        alone = model.decode(tokens[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter(model, video):
    model.train()
    keep = model.encode(video).tail_drop(LENGTHS).keep
    quantized = model.quantizer(model.features(video), keep, torch.arange(2))
    reconstruction = model.render(model.quantizer.project(quantized.vectors), keep)
    ((reconstruction - video).square().mean() + quantized.loss.mean()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_training_step_is_one_graph(model, video):
    """Nothing in it waits for the device: torch.compile would refuse with `fullgraph`."""
    keep = model.encode(video).tail_drop(LENGTHS).keep

    def step(video, keep, seeds):
        quantized = model.quantizer(model.features(video), keep, seeds)
        return model.render(model.quantizer.project(quantized.vectors), keep), quantized.loss

    model.train()
    arguments = (video, keep, torch.arange(2))
    compiled = torch.compile(step, fullgraph=True, backend="eager")(*arguments)
    torch.testing.assert_close(compiled, step(*arguments))


def test_initial_output_is_grey(video):
    model = AdapTok(CONFIG)
    assert model.decode(model.encode(video)).abs().max() == 0


def test_save_and_load(model, video, tmp_path):
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model", VideoTokenizer)
    assert loaded.config == model.config
    tokens = model.encode(video).tail_drop(LENGTHS)
    assert loaded.encode(video).codes.equal(model.encode(video).codes)
    assert loaded.decode(tokens).equal(model.decode(tokens))


def test_weights_of_another_size_are_refused(tmp_path):
    AdapTok(CONFIG).save(tmp_path / "a")
    AdapTok(replace(CONFIG, block_capacity=8)).save(tmp_path / "b")
    (tmp_path / "a" / "config.json").write_text((tmp_path / "b" / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"encoder_positions.queries is \(3, 6, 16\) but should be \(3, 8, 16\)"):
        load_model(tmp_path / "a", VideoTokenizer)


def test_bad_tokens_are_refused(video):
    model = build(CONFIG)
    tokens = model.encode(video)
    with pytest.raises(ValueError, match="another tokenizer"):
        model.decode(replace(tokens, codes=tokens.codes + 32))
    with pytest.raises(ValueError, match="have no codes"):
        model.decode(replace(tokens, codes=None))
    narrow = replace(tokens, keep=tokens.keep[..., :4], codes=tokens.codes[..., :4], features=None)
    with pytest.raises(ValueError, match="3 blocks of 4 do not fit"):
        model.decode(narrow)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"30 \(height\) is not a multiple of the patch's 8"):
        replace(CONFIG, resolution=(30, 24))
    with pytest.raises(ValueError, match="multiple of 4 and of the number of heads"):
        StackConfig(20, 2, 3)


def test_parameter_count_of_the_published_size():
    with torch.device("meta"):
        model = AdapTok(AdapTokConfig())
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 172.97


def test_rounded_blocks_compute_as_autocast_does():
    """To the bit; the rest of a model stays in float32."""
    block = StackConfig(64, 1, 4).build()[0]
    initialise(block)
    x, rounded = torch.randn(2, 50, 64), copy.deepcopy(block)
    rounded.round(torch.bfloat16)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            expected = block(x, full_attention)
        assert rounded(x, full_attention).equal(expected)
        assert expected.dtype == torch.float32
        assert not expected.equal(block(x, full_attention))
