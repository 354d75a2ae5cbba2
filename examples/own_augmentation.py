"""Augmentation of your own: a transform for albumentations, which a run writes down and reads back.

python examples/own_augmentation.py DATA OUT [SETTING=VALUE ...]
"""

import sys

import albumentations as A
import numpy as np

import fastmask as fm
from fastmask.config import parse_sets


class CoverBand(A.ImageOnlyTransform):
    """Blacks out a band of the photo's height, so that no single feature decides."""

    class InitSchema(A.ImageOnlyTransform.InitSchema):
        """What albumentations checks the arguments by."""

        share: float

    def __init__(self, share: float = 0.2, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.share = share

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        # self.random_generator is counted by fastmask: the same seed covers the same bands, whatever the workers
        return {"top": int(self.random_generator.integers(0, params["shape"][0]))}

    def apply(self, img: np.ndarray, top: int, **params: object) -> np.ndarray:
        covered = img.copy()
        covered[top : top + int(self.share * len(img))] = 0
        return covered


def main(data: str, out: str, *pairs: str) -> None:
    size = [A.CenterCrop(400, 200), A.Resize(128, 64)]
    closing = [A.Normalize(), A.ToTensorV2()]
    settings = fm.make_config(fm.read_recipe("quick"), parse_sets(pairs)).model_dump(exclude_unset=True)
    del settings["resize"]
    run = fm.cross_validate(
        fm.read_contest(data),
        out=out,
        train_pipeline=A.Compose([*size, CoverBand(share=0.3), A.HorizontalFlip(), *closing], strict=True),
        valid_pipeline=A.Compose([*size, *closing], strict=True),
        **settings,
    )
    print(run.score())

    # in a notebook any callable (image, rng) will do: take what you draw from rng, and it is counted too
    def gamma(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (255 * (image / 255) ** rng.uniform(0.7, 1.4)).astype(np.uint8)

    dls = fm.dataloaders(fm.read_contest(data), folds=run.folds["fold"].to_numpy(), augments=(gamma, lambda x, _: x))
    print(dls.one_batch()[0].shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
