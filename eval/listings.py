"""Names of the videos of published sets: a folder of as many other videos does not bear a protocol's name.

All names of DAVIS are compared. Of the larger sets only the form of a name is checked, with the groups of UCF-101's
splits and the YouTube ids of TokenBench. Together with the number of videos (`EvaluationProtocol.videos`) that rules
out another set by mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

OTHERS = "others"
"""`names` of a protocol whose videos are not those of the published set."""

_DAVIS_TRAIN = """
    bear bmx-bumps boat boxing-fisheye breakdance-flare bus car-turn cat-girl classic-car color-run crossing dance-jump
    dancing disc-jockey dog-agility dog-gooses dogs-scale drift-turn drone elephant flamingo hike hockey horsejump-low
    kid-football kite-walk koala lady-running lindy-hop longboard lucia mallard-fly mallard-water miami-surf
    motocross-bumps motorbike night-race paragliding planes-water rallye rhino rollerblade schoolgirls scooter-board
    scooter-gray sheep skate-park snowboard soccerball stroller stunt surf swing tennis tractor-sand train tuk-tuk
    upside-down varanus-cage walking
"""
_DAVIS_VAL = """
    bike-packing blackswan bmx-trees breakdance camel car-roundabout car-shadow cows dance-twirl dog dogs-jump
    drift-chicane drift-straight goat gold-fish horsejump-high india judo kite-surf lab-coat libby loading mbike-trick
    motocross-jump paragliding-launch parkour pigs scooter-black shooting soapbox
"""
_DAVIS = {*_DAVIS_TRAIN.split(), *_DAVIS_VAL.split()}

_UCF101 = re.compile(r"v_[A-Za-z]+_g(\d\d)_c\d\d")
_KINETICS = re.compile(r"[\w-]{11}_\d{6}_\d{6}")
_PANDA = """
    2k_jxJAdGTE -TfD4eKDfbI -tAvY8gW8rU 0-aW3PKnj8E 3UD7v_8lPv4 3Dgpwh5A8R8 3Q__bVY6wtk 3IIZmiGivRA -fI-ogq9OC8
    1ySlUbU_p_0 09iAWc3WroQ 2Wn6E_Vp-30 351DxQghbh0 28hKF2Rhebs 3FYivm45mjs 2sZRw6a2rT0 -ZsxlUiiOdI 22U8P7ZfG8g
    1tUgMixon2w -qZM-qxiMQk 28Fx5bVejho -XPurrmMnJg 0HujyOjjpZY 3cIsikJDcdA 0G3oIqrJync 2m3AG4x2bL8 09GG1VGyFsg
    2qrAcoaQzDg 0Ai3dTTGvkc 3VcdJlrUrSw 38OE63uRI5k 228zX1vL9bY -vmdbpEnPik 2MvkB0qNPpk -MiZb4F8mis 06akl7o7O2s
    -EgW0xV1fsE 25BOri2peMQ 3Y8SvZUZ30U 218_U-77XmM 39Mlhp_z6JA 3K8zBpQr4Vc 081ILYBU1pw -q7jbZkOa0o -BA_ifeRHxs
    0C4oY_6A4co 3S-7-KeCpNE 36k4x2ExEJQ BeNwloO546Y 3FHyqjEMsN4 3bLno9ZGFUU -6r04gCLMWw 0-aFxUUa04o
"""
"""YouTube ids of TokenBench's part of Panda-70M, some with several parts; TokenBench fixes no names of these files."""
_TOKENBENCH = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{8}$"  # BDD100K
    r"|(aria01_214-1|cam01)$"  # EgoExo-4D
    r"|(datacol[12]|deepthought|minsky)_.*traj0"  # BridgeData V2
    f"|{'|'.join(map(re.escape, _PANDA.split()))}"
)

_TOKENBENCH_240P = re.compile(r"(bdd|bridgev2|egoexo4D|panda70m)_")
"""Names of the example files in InfoTok's repository; it publishes no list."""


def listed(published: str, names: Iterable[str]) -> str:
    """`published`, the `names` of a protocol, where videos of these names can be that set; `OTHERS` where they cannot.

    Names are paths below the root of a source, with or without the first frame after a #.
    """
    fits = _SETS[published]
    return published if fits({str(PurePosixPath(name.partition("#")[0]).with_suffix("")) for name in names}) else OTHERS


def _ucf101(groups: range) -> Callable[[set[str]], bool]:
    def fits(paths: set[str]) -> bool:
        found = [_UCF101.fullmatch(PurePosixPath(path).name) for path in paths]
        return all(name is not None and int(name[1]) in groups for name in found)

    return fits


_SETS: dict[str, Callable[[set[str]], bool]] = {
    "": lambda _: True,
    "UCF-101, groups 8 to 25": _ucf101(range(8, 26)),
    "UCF-101, groups 1 to 7": _ucf101(range(1, 8)),
    "UCF-101": _ucf101(range(1, 26)),
    "Kinetics-600": lambda paths: all(_KINETICS.fullmatch(PurePosixPath(path).name) for path in paths),
    "DAVIS 2017, train and val": lambda paths: paths <= _DAVIS,
    "DAVIS at 240p": lambda paths: {path.removesuffix("_240p") for path in paths} <= _DAVIS,
    "TokenBench": lambda paths: all(_TOKENBENCH.search(path) for path in paths),
    "TokenBench at 240p": lambda paths: all(_TOKENBENCH_240P.match(path) for path in paths),
}
"""`names` of a protocol -> whether paths without suffix are of that set."""
