"""Published weights of the comparators: where they are, how long, with which hash and licence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        reference: ``hf://owner/repo/file`` it can be had from; the file may be put in place by hand.
        source: who published it, and where.
        size: bytes; None where it is not published.
        sha256: of the file; None where it is not published.
        licence: of the weights, as their publisher states it.
    """

    reference: str
    source: str
    size: int | None
    sha256: str | None
    licence: str


PUBLISHED: dict[str, Published] = {
    "sam_vit_b": Published(
        "hf://ybelkada/segment-anything/checkpoints/sam_vit_b_01ec64.pth",
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "Apache-2.0",
    ),
    "sam_vit_l": Published(
        "hf://ybelkada/segment-anything/checkpoints/sam_vit_l_0b3195.pth",
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        "Apache-2.0",
    ),
    "sam_vit_h": Published(
        "hf://ybelkada/segment-anything/checkpoints/sam_vit_h_4b8939.pth",
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        "Apache-2.0",
    ),
    "mobile_sam": Published(
        "hf://dhkim2810/MobileSAM/mobile_sam.pt",
        "https://github.com/ChaoningZhang/MobileSAM/blob/master/weights/mobile_sam.pt",
        40_728_226,
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        "Apache-2.0",
    ),
    "tinysam": Published(
        "hf://xinghaochen/tinysam/tinysam.pth",
        "https://github.com/xinghaochen/TinySAM (its release 3.0 has the newer tinysam_42.3.pth)",
        None,
        None,
        "Apache-2.0",
    ),
    "sam_med2d": Published(
        "hf://schengal1/SAM-Med2D_model/sam-med2d_b.pth",
        "https://github.com/OpenGVLab/SAM-Med2D (the hub holds a copy by a third party)",
        None,
        None,
        "Apache-2.0",
    ),
}
