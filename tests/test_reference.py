"""The reference: what help() shows of the public names."""

import inspect
import pydoc

import pytest

import fastmask as fm
from fastmask.config import Config


@pytest.mark.parametrize("function", [fm.cross_validate, fm.screen, fm.tune], ids=lambda function: function.__name__)
def test_help_shows_the_settings_as_parameters(function):
    parameters = inspect.signature(function).parameters
    assert set(Config.model_fields) <= set(parameters)
    assert all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    text = pydoc.plain(pydoc.render_doc(function))
    assert "**settings" not in text
    assert "arch: str = 'tf_efficientnet_b4'" in text
    assert parameters["epochs"].default == Config().epochs
