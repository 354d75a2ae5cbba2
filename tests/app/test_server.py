"""Server: ports, the warning for other hosts, and the command's errors."""

import re
import sys
import warnings
from typing import Any

import pytest

from fastmask.system.errors import FastmaskWarning, UsageError

pytest.importorskip("gradio")

from fastmask.app.server import free_socket, serve

INVALID = 2


def test_a_port_in_use_is_skipped():
    with free_socket("127.0.0.1", 0) as one:
        number = one.getsockname()[1]
        with free_socket("127.0.0.1", number) as other:
            assert number < other.getsockname()[1] <= number + 100
    with pytest.raises(UsageError, match="Cannot listen at 192.0.2.1"):
        free_socket("192.0.2.1", 7860)


def test_other_hosts_get_a_warning(viewer, monkeypatch):
    started: list[Any] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: started.append(sockets))
    said: list[str] = []
    with pytest.warns(FastmaskWarning, match=r"--host 0.0.0.0 gives everyone.* access"):
        serve(viewer, "0.0.0.0", 0, said.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FastmaskWarning)
        serve(viewer, "127.0.0.1", 0, said.append)
    assert len(started) == 2
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", said[1])


def test_invalid_arguments_are_refused(finished_run, refused, work):
    assert "is not a run directory" in refused(INVALID, "app", work)
    inside = finished_run.path / "f.csv"
    assert "is in the run directory" in refused(INVALID, "app", finished_run.path, "--fixes", inside)
    assert "--port is 70000" in refused(INVALID, "app", finished_run.path, "--port", 70000)
    assert "not a name or address" in refused(INVALID, "app", finished_run.path, "--host", "no.such.host.invalid")
    (work / "fixes.csv").write_text("person,column,value\nnobody,gender,male\n")
    said = refused(1, "app", finished_run.path, "--fixes", "fixes.csv")
    assert said.startswith("fixes.csv, line 2, column person: no photo of the data matches 'nobody'")


def test_without_gradio_a_message_says_how_to_install_it(finished_run, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'install it with pip install "fastmask[app]"' in refused(INVALID, "app", finished_run.path)
