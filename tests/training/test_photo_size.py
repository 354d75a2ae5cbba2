import pytest
from PIL import Image

from fastmask.data.readers import read_csv
from fastmask.training.photo_size import size_of_photos, size_of_pixels


@pytest.fixture
def table_of(tmp_path):
    """A function that makes a table of two empty photos of each (height, width); None cannot be read."""

    def table(*sizes):
        rows = ["path,person,head"]
        for i, size in enumerate(sizes * 2):
            file = tmp_path / f"{i}.png"
            if size is None:
                file.write_bytes(b"damaged")
            else:
                Image.new("RGB", size[::-1]).save(file)
            rows.append(f"{file.name},{i},{'xy'[i % 2]}")
        (tmp_path / "my.csv").write_text("\n".join(rows))
        return read_csv(tmp_path / "my.csv", ["head"])

    return table


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # test_resnet's 160 x 160 pixels: 160 x sqrt(4/3) = 184.8 high, 138.6 wide, in multiples of 8
        ([(512, 384)], (184, 136)),
        ([(160, 160)], (160, 160)),
        # wider than high, and the median of three
        ([(120, 160), (30, 40), (400, 100)], (136, 184)),
        ([None, (512, 384), None], (184, 136)),
        ([None], (160, 160)),
    ],
)
def test_the_size_has_the_aspect_of_the_photos_and_the_pixels_of_the_arch(table_of, sizes, expected):
    assert size_of_photos(table_of(*sizes), "test_resnet") == expected


def test_a_size_that_an_arch_cuts_is_replaced_by_one_that_it_takes():
    # patches of 16, which would leave out 8 columns of 40
    assert size_of_pixels("test_vit_relpos", 64 * 40, 64 / 40) == (64, 32)
    assert size_of_pixels("test_resnet", 64 * 40, 64 / 40) == (64, 40)
