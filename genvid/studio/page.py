"""The page: components of gradio around a `Session`, and the pictures that its screens draw (screen.js)."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import accumulate, chain
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import

import gradio as gr
import torch
from torch import Tensor

from genvid.api import Generator, Tokenizer
from genvid.ar.classes import class_names
from genvid.data import EXAMPLE_VIDEO
from genvid.data.images import jpeg
from genvid.data.video import video_bytes
from genvid.eval.pages.page import Clip
from genvid.generation.pipeline import check_match
from genvid.studio.session import Session
from genvid.studio.video import MOST_FRAMES, CodedBlock, CodedClip, CodedVideo

Value = dict[str, Any]
"""Of a screen, as screen.js reads it."""
Generators = Mapping[str, tuple[Generator, str]]
"""Autoregressive models, each with the name of its tokenizer."""

FPS = 25.0
"""Frames per second of samples of a class."""
SHARES = (1 / 2, 1 / 8)
"""Of the largest budget: the sliders of the two screens when a video is opened."""
TITLE = f"""<h1>genvid studio</h1>
<p>Drop a video, then move the budgets. The first {MOST_FRAMES} frames are coded, on this machine.</p>"""
PLAY = "<div class='play-row'><button class='play'>Pause</button></div>"
LEGEND = """<p class='legend'><i class='tokens'></i>tokens of each block, full height: all that a block can hold<br>
<i class='psnr'></i>PSNR of each block, 10 to 40 dB<br>Drag over them to seek.</p>"""
AT_PLAYHEAD = "(...inputs) => [...inputs.slice(0, -1), clock.seconds]"
"""Puts the playhead in place of the last input of an event."""


@dataclass(frozen=True)
class Pane:
    """A reconstruction: its tokenizer, its budget in tokens a second, and its screen."""

    number: int
    tokenizer: gr.Dropdown
    rate: gr.Slider
    screen: gr.HTML


def build(tokenizers: Mapping[str, Tokenizer], generators: Mapping[str, Generator]) -> gr.Blocks:
    """The page for these models by name. ValueError for a generator that fits none of the tokenizers."""
    matched = {name: (model, _tokenizer_of(model, name, tokenizers)) for name, model in generators.items()}
    with gr.Blocks(title="genvid studio", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        session, playhead = gr.State(), gr.Number(visible=False)
        gr.HTML(TITLE)
        file = gr.File(label="Video", file_types=["video"], height=120, elem_id="video")
        example = gr.Button("Use the example video", size="sm", elem_id="example")
        with gr.Row(elem_id="screens"):
            with gr.Column(min_width=240):
                gr.HTML("<h2>Original</h2>")
                original = _screen(PLAY, "original")
                gr.HTML(LEGEND)
            panes = [_pane(number, list(tokenizers)) for number in range(len(SHARES))]
        names = [pane.tokenizer for pane in panes]
        shown = [session, original, *(pane.rate for pane in panes)]
        drop, take = partial(_open, tokenizers), partial(_open, tokenizers, str(EXAMPLE_VIDEO))
        opened = [
            file.upload(drop, [file, session, *names], shown, api_visibility="private"),
            example.click(take, [session, *names], shown, api_visibility="private"),
        ]
        for pane in panes:
            _show_on_changes(pane, opened, session, playhead)
        if matched:
            _generation(tokenizers, matched, session, playhead)
    return page


def serve(page: gr.Blocks, port: int) -> str:
    """Serve the page to browsers on this machine alone, from threads of this process; returns its address.

    ValueError where the port is taken.
    """
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            ssr_mode=False,
            quiet=True,
            footer_links=[],
            run_history=False,
            prevent_thread_lock=True,
            css=_asset("studio.css"),
            head=f"<script>{_asset('screen.js')}</script>",
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )
    except OSError:  # gradio names a variable of its own
        raise ValueError(f"port {port} is taken by another program: give another one (--port)") from None
    return f"http://127.0.0.1:{port}"


def _asset(name: str) -> str:
    return resources.files("genvid.studio").joinpath(name).read_text()


def _tokenizer_of(generator: Generator, name: str, tokenizers: Mapping[str, Tokenizer]) -> str:
    """Name of the tokenizer whose tokens a generator was trained on."""
    reasons = []
    for candidate, tokenizer in tokenizers.items():
        try:
            check_match(generator.model, tokenizer.model)
            return candidate
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(f"{name} fits none of the tokenizers; give its own (--tokenizer): {'; '.join(reasons)}")


def _screen(controls: str, name: str) -> gr.HTML:
    canvas = "<canvas width='1' height='1'></canvas>"
    return gr.HTML(
        html_template=f"<div class='screen'>{canvas}{controls}<div class='facts'></div></div>",
        js_on_load="new Screen(element, props, watch)",
        apply_default_css=False,
        elem_id=name,
    )


def _pane(number: int, names: list[str]) -> Pane:
    letter = "AB"[number]
    with gr.Column(min_width=240):
        gr.HTML(f"<h2>Budget {letter}</h2>")
        screen = _screen("<div class='bars'></div>", f"screen-{letter.lower()}")
        rate = gr.Slider(1, 1000, label="Tokens a second", step=1, elem_id=f"rate-{letter.lower()}")
        chosen = names[min(number, len(names) - 1)]
        tokenizer = gr.Dropdown(names, value=chosen, label="Tokenizer", visible=len(names) > 1)
    return Pane(number, tokenizer, rate, screen)


def _show_on_changes(pane: Pane, opened: Sequence[Any], session: gr.State, playhead: gr.Number) -> None:
    """Decode anew when a video was opened, when the slider moves, and under another tokenizer."""
    event = {
        "fn": partial(_show, pane.number),
        "inputs": [session, pane.tokenizer, pane.rate, playhead],
        "outputs": pane.screen,
        "js": AT_PLAYHEAD,
        "show_progress": "hidden",
        "concurrency_limit": None,
        "api_visibility": "private",
    }
    for video in opened:
        video.success(**event)
    pane.rate.input(**event, trigger_mode="multiple")
    changed = pane.tokenizer.input(
        partial(_rate, SHARES[pane.number]), [session, pane.tokenizer], pane.rate, api_visibility="private"
    )
    changed.success(**event)


@contextmanager
def _explained() -> Iterator[None]:
    """Shows a ValueError of the body on the page: its sentence gives the remedy."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _open(
    tokenizers: Mapping[str, Tokenizer], path: str, session: Session | None, *names: str
) -> tuple[Session, Value, Any, Any]:
    """A video, and the tokenizers of both screens -> the original, and the sliders of both screens."""
    session = session or Session(tokenizers)
    with _explained():
        session.open(path)
        rates = [_rate(share, session, name) for share, name in zip(SHARES, names, strict=True)]
        coded = session.coded(names[0])
    pictures: list[Value | None] = [{"picture": _picture(frames)} for frames in coded.original()]
    facts = f"{coded.frames} frames, {coded.fps:g} a second"
    return session, _value(session, coded, "original", 0, pictures, facts), *rates


def _rate(share: float, session: Session | None, name: str) -> Any:
    """The slider for the video under a tokenizer; unchanged while there is none."""
    if session is None:
        return gr.skip()
    with _explained():
        least, most = session.coded(name).rates
    return gr.Slider(least, most, value=max(least, round(share * most)))


def _show(pane: int, session: Session | None, name: str, rate: float, playhead: float) -> Iterator[Value]:
    """The reconstruction as its clips are decoded, from that at the playhead on; nothing while there is no video."""
    if session is None:
        return
    with _explained():
        coded = session.coded(name)
        pictures: list[Value | None] = [None] * coded.num_blocks
        clips: dict[int, CodedClip] = {}
        for request, clip in session.requests[pane].parts(coded.at(rate, int(playhead * coded.fps))):
            clips[clip.number] = clip
            pictures[clip.first_block : clip.first_block + len(clip.blocks)] = map(_block_value, clip.blocks)
            yield _value(session, coded, name, request, pictures, _facts(coded, list(clips.values())))


def _block_value(block: CodedBlock) -> Value:
    return {"picture": _picture(block.frames), "tokens": block.tokens, "psnr": block.psnr}


def _value(
    session: Session, coded: CodedVideo, name: str, request: int, blocks: list[Value | None], facts: str
) -> Value:
    frames = chain.from_iterable(map(coded.spec.block_frames, coded.blocks))
    return {
        "video": f"{session.opened} {name}",
        "request": request,
        "size": coded.spec.resolution[::-1],
        "fps": coded.fps,
        "frames": coded.frames,
        "starts": [0, *accumulate(frames)][:-1],
        "capacity": coded.spec.block_capacity,
        "blocks": blocks,
        "facts": facts,
    }


def _facts(coded: CodedVideo, clips: list[CodedClip]) -> str:
    """Tokens, bits and PSNR of the decoded clips."""
    seconds = sum(clip.num_frames for clip in clips) / coded.fps
    blocks = [block for clip in clips for block in clip.blocks]
    tokens, bits = sum(block.tokens for block in blocks), sum(clip.bits for clip in clips)
    psnr = sum(block.psnr for block in blocks) / len(blocks)
    return (
        f"<b>{tokens:,}</b> tokens, {tokens / seconds:.0f} a second; <b>{bits / seconds / 1000:.2f}</b> kbit/s; "
        f"PSNR <b>{psnr:.2f}</b> dB, mean of blocks"
    )


def _picture(frames: Tensor) -> str:
    """(3, T, H, W) uint8 -> the frames below each other, as a data URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(frames.flatten(1, 2))).decode()}"


def _generation(
    tokenizers: Mapping[str, Tokenizer], generators: Generators, session: gr.State, playhead: gr.Number
) -> None:
    """Samples of a class and continuations of the video, whichever a model makes."""
    names = list(generators)
    gr.HTML("<h2>Sample</h2>")
    with gr.Row():
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        condition = gr.Dropdown(_conditions(generators[names[0]][0]), label="Condition", elem_id="condition")
        count = gr.Slider(1, 16, value=4, step=1, label="Videos")
        temperature = gr.Slider(0.1, 1.5, value=1.0, label="Temperature")
        guidance = gr.Slider(1, 6, value=1.0, label="Guidance")
        seed = gr.Number(0, precision=0, label="Seed")
    button, videos = gr.Button("Sample", elem_id="sample"), gr.HTML(elem_id="samples")
    model.input(lambda name: _first_of(_conditions(generators[name][0])), model, condition, api_visibility="private")
    button.click(
        partial(_sample, tokenizers, generators),
        [session, model, condition, count, temperature, guidance, seed, playhead],
        videos,
        js=AT_PLAYHEAD,
        api_visibility="private",
    )


def _conditions(generator: Generator) -> list[str]:
    model = generator.model
    if model.config.context_blocks:
        return ["the video, from the playhead on"]
    return class_names(model) or [str(number) for number in range(model.layout.num_classes)]


def _first_of(conditions: list[str]) -> Any:
    """The menu of the conditions of another model, with its first one chosen."""
    return gr.Dropdown(conditions, value=conditions[0] if conditions else None)


def _sample(
    tokenizers: Mapping[str, Tokenizer],
    generators: Generators,
    session: Session | None,
    name: str,
    condition: str,
    count: int,
    temperature: float,
    guidance: float,
    seed: int | None,
    playhead: float,
) -> str:
    """Videos of a class, or that continue the one that was dropped, as HTML. An empty field of the seed is seed 0."""
    session, (generator, tokenizer) = session or Session(tokenizers), generators[name]
    sampling = {"count": int(count), "temperature": temperature, "guidance": guidance, "seed": seed or 0}
    with _explained():
        if generator.model.config.context_blocks:
            videos, fps = session.continuations(generator, tokenizer, playhead, **sampling)
        else:
            label = condition if generator.model.layout.num_classes else None
            videos, fps = session.samples(generator, tokenizer, label, **sampling), FPS
    clips = (torch.from_numpy(video).permute(3, 0, 1, 2) for video in videos)
    return f"<div class='clips'>{''.join(Clip(video_bytes(clip, fps)).html() for clip in clips)}</div>"
