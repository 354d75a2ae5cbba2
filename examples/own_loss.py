"""A loss of your own: the focal loss, and for age also how many bands the answer is off, which the classes forget.

python examples/own_loss.py DATA OUT [SETTING=VALUE ...]
"""

import sys

import torch

import fastmask as fm
from fastmask.config import parse_sets


class FocalAndDistance(fm.FocalLoss):
    """Focal loss plus the expected squared distance in bands between the answer for `head` and its label."""

    def __init__(self, heads: fm.Heads, head: str = "age", share: float = 0.5) -> None:
        super().__init__(heads)
        self.position, self.share = heads.position(head), share

    def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B, classes of all heads) logits, labels of either kind -> a scalar; (B,) where fastai asks for "none"."""
        labels = self.heads.split(fm.soft_labels(y.as_subclass(torch.Tensor), self.heads))[self.position]
        probabilities = self.heads.split(self.activation(logits.as_subclass(torch.Tensor)))[self.position]
        bands = torch.arange(probabilities.shape[1], device=labels.device)
        # (B, said, true): an unknown label weighs nothing
        distance = (probabilities[:, :, None] * labels[:, None] * (bands[:, None] - bands) ** 2).sum((1, 2))
        return super().forward(logits, y) + self.share * (distance if self.reduction == "none" else distance.mean())


def main(data: str, out: str, *pairs: str) -> None:
    config = fm.make_config(fm.read_recipe("quick"), parse_sets(pairs))
    run = fm.cross_validate(fm.read_contest(data), config, loss_func=FocalAndDistance, out=out)
    print(run.score())


if __name__ == "__main__":
    main(*sys.argv[1:])
