"""Frames <-> blocks, beside a list of the block of every frame."""

from dataclasses import replace

import pytest

from genvid.tokens.frame_blocks import FrameBlocks

PLAIN, SINGLE = FrameBlocks(4), FrameBlocks(4, single_first_frame=True)


def block_of_each(blocks, frames):
    first = 1 if blocks.single_first_frame else 4
    return [0 if frame < first else 1 + (frame - first) // 4 for frame in range(frames)]


@pytest.mark.parametrize("blocks", [PLAIN, SINGLE])
def test_frames_and_blocks(blocks):
    for frames in range(1, 40):
        numbers = block_of_each(blocks, frames)
        last, after = numbers[-1], block_of_each(blocks, 60)
        full = after.count(last) == numbers.count(last)
        assert blocks.covering(frames) == last + 1
        assert blocks.complete(frames) == last + full
        assert blocks.filled(frames) == sum(number <= last for number in after)
        assert blocks.longest_clip(last + 1) == blocks.filled(frames) == sum(blocks.block_frames(last + 1))
        assert [*range(60)][blocks.span(last)] == [place for place, number in enumerate(after) if number == last]
        if full:
            assert blocks.num_blocks(frames) == last + 1
        else:
            with pytest.raises(ValueError, match=f"a clip of {frames} frames does not fill blocks of 4 frames"):
                blocks.num_blocks(frames)
    assert blocks.covering(0) == blocks.complete(0) == blocks.filled(0) == blocks.longest_clip(0) == 0
    assert blocks.block_frames(0) == []


@pytest.mark.parametrize("blocks", [PLAIN, SINGLE])
@pytest.mark.parametrize("stream", [False, True])
def test_the_clips_of_a_video(blocks, stream):
    cut = replace(blocks, stream=stream, max_blocks=3)
    for frames in range(1, 40):
        clips = cut.clips(frames)
        assert sum(clip.frames for clip in clips) == frames
        assert all(clip.filling == 0 and clip.blocks == 3 for clip in clips[:-1])
        if stream:
            assert sum(clip.blocks for clip in clips) == blocks.covering(frames)
            assert frames + clips[-1].filling == blocks.filled(frames)
        else:
            assert all(blocks.num_blocks(clip.frames + clip.filling) == clip.blocks for clip in clips)


def test_lengths_that_do_not_fit_are_one_sentence():
    with pytest.raises(ValueError, match="fill blocks of 4 frames behind a single first frame; use 1 more than a mult"):
        SINGLE.num_blocks(16)
    with pytest.raises(ValueError, match=r"17 frames needs 5 blocks .* at most 4 \(13 frames\)"):
        replace(SINGLE, max_blocks=4).num_blocks(17)
