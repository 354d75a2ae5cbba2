import numpy as np
import pytest
import torch

from fastmask.heads import Head, Heads
from fastmask.model.views import VIEWS, average_views, closer, farther, flip, make_views, plain, shift
from fastmask.system.errors import UsageError


@pytest.fixture
def x():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 50, 100)).astype(np.float32))


def test_views_are_added_to_the_photo():
    assert [len(make_views(names)) for names in ([], ["flip"], ["flip", "shift"], ["flip", "shift", "scale"])] == [
        1,
        2,
        6,
        8,
    ]
    assert make_views(["flip"]) == [plain, flip]


def test_a_flip_is_the_mirror_image(x):
    assert torch.equal(flip(x)[..., 0], x[..., -1])
    assert torch.equal(flip(flip(x)), x)


def test_every_view_has_the_size_of_the_photo_and_is_deterministic(x):
    for photos in (x, x[..., :3, :2], x[..., :1, :1]):
        for view in make_views(list(VIEWS)):
            assert view(photos).shape == photos.shape
            assert torch.equal(view(photos), view(photos))


def test_a_view_of_a_photo_does_not_depend_on_the_others(x):
    for view in make_views(list(VIEWS)):
        assert torch.equal(view(x)[1:], view(x[1:]))


def test_shifts_are_whole_pixels_to_the_four_sides_and_the_border_is_reflected(x):
    left, right, up, down = (view(x) for view in VIEWS["shift"].views)
    # 4 % of a width of 100 and of a height of 50
    assert torch.equal(right[..., 4:], x[..., :-4])
    assert torch.equal(left[..., :-4], x[..., 4:])
    assert torch.equal(down[..., 2:, :], x[..., :-2, :])
    assert torch.equal(up[..., :-2, :], x[..., 2:, :])
    assert torch.equal(right[..., :4], x[..., 1:5].flip(-1))
    assert torch.equal(shift(x), x)


def test_scales_show_the_middle_and_the_whole(x):
    blob = torch.zeros(1, 1, 100, 100)
    blob[..., 30:70, 30:70] = 1
    share = [float(view(blob).mean()) for view in (closer, plain, farther)]
    np.testing.assert_allclose(share, [0.16 / 0.92**2, 0.16, 0.16 * 0.92**2], rtol=0.03)
    for view in (closer, farther):
        seen = view(blob)[0, 0]
        torch.testing.assert_close(seen, seen.flip(0))
        torch.testing.assert_close(seen, seen.T)


def test_a_photo_of_one_colour_is_unchanged():
    flat = torch.full((1, 3, 40, 30), -0.7)
    for view in make_views(list(VIEWS)):
        torch.testing.assert_close(view(flat), flat)


def test_unknown_views_are_refused():
    with pytest.raises(UsageError, match="no views 'up'; expected some of flip, shift, scale"):
        make_views(["flip", "up"])
    with pytest.raises(UsageError, match="flip are named twice"):
        make_views(["flip", "flip"])


def test_the_average_has_the_mean_of_each_head_s_probabilities():
    heads, rng = (
        Heads([Head("colour", ("red", "blue")), Head("age", ("<30", "30-59", "60+"))]),
        np.random.default_rng(0),
    )
    each = [torch.from_numpy(rng.normal(scale=3, size=(7, 5))) for _ in range(3)]
    logits = average_views(each, heads)
    for part in (slice(0, 2), slice(2, 5)):
        wanted = torch.stack([one[:, part].softmax(1) for one in each]).mean(0)
        torch.testing.assert_close(logits[:, part].exp(), wanted.float())
        torch.testing.assert_close(logits[:, part].softmax(1), wanted.float())


def test_the_average_is_finite_where_probabilities_are_zero():
    logits = average_views([torch.tensor([[1e6, 0.0]]), torch.tensor([[1e6, -1e6]])], Heads([Head("a", ("x", "y"))]))
    assert logits.isfinite().all()
    assert logits.softmax(1).tolist() == [[1.0, 0.0]]
