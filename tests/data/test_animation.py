"""Animated pictures read back as the video that they show."""

from pathlib import Path

import av
import torch

from genvid.data.animation import write_animation


def test_an_animation_holds_every_frame(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 255, 32).to(torch.uint8).expand(3, 6, 24, 32)
    video = (ramp // 2 + 20 * torch.arange(6, dtype=torch.uint8)[None, :, None, None]).contiguous()
    file = tmp_path / "video.webp"
    write_animation(file, video, 12)
    data = file.read_bytes()
    assert (data[:4], data[8:12]) == (b"RIFF", b"WEBP")
    assert data.count(b"ANMF") == 6
    assert len(data) < video.numel() / 4
    assert "libwebp_anim" in av.codecs_available
