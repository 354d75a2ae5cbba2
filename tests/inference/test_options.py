"""Options: one value for the API and the command line, checked before any photo is read."""

import pytest
import torch

from fastmask.config import make_config
from fastmask.inference.options import PhotoOptions, PredictOptions, SoupOptions
from fastmask.model.views import VIEWS
from fastmask.system.errors import UsageError


def test_options_are_given_as_a_value_or_by_name():
    assert PredictOptions.of(None, {}) == PredictOptions()
    options = PredictOptions(tta=2, bs=8)
    assert PredictOptions.of(options, {"bs": 4}) == PredictOptions(tta=2, bs=4)


@pytest.mark.parametrize("kind", [PhotoOptions, PredictOptions, SoupOptions])
def test_a_device_of_torch_is_taken_by_its_name(kind):
    assert kind(device=torch.device("cuda", 1)).device == "cuda:1"


def test_every_view_of_the_registry_is_in_the_help_and_counted():
    description = PredictOptions.model_fields["views"].description
    assert all(name in description for name in VIEWS)
    assert [PredictOptions(views=[name]).n_views - 1 for name in VIEWS] == [len(one.views) for one in VIEWS.values()]
    assert PredictOptions(tta=3).n_views == 3


def test_the_views_are_those_of_the_run_unless_others_are_given():
    config = make_config({"views": ["shift"]})
    given = [{}, {"tta": 1}, {"tta": 2}, {"views": "none"}, {"views": ["none"]}, {"views": ["flip"]}]
    counts = [PredictOptions.of(None, one).of_run(config).n_views for one in given]
    assert counts == [5, 1, 2, 1, 1, 2]
    assert PredictOptions().of_run(make_config({})).n_views == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tta": 0}, "Option tta: found 0, expected a whole number from 1"),
        ({"bs": 65537}, "Option bs: found 65537, expected a whole number from 1 to 65536"),
        ({"workers": -1}, "Option workers: found -1, expected a whole number from 0"),
        ({"members": 3}, "Option members: found 3, expected"),
        ({"precision": "int8"}, "Option precision: found 'int8', expected auto, fp32, bf16 or fp16"),
        ({"tts": 2}, "There is no option 'tts'; did you mean 'tta'"),
        ({"views": ["flip"], "tta": 2}, "--tta and --views exclude each other"),
        ({"views": ["turn"]}, "There are no views 'turn'"),
    ],
)
def test_wrong_options_are_one_sentence(given, message):
    with pytest.raises(UsageError, match=message):
        PredictOptions.of(None, given)


def test_a_value_in_the_place_of_the_options_is_refused():
    with pytest.raises(UsageError, match="Found 'flip' in place of PredictOptions; give an option by its name"):
        PredictOptions.of("flip", {})
