"""A body of your own: a function registered with timm, and then an arch like any other.

python examples/own_body.py DATA OUT [SETTING=VALUE ...]
"""

import sys
from itertools import pairwise

import torch
from timm.models import register_model
from torch import nn

import fastmask as fm
from fastmask.config import parse_sets


class Stripes(nn.Module):
    """Three convolutions, and the mean of each of four horizontal stripes, because what is where matters in a face."""

    def __init__(self, width: int = 32, stripes: int = 4) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width)
        layers = []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((stripes, 1)), nn.Flatten())
        self.num_features = 4 * width * stripes  # what fastmask builds the heads on

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, num_features)."""
        return self.layers(x)


@register_model
def stripes(pretrained: bool = False, num_classes: int = 0, **kwargs: object) -> nn.Module:
    """What timm.create_model("stripes") gives."""
    return Stripes()


def main(data: str, out: str, *pairs: str) -> None:
    config = fm.make_config(fm.read_recipe("quick"), {"arch": "stripes"}, parse_sets(pairs))
    run = fm.cross_validate(fm.read_contest(data), config, out=out)
    print(run.score())
    # reading the run back needs the registration above, as any custom timm model does
    print(len(fm.Run.load(out).predict([f"{data}/train/images/{run.oof['path'][0]}"])), "photo predicted")


if __name__ == "__main__":
    main(*sys.argv[1:])
