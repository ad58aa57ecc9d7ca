"""Published checkpoints convert into models that give the published numbers.

Twice: against outputs of the published code (where those files are), and against a slow dense rewriting of the spec
on a folder made here, with sizes of its own.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import conv3d, gelu, layer_norm, linear, normalize

from genvid.allocation import GroupAllocator
from genvid.checkpoint import CheckpointError, load_model
from genvid.tokenizer.adaptok.published import convert, published_budgets
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokens import VideoTokenizer

PARITY = Path(__file__).resolve().parents[2].parent / "shared" / "parity"
FOLDERS = sorted(PARITY.glob("tokenizer_*"))

# 3 blocks of 2 frames, 4 x 4 patches of 16 x 16 frames, 6 tokens a block.
CONFIG = {
    "bottleneck": {
        "name": "bottleneck",
        "args": {
            "bottleneck_dim": 5,
            "norm": "none",
            "regularizer": {
                "name": "vq",
                "args": {"codebook_size": 40, "commitment_loss_weight": 0.5, "l2_normalized": True},
            },
        },
    },
    "prior_model": {"name": "gptc-S"},
    "scorer_name": "transformer_scorer",
    "bottleneck_token_num": 18,
    "input_size": 16,
    "frame_num": 6,
    "temporal_patch_size": 2,
    "patch_size": 4,
    "decoder_temporal_patch_size": 2,
    "decoder_patch_size": 4,
    "encoder_hidden_size": 16,
    "decoder_hidden_size": 16,
    "scorer_hidden_size": 24,
    "encoder_num_heads": 2,
    "decoder_num_heads": 4,
    "scorer_num_heads": 3,
    "encoder_depth": 2,
    "decoder_depth": 1,
    "scorer_depth": 2,
    "scorer_step": 2,
    "encoder_attn_type": "full_causal_type1",
    "decoder_attn_type": "full_causal_type2",
    "mask_generator": {"total_toks": 6, "tot_groups": 3},
}
GROUPS, PATCHES, TOKENS, STEP = 3, 16, 6, 2


def wave(positions, width):
    angles = positions[:, None] / 10000 ** (torch.arange(width // 2, dtype=torch.double) / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], 1)


def patch_table(width):
    t, y, x = torch.meshgrid(*(torch.arange(n).double() for n in (GROUPS, 4, 4)), indexing="ij")
    place = torch.cat([wave(x.flatten(), width // 2), wave(y.flatten(), width // 2)], 1)
    return (place + wave(t.flatten(), width))[None].float()


def random_weights():
    torch.manual_seed(0)

    def stack(name, width, depth):
        shapes = {"norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,)}
        shapes |= {"attn.qkv.weight": (3 * width, width), "attn.proj.weight": (width, width)}
        shapes |= {"attn.proj.bias": (width,), "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,)}
        shapes |= {"mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,)}
        return {f"{name}.blocks.{i}.{key}": shape for i in range(depth) for key, shape in shapes.items()}

    shapes = stack("encoder", 16, 2) | stack("decoder", 16, 1) | stack("scorer", 24, 2)
    shapes |= {"x_embedder.proj.weight": (16, 3, 2, 4, 4), "x_embedder.proj.bias": (16,)}
    shapes |= {"encoder_latent_query_embed": (18, 16), "decoder_patch_query_token_type_embed": (1, 1, 16)}
    shapes |= {"bottleneck.in_linear.weight": (5, 16), "bottleneck.in_linear.bias": (5,)}
    shapes |= {"bottleneck.out_linear.weight": (16, 5), "bottleneck.out_linear.bias": (16,)}
    shapes |= {"bottleneck.regularizer.embedding.weight": (40, 5)}
    shapes |= {"final_layer.norm_final.weight": (16,), "final_layer.norm_final.bias": (16,)}
    shapes |= {"final_layer.linear.weight": (96, 16), "final_layer.linear.bias": (96,)}
    shapes |= {"scorer.latent_pe": (18, 24), "scorer.project.weight": (24, 32), "scorer.project.bias": (24,)}
    shapes |= {"scorer.ln_post.weight": (24,), "scorer.ln_post.bias": (24,)}
    shapes |= {"scorer.ffn.0.weight": (48, 24), "scorer.ffn.0.bias": (48,)}
    shapes |= {"scorer.ffn.2.weight": (1, 48), "scorer.ffn.2.bias": (1,), "prior_model.head.weight": (5, 8)}
    weights = {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    weights |= {"encoder_patch_pe": patch_table(16), "decoder_patch_query_embed": patch_table(16)}
    weights["decoder_latent_pe"] = wave(torch.arange(18).double(), 16)[None].float()
    return weights


def write(folder, weights, config=CONFIG):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return folder


class Dense:
    """The published model as the spec tells it, with dense masks, one clip at a time, pixels in [0, 1]."""

    def __init__(self, weights):
        self.weights = {name: value.double() for name, value in weights.items()}

    def affine(self, name, x):
        return linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name, x, eps=1e-5):
        return layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def transformer(self, name, heads, x, allowed):
        depth = sum(key.startswith(name) and key.endswith("norm1.weight") for key in self.weights)
        for block in (f"{name}.blocks.{i}" for i in range(depth)):
            qkv = self.affine(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x))
            query, key, value = qkv.view(len(x), 3, heads, -1).permute(1, 2, 0, 3)
            logits = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
            x = x + self.affine(f"{block}.attn.proj", (logits.softmax(-1) @ value).transpose(0, 1).flatten(1))
            hidden = gelu(self.affine(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x)))
            x = x + self.affine(f"{block}.mlp.fc2", hidden)
        return x

    def encode(self, video):
        weights = self.weights
        patches = conv3d(video.double()[None], weights["x_embedder.proj.weight"], stride=(2, 4, 4))
        patches = patches.flatten(2)[0].T + weights["x_embedder.proj.bias"] + weights["encoder_patch_pe"][0]
        group = torch.cat([torch.arange(48) // PATCHES, torch.arange(18) // TOKENS])
        x = torch.cat([patches, weights["encoder_latent_query_embed"]])
        latents = self.transformer("encoder", 2, x, group[:, None] >= group)[48:]
        codebook = normalize(weights["bottleneck.regularizer.embedding.weight"], dim=-1)
        codes = (normalize(self.affine("bottleneck.in_linear", latents), dim=-1) @ codebook.T).argmax(-1)
        return latents, codes, self.affine("bottleneck.out_linear", codebook[codes])

    def decode(self, embeddings, lengths):
        weights = self.weights
        keep = torch.cat([(torch.arange(TOKENS) < lengths[:, None]).flatten(), torch.ones(48, dtype=torch.bool)])
        group = torch.cat([torch.arange(18) // TOKENS, torch.arange(48) // PATCHES])
        pixel = torch.arange(66) >= 18
        allowed = (group[:, None] >= group) & ~pixel | (group[:, None] == group) & pixel & pixel[:, None]
        allowed = allowed & keep & keep[:, None] | torch.eye(66, dtype=torch.bool)
        queries = weights["decoder_patch_query_embed"][0] + weights["decoder_patch_query_token_type_embed"][0]
        x = torch.cat([embeddings * keep[:18, None] + weights["decoder_latent_pe"][0], queries])
        x = self.norm("final_layer.norm_final", self.transformer("decoder", 4, x, allowed)[18:], 1e-6)
        pixels = self.affine("final_layer.linear", x).view(3, 4, 4, 2, 4, 4, 3)
        return pixels.permute(6, 0, 3, 1, 4, 2, 5).reshape(3, 6, 16, 16)

    def score(self, latents, embeddings, lengths):
        keep = (torch.arange(TOKENS) < lengths[:, None]).flatten()
        group = torch.arange(18) // TOKENS
        allowed = (group[:, None] >= group) & keep & keep[:, None] | torch.eye(18, dtype=torch.bool)
        x = torch.cat([latents, embeddings], 1) * keep[:, None]
        x = self.affine("scorer.project", x) + self.weights["scorer.latent_pe"]
        x = self.norm("scorer.ln_post", self.transformer("scorer", 3, x, allowed))
        return self.affine("scorer.ffn.2", self.affine("scorer.ffn.0", x).tanh())[STEP - 1 :: STEP, 0].view(3, 3)


def test_converted_models_equal_a_dense_rewriting(tmp_path):
    weights = random_weights()
    conversion = convert(write(tmp_path / "published", weights), tmp_path / "model")
    assert conversion.left_out == ["prior_model.head.weight"]
    tokenizer, scorer = load_model(conversion.tokenizer, VideoTokenizer), load_model(conversion.scorer)
    assert tokenizer.config.quantizer.commitment_weight == 0.5
    assert scorer.config.sizes == (2, 4, 6)
    video = torch.rand(2, 3, 6, 16, 16)
    lengths = torch.tensor([[4, 6, 1], [2, 0, 3]])
    tokens = tokenizer.encode(2 * video - 1)
    cut = tokens.tail_drop(lengths)
    decoded = (tokenizer.decode(cut) + 1) / 2
    embeddings = tokenizer.embed(tokens)
    with torch.no_grad():
        scores = scorer(scorer.scorer_inputs(tokenizer, tokens), cut.keep)
    dense = Dense(weights)
    for row in range(2):
        latents, codes, embedded = dense.encode(video[row])
        assert tokens.codes[row].flatten().equal(codes)
        torch.testing.assert_close(tokens.features[row].flatten(0, 1).double(), latents, atol=1e-5, rtol=0)
        torch.testing.assert_close(embeddings[row].flatten(0, 1).double(), embedded, atol=1e-5, rtol=0)
        torch.testing.assert_close(decoded[row].double(), dense.decode(embedded, lengths[row]), atol=1e-4, rtol=0)
        expected = dense.score(latents, embedded, lengths[row])
        torch.testing.assert_close(scores[row].double(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(scorer.denormalize(torch.tensor([[0.0], [1.0]]))[:, 0], torch.tensor([0.19749, 0.27365]))


def test_a_tokenizer_without_scorer(tmp_path):
    weights = {name: value for name, value in random_weights().items() if not name.startswith("scorer.")}
    config = CONFIG | {"scorer_name": "none"}
    conversion = convert(write(tmp_path / "published", weights, config), tmp_path / "model")
    assert conversion.scorer is None
    assert not (tmp_path / "model" / "scorer").exists()


def change(name, value):
    def apply(weights):
        if value is None:
            del weights[name]
        else:
            weights[name] = value

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change("encoder.blocks.1.attn.qkv.weight", None), "missing encoder.blocks.1.attn.qkv.weight"),
        (change("scorer.ffn.2.bias", None), "missing scorer.ffn.2.bias"),
        (change("decoder_latent_pe", None), "missing decoder_latent_pe"),
        (change("encoder.cls", torch.zeros(2)), "unexpected encoder.cls"),
        (change("encoder.blocks.2.norm1.bias", torch.zeros(16)), "unexpected encoder.blocks.2.norm1.bias"),
        (
            change("bottleneck.in_linear.bias", torch.zeros(6)),
            r"bottleneck.in_linear.bias is \(6,\) but should be \(5,",
        ),
        (change("x_embedder.proj.weight", torch.zeros(16, 3, 4, 2, 4)), r"x_embedder.* should be \(16, 3, 2, 4, 4\)"),
        (change("decoder_latent_pe", torch.zeros(1, 18, 16)), "decoder_latent_pe is not the published sin-cos table"),
    ],
)
def test_entries_that_do_not_fit_are_named(tmp_path, apply, message):
    weights = random_weights()
    apply(weights)
    with pytest.raises(CheckpointError, match=message):
        convert(write(tmp_path / "published", weights), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"encoder_attn_type": "full_bi_attn"}, "encoder_attn_type = 'full_bi_attn'; genvid reads only"),
        ({"decoder_patch_size": 8}, "decoder_patch_size = 8, unlike the encoder's 4"),
        ({"mask_generator": {"tot_groups": 2}}, "2 blocks, 18 tokens"),
        ({"encoder_depth": None}, "encoder_depth in the published configuration must be a positive integer"),
        ({"scorer_name": "none"}, "unexpected scorer"),
        ({"encoder_attn_type": "absent"}, "no encoder_attn_type, .* LARP"),
    ],
)
def test_configurations_that_do_not_fit_are_explained(tmp_path, edit, message):
    config = {key: value for key, value in (CONFIG | edit).items() if value != "absent"}
    with pytest.raises(CheckpointError, match=message):
        convert(write(tmp_path / "published", random_weights(), config), tmp_path / "model")


def test_an_existing_destination_is_not_overwritten(tmp_path):
    write(tmp_path / "published", random_weights())
    with pytest.raises(CheckpointError, match="exists already"):
        convert(tmp_path / "published", tmp_path / "published")


def test_published_budgets():
    assert published_budgets(512, 1024) == [456, 242, 172, 150]
    assert published_budgets(256, 512) == [228, 121, 86, 75]
    assert sum(published_budgets(512, 2048)) == 2048
    for tokens in range(256, 2049, 256):
        assert sum(published_budgets(512, tokens)) == pytest.approx(tokens, abs=4)
        assert [2 * n for n in published_budgets(256, tokens // 2)] == published_budgets(512, tokens)
    with pytest.raises(ValueError, match="256, 512, 768, 1024, 1280, 1536, 1792, 2048, not 1000"):
        published_budgets(512, 1000)
    with pytest.raises(ValueError, match="blocks of 512, 256 tokens, not 64"):
        published_budgets(64, 512)


@pytest.fixture(params=FOLDERS or [None], ids=lambda folder: folder.name if folder else "absent")
def parity(request, tmp_path):
    """Converted models, the published code's numbers, and our tokens of its videos."""
    if request.param is None:
        pytest.skip(f"no published numbers in {PARITY}")
    conversion = convert(request.param, tmp_path / "model")
    tokenizer, scorer = load_model(conversion.tokenizer, VideoTokenizer), load_model(conversion.scorer)
    expected = load_file(request.param / "io.safetensors")
    return tokenizer, scorer, expected, tokenizer.encode(2 * expected["video"] - 1)


def close(actual, expected, atol=1e-4):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_parity_of_the_tokenizer(parity):
    tokenizer, _, expected, tokens = parity
    close(tokens.features.flatten(1, 2), expected["encoder_output"], atol=1e-5)
    assert tokens.codes.flatten(1).equal(expected["indices"].long())
    close(tokenizer.quantizer.lookup(tokens.codes).flatten(1, 2), expected["normalized_codes"])
    close(tokenizer.embed(tokens).flatten(1, 2), expected["quantized_projected"])
    close((tokenizer.decode(tokens) + 1) / 2, expected["recon_full"])
    close((tokenizer.decode(tokens.tail_drop(expected["lengths"])) + 1) / 2, expected["recon_lengths"])


def test_parity_of_the_scorer(parity):
    tokenizer, scorer, expected, tokens = parity
    cut = tokens.tail_drop(expected["lengths"])
    scorer_inputs = scorer.scorer_inputs(tokenizer, tokens)
    with torch.no_grad():
        close(scorer(scorer_inputs, tokens.keep).flatten(1), expected["scores_full"])
        close(scorer(scorer_inputs, cut.keep).flatten(1), expected["scores_lengths"])


def test_parity_of_the_allocation(parity):
    """Block after block under the published equality, whose budget is rounded down to whole steps."""
    tokenizer, scorer, expected, tokens = parity
    means = expected["ilp_mean_tokens_per_block"].tolist()
    predictor = ScorerPredictor(tokenizer, scorer)
    cut = GroupAllocator(predictor, means, len(tokens.keep), exact=True)(tokens)
    assert cut.lengths.equal(expected["ilp_lengths"].long())
    close((tokenizer.decode(cut) + 1) / 2, expected["ilp_recon"])
